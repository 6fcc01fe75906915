//! Three directors side by side: packets take the fast path where they can in the first, always the general path in the
//! second, and arrive in two parts, the headers and the rest, in the third.
//!
//! All get the same requests. Every answer (verdict, frames, counters, listings, explanations) must be the same, so any
//! test with this lab shows that the two paths have one meaning, also for packets in several buffers.

use std::convert::Infallible;

use serde_json::Value;
use xvs_cli::lab::Lab;
use xvs_ctl::in_memory::InMemory;
use xvs_dataplane::steering::SteeringRules;
use xvs_proto::network::Network;

use crate::offload;

/// A lab, and its doubles.
pub struct BothPaths {
    lab: Lab,
    /// With their names; empty since a test has used the lab without them.
    doubles: Vec<(Lab, &'static str)>,
}

/// The bytes of a frame up to the end of a TCP header without options. A UDP packet has data there; behind options or
/// extension headers, some headers are in the second part.
fn headers(frame: &[u8]) -> usize {
    let network = if frame.get(12) == Some(&0x86) { 40 } else { 20 };
    14 + network + 20
}

impl Default for BothPaths {
    fn default() -> Self {
        Self::new()
    }
}

/// The lines of a listing, sorted.
fn sorted(answer: &str) -> Vec<&str> {
    let mut lines: Vec<_> = answer.split("\\n").collect();
    lines.sort_unstable();
    lines
}

impl BothPaths {
    /// Labs without interfaces, at time 0. With `XVS_OFFLOAD` in the environment there is one double, whose flows are
    /// offloaded as soon as they can be to the XDP program, which the kernel runs: that needs root.
    pub fn new() -> Self {
        if offload::is_wanted() {
            return Self::offloading();
        }
        let (mut general, mut parts) = (Lab::new(), Lab::new());
        general.director.set_fast_path(false);
        parts.director.set_first_part(headers);
        Self { lab: Lab::new(), doubles: vec![(general, "general path"), (parts, "in parts")] }
    }

    /// The one with the double whose flows are offloaded.
    pub fn offloading() -> Self {
        Self { lab: Lab::new(), doubles: vec![(offload::offloading(0), "offloaded")] }
    }

    /// A lab alone, whose flows are offloaded, and whose workers read records only when time advances.
    pub fn offloading_alone() -> Self {
        let mut lab = offload::offloading(0);
        lab.director.sweep_late();
        Self { lab, doubles: Vec::new() }
    }

    /// The answer of all.
    ///
    /// # Panics
    /// If they differ.
    pub fn answer(&mut self, line: &str) -> String {
        let answer = self.lab.answer(line);
        for (double, name) in &mut self.doubles {
            let other = double.answer(line);
            // Connections are listed by their place in the table, which depends on when a former one gave it up.
            if answer != other && !(line.contains(r#""-c""#) && sorted(&answer) == sorted(&other)) {
                assert_eq!(answer, other, "fast path, {name}: {line}");
            }
        }
        answer
    }

    /// The answer of all, as a value.
    ///
    /// # Panics
    /// If they differ.
    pub fn ask(&mut self, request: &Value) -> Value {
        serde_json::from_str(&self.answer(&request.to_string())).expect("the lab answers JSON")
    }

    /// Injects frames as one burst. Returns what was sent, each with its link.
    ///
    /// # Panics
    /// If the link does not exist, or if the verdicts or the sent frames of two of them differ.
    pub fn burst(&mut self, link: &str, frames: &[&[u8]]) -> Vec<(String, Vec<u8>)> {
        let send = |lab: &mut Lab| {
            lab.director.burst(link, frames.iter().copied()).expect("the link is there, and the frames fit");
            (lab.director.verdicts().to_vec(), lab.director.transmitted())
        };
        let sent = send(&mut self.lab);
        for (double, name) in &mut self.doubles {
            assert_eq!(sent, send(double), "fast path, {name}");
        }
        sent.1
    }

    /// The number of frames of the last burst that could not take the fast path.
    pub fn general_path(&self) -> usize {
        self.lab.director.general_path()
    }

    /// Names a host, for all.
    pub fn name_host(&mut self, addr: std::net::IpAddr, name: &str) {
        for lab in std::iter::once(&mut self.lab).chain(self.doubles.iter_mut().map(|(lab, _)| lab)) {
            lab.name_host(addr, name);
        }
    }

    /// Changes the network in a way for which the lab has no request, for all.
    pub fn change_network(&mut self, change: impl Fn(&mut Network)) {
        for lab in std::iter::once(&mut self.lab).chain(self.doubles.iter_mut().map(|(lab, _)| lab)) {
            let Ok(()) = lab.director.change_network::<Infallible>(|network| {
                change(network);
                Ok(())
            });
        }
    }

    /// The directors of all.
    pub fn directors(&self) -> impl Iterator<Item = &InMemory> {
        std::iter::once(&self.lab).chain(self.doubles.iter().map(|(lab, _)| lab)).map(|lab| &lab.director)
    }

    /// What the XDP program would steer now.
    pub fn steering_rules(&mut self) -> &SteeringRules {
        self.lab.director.steering_rules()
    }

    /// The lab itself. From now on it has no doubles.
    pub fn alone(&mut self) -> &mut Lab {
        self.doubles.clear();
        &mut self.lab
    }
}
