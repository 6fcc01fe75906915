//! Forwarded packets that were not sent: after the XDP program has redirected a frame, the interface may refuse it.
//!
//! Only the kernel's tracepoints see such a loss; programs count there (`bpf/losses.bpf.c`). The counts also show the
//! result of a trial: a frame that is sent to find out whether an interface accepts redirected frames.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::io;
use std::mem::offset_of;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::Ordering::Relaxed;

use xvs_proto::ethernet;
use xvs_xdp::bpf::{Object, Words, follow_tracepoint, run_live};

use super::objects::Load;
use crate::bpf::{XVS_LOSSES, in_words, xvs_losses};

/// The words of the map's value.
const WORDS: usize = in_words(size_of::<xvs_losses>());
/// The tracepoints and the programs there.
const TRACEPOINTS: [(&CStr, &CStr); 3] = [
    (c"xdp_devmap_xmit", c"refused"),
    (c"xdp_redirect_err", c"not_redirected"),
    (c"xdp_exception", c"exception"),
];

/// Packets that were to leave by an interface.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Leaving {
    /// They have left; not counted in generic mode.
    pub sent: u64,
    /// The interface has refused them.
    pub refused: u64,
    /// In generic mode: its queue was full or stopped.
    pub full: u64,
}

/// The counts in this thread's network namespace, as long as this value exists.
pub struct Losses {
    packets: Words<WORDS>,
    object: Object,
    /// The counts of trials, by the index of the interface.
    trials: BTreeMap<u32, Leaving>,
    _tracepoints: [OwnedFd; 3],
}

impl Losses {
    /// Starts counting.
    ///
    /// # Errors
    ///
    /// The kernel refuses: it has no such tracepoints, or no BTF.
    pub fn follow() -> io::Result<Self> {
        let namespace = std::fs::metadata("/proc/thread-self/ns/net")?.ino();
        let object = Load::Losses(namespace as u32).object(None)?;
        let [refused, failed, exception] =
            TRACEPOINTS.map(|(tracepoint, program)| follow_tracepoint(tracepoint, object.program(program)?));
        let _tracepoints = [refused?, failed?, exception?];
        Ok(Self { packets: object.words(c"losses")?, object, trials: BTreeMap::new(), _tracepoints })
    }

    /// The counts of the interface with this index, without trials.
    pub fn of(&self, ifindex: u32) -> Leaving {
        let all = self.counted(ifindex);
        let trials = self.trials.get(&ifindex).copied().unwrap_or_default();
        Leaving { sent: all.sent - trials.sent, refused: all.refused - trials.refused, ..all }
    }

    /// Whether an interface with this link address accepts frames that an XDP program in native mode redirects to it.
    /// Tries it with a frame that no bridge forwards. False also if the trial fails. Needs Linux 5.18.
    pub fn is_taken(&mut self, ifindex: u32, address: [u8; 6]) -> bool {
        let mut frame = [0; TRIAL_LEN];
        frame[..6].copy_from_slice(&TO_NO_ONE);
        frame[6..12].copy_from_slice(&address);
        frame[12..14].copy_from_slice(&EXPERIMENTAL.to_be_bytes());
        frame[ethernet::HEADER_LEN..][..4].copy_from_slice(&ifindex.to_ne_bytes());
        let before = self.counted(ifindex);
        let has_run =
            self.object.program(c"leave").and_then(|program| run_live(program, &frame, 1, 1)).is_ok();
        let after = self.counted(ifindex);
        let is_taken = after.sent > before.sent;
        let is_refused = after.refused > before.refused;
        let trials = self.trials.entry(ifindex).or_default();
        // Other frames may have been counted meanwhile.
        trials.sent += u64::from(has_run && is_taken);
        trials.refused += u64::from(has_run && !is_taken && is_refused);
        is_taken
    }

    fn counted(&self, ifindex: u32) -> Leaving {
        let count =
            |of: usize| self.packets[in_words(of) + ifindex as usize % XVS_LOSSES as usize].load(Relaxed);
        Leaving {
            sent: count(offset_of!(xvs_losses, sent)),
            refused: count(offset_of!(xvs_losses, refused)),
            full: count(offset_of!(xvs_losses, full)),
        }
    }
}

/// The length of the shortest frame, without its check sequence (IEEE 802.3 3.2.8).
const TRIAL_LEN: usize = 60;
/// The address of the nearest bridge (IEEE 802.1Q 8.6.3), which forwards no frame that has it.
const TO_NO_ONE: [u8; 6] = [0x01, 0x80, 0xc2, 0x00, 0x00, 0x0e];
/// The first EtherType for local experiments (IEEE 802 9.2.3).
const EXPERIMENTAL: u16 = 0x88b5;
