//! Hash schedulers whose clients of an unusable real server are refused: the command that ends that.
//!
//! For warnings of `xvs status`, `xvs explain`, `xvs drain`, `xvs disable` and `xvs doctor`. Rules are those from
//! [`service_line`](crate::service_line).

/// The command that gives a service with `sh` or `mh` its fallback; `None` if it has one, or another scheduler.
pub fn fallback_command(rule: &str) -> Option<String> {
    let scheduler = argument(rule, "-s").filter(|name| ["sh", "mh"].contains(name))?;
    let fallback = format!("{scheduler}-fallback");
    let flags = argument(rule, "-b").unwrap_or_default();
    if flags.split(',').any(|flag| flag == fallback) {
        return None;
    }
    let others = if flags.is_empty() { String::new() } else { format!(",{flags}") };
    Some(scheduler_command(rule, &format!("-s {scheduler} -b {fallback}{others}")))
}

/// The command that gives a service this scheduler, with its flags, and keeps all other options.
pub fn scheduler_command(rule: &str, scheduler: &str) -> String {
    let mut command = "xvsadm -E".to_owned();
    let mut words = rule.split(' ');
    while let Some(word) = words.next() {
        match word {
            "-s" => {
                words.next();
                command += &format!(" {scheduler}");
            }
            "-b" => {
                words.next();
            }
            other => command += &format!(" {other}"),
        }
    }
    command
}

/// The argument of an option.
fn argument<'a>(rule: &'a str, option: &str) -> Option<&'a str> {
    rule.split(' ').skip_while(|word| *word != option).nth(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_without_fallback_gets_a_command_that_keeps_all_other_options() {
        for (rule, command) in [
            ("-t [2001:db8::1]:80 -s mh", Some("xvsadm -E -t [2001:db8::1]:80 -s mh -b mh-fallback")),
            (
                "-f 7 -s sh -b sh-port -p 300 --syn-proxy on",
                Some("xvsadm -E -f 7 -s sh -b sh-fallback,sh-port -p 300 --syn-proxy on"),
            ),
            ("-t 192.0.2.1:80 -s mh -b mh-fallback,mh-port", None),
            ("-t 192.0.2.1:80 -s wlc", None),
            ("-t 192.0.2.1:80 -s dh", None),
        ] {
            assert_eq!(fallback_command(rule).as_deref(), command);
        }
    }
}
