//! A director whose packets go the short way where they can, beside one whose packets all go the general way.
//!
//! Both get the same requests. Every answer (verdict, frames, counters, listings, explanations) must be the same, so
//! whatever a test does with this lab shows that the two ways have one meaning.

use serde_json::Value;
use xvs_cli::lab::Lab;
use xvs_ctl::in_memory::InMemory;
use xvs_dataplane::steering::SteeringRules;
use xvs_proto::network::Network;

/// A lab, and its double.
pub struct BothWays {
    lab: Lab,
    /// `None` since a test has used the lab without its double.
    general: Option<Lab>,
}

impl Default for BothWays {
    fn default() -> Self {
        Self::new()
    }
}

impl BothWays {
    /// Two labs without interfaces, at time 0.
    pub fn new() -> Self {
        let mut general = Lab::new();
        general.director.set_short_way(false);
        Self { lab: Lab::new(), general: Some(general) }
    }

    /// The answer of both.
    ///
    /// # Panics
    /// If they differ.
    pub fn answer(&mut self, line: &str) -> String {
        let answer = self.lab.answer(line);
        if let Some(general) = &mut self.general {
            assert_eq!(answer, general.answer(line), "short way, general way: {line}");
        }
        answer
    }

    /// The answer of both, as a value.
    ///
    /// # Panics
    /// If they differ.
    pub fn ask(&mut self, request: &Value) -> Value {
        serde_json::from_str(&self.answer(&request.to_string())).expect("the lab answers JSON")
    }

    /// Injects frames as one burst.
    ///
    /// # Panics
    /// If the link does not exist, or if the verdicts or the sent frames of the two differ.
    pub fn burst(&mut self, link: &str, frames: &[&[u8]]) {
        let send = |lab: &mut Lab| {
            lab.director.burst(link, frames.iter().copied()).expect("the link is there, and the frames fit");
            (lab.director.verdicts().to_vec(), lab.director.transmitted())
        };
        let sent = send(&mut self.lab);
        if let Some(general) = &mut self.general {
            assert_eq!(sent, send(general), "short way, general way");
        }
    }

    /// The number of frames of the last burst that could not go the short way.
    pub fn general_way(&self) -> usize {
        self.lab.director.general_way()
    }

    /// Names a host, for both.
    pub fn name_host(&mut self, addr: std::net::IpAddr, name: &str) {
        for lab in std::iter::once(&mut self.lab).chain(&mut self.general) {
            lab.name_host(addr, name);
        }
    }

    /// Changes the network in a way for which the lab has no request, for both.
    ///
    /// # Panics
    /// If the network is not valid then.
    pub fn change_network(&mut self, change: impl Fn(&mut Network)) {
        for lab in std::iter::once(&mut self.lab).chain(&mut self.general) {
            let changed = lab.director.change_network(|network| {
                change(network);
                Ok(())
            });
            changed.expect("the network stays valid");
        }
    }

    /// The directors of both.
    pub fn directors(&self) -> impl Iterator<Item = &InMemory> {
        std::iter::once(&self.lab).chain(&self.general).map(|lab| &lab.director)
    }

    /// What the XDP program would steer now.
    pub fn steering_rules(&mut self) -> &SteeringRules {
        self.lab.director.steering_rules()
    }

    /// The lab itself. From now on it has no double.
    pub fn alone(&mut self) -> &mut Lab {
        self.general = None;
        &mut self.lab
    }
}
