//! Empty: this package exists for the tests and benches beside it.
