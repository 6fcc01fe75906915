//! Tables of settings: the meaning, name, type and default of each, in one line.
//!
//! A table makes the section of xvs.toml, its defaults, and `xvs set` by name.

use crate::config::refusal::CommandError;

/// Makes the type of a section from its table. The names of `xvs set` begin with the prefix.
macro_rules! settings {
    (
        $(#[$about:meta])*
        $section:ident with prefix $prefix:literal;
        $($(#[$meaning:meta])* $key:ident: $kind:ty = $default:expr;)*
    ) => {
        $(#[$about])*
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct $section {
            $($(#[$meaning])* pub $key: $kind,)*
        }

        impl Default for $section {
            fn default() -> Self {
                Self { $($key: $default,)* }
            }
        }

        impl $section {
            /// Sets one setting, by its name without the prefix.
            ///
            /// # Errors
            /// [`CommandError::UnknownSetting`] or [`CommandError::BadSetting`]; nothing has changed.
            pub fn set(&mut self, key: &str, value: &str) -> Result<(), CommandError> {
                match key {
                    $(stringify!($key) => {
                        self.$key = $crate::config::setting_table::read(concat!($prefix, stringify!($key)), value)?;
                    })*
                    _ => {
                        let key = format!("{}{key}", $prefix);
                        return Err(CommandError::UnknownSetting { key, known: Self::keys() });
                    }
                }
                Ok(())
            }

            /// Every name with the prefix, sorted.
            pub fn keys() -> Vec<String> {
                let mut keys = vec![$(concat!($prefix, stringify!($key)).to_owned()),*];
                keys.sort_unstable();
                keys
            }
        }
    };
}

/// Makes values of types that are read from a number or text of their own.
macro_rules! values {
    ($($kind:ty: $raw:ty, $range:expr;)*) => {
        $(impl $crate::config::setting_table::Value for $kind {
            fn range() -> String {
                $range.to_owned()
            }

            fn parse(text: &str) -> Option<Self> {
                text.parse::<$raw>().ok()?.try_into().ok()
            }
        })*
    };
}

pub(crate) use {settings, values};

/// A value as text.
pub(crate) trait Value: Sized {
    /// The texts that are values.
    fn range() -> String;

    /// Parses a value; `None` if the text is invalid.
    fn parse(text: &str) -> Option<Self>;
}

/// Reads the value of a setting.
///
/// # Errors
/// [`CommandError::BadSetting`].
pub(crate) fn read<V: Value>(key: &str, text: &str) -> Result<V, CommandError> {
    V::parse(text).ok_or_else(|| CommandError::BadSetting {
        key: key.to_owned(),
        value: text.to_owned(),
        range: V::range(),
    })
}
