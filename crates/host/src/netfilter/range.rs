//! Splits a range of addresses into networks.

use std::net::IpAddr;

use xvs_proto::Prefix;

/// The smallest set of networks that covers exactly the addresses from `first` to `last`; `None` if these belong to two
/// families, or if `last` comes before `first`.
pub(super) fn prefixes(first: IpAddr, last: IpAddr) -> Option<Vec<Prefix>> {
    let (from, to, bits) = match (first, last) {
        (IpAddr::V4(first), IpAddr::V4(last)) => (u32::from(first).into(), u32::from(last).into(), 32),
        (IpAddr::V6(first), IpAddr::V6(last)) => (u128::from(first), u128::from(last), 128),
        _ => return None,
    };
    let mut prefixes = Vec::new();
    let mut from = Some(from).filter(|from| *from <= to);
    from?;
    while let Some(begin) = from {
        // The largest network that begins here and does not exceed the range.
        let mut free = begin.trailing_zeros().min(bits);
        while last_of(begin, free) > to {
            free -= 1;
        }
        let address = match bits {
            32 => IpAddr::V4((begin as u32).into()),
            _ => IpAddr::V6(begin.into()),
        };
        prefixes.extend(Prefix::new(address, (bits - free) as u8));
        from = last_of(begin, free).checked_add(1).filter(|next| *next <= to);
    }
    Some(prefixes)
}

/// The last address of a network with `free` host bits.
fn last_of(begin: u128, free: u32) -> u128 {
    begin | 1u128.checked_shl(free).map_or(u128::MAX, |size| size - 1)
}

#[cfg(test)]
mod tests {
    use crate::netfilter::range::*;

    fn texts(first: &str, last: &str) -> Option<Vec<String>> {
        let prefixes = prefixes(first.parse().unwrap(), last.parse().unwrap())?;
        Some(prefixes.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_range_is_split_into_the_fewest_networks_that_have_exactly_its_addresses() {
        let nets = |nets: &[&str]| Some(nets.iter().map(|net| (*net).to_owned()).collect::<Vec<_>>());
        assert_eq!(
            texts("172.16.0.1", "172.16.0.9"),
            nets(&["172.16.0.1/32", "172.16.0.2/31", "172.16.0.4/30", "172.16.0.8/31"])
        );
        assert_eq!(texts("10.0.0.0", "10.255.255.255"), nets(&["10.0.0.0/8"]));
        assert_eq!(texts("0.0.0.0", "255.255.255.255"), nets(&["0.0.0.0/0"]));
        assert_eq!(texts("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"), nets(&["::/0"]));
        assert_eq!(texts("255.255.255.255", "255.255.255.255"), nets(&["255.255.255.255/32"]));
        assert_eq!(texts("2001:db8::1", "2001:db8::2"), nets(&["2001:db8::1/128", "2001:db8::2/128"]));
        assert_eq!(texts("10.0.0.2", "10.0.0.1"), None);
        assert_eq!(texts("10.0.0.2", "::1"), None);
    }
}
