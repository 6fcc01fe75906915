//! Advice about a name that xvs does not know: a setting, or a key of xvs.toml.

/// The advice, as a clause; `None` if no known name is similar.
pub fn advice<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    if let Some((_, why)) = OF_THE_KERNEL.iter().find(|(setting, _)| *setting == name) {
        return Some((*why).to_owned());
    }
    // The prefix with which sysctl names the kernel's settings.
    let name = name.strip_prefix("net.ipv4.vs.").unwrap_or(name);
    let (distance, nearest) = known
        .into_iter()
        .map(|known| (strsim::damerau_levenshtein(name, known), known))
        .min_by_key(|(distance, _)| *distance)?;
    // After a prefix, as in `feedback.step`, the last component itself must be similar.
    let word = name.rsplit('.').next().unwrap_or_default();
    (distance <= word.len().div_ceil(4)).then(|| format!("did you mean {nearest}?"))
}

/// The settings of the kernel's IPVS that xvs has not, each with the reason and the next step.
const OF_THE_KERNEL: [(&str, &str); 2] = [
    (
        "conntrack",
        "it is always 0 in xvs, because netfilter does not see packets of services; leave it out, and filter on the \
         routers or the real servers",
    ),
    (
        "snat_reroute",
        "it is always 1 in xvs, which routes replies as if the director had made them; leave it out",
    ),
];

#[cfg(test)]
mod tests {
    use crate::config::unknown_name::advice;

    #[test]
    fn a_name_with_a_few_wrong_letters_is_recognised_and_any_other_is_not() {
        let known = ["interfaces", "conn_table_size", "conn_reuse_mode", "feedback.step"];
        for (name, meant) in [
            ("intrefaces", Some("did you mean interfaces?")),
            ("conn_tabel_size", Some("did you mean conn_table_size?")),
            ("conn_reuse", None),
            ("x", None),
            ("feedback.speed", None),
            ("net.ipv4.vs.conn_reuse_mode", Some("did you mean conn_reuse_mode?")),
            ("feedback.stepp", Some("did you mean feedback.step?")),
        ] {
            assert_eq!(advice(name, known).as_deref(), meant, "{name}");
        }
        assert_eq!(advice("interfaces", []), None);
        assert!(advice("conntrack", known).unwrap().contains("always 0"));
    }
}
