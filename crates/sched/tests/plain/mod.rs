//! A plain model of every scheduler, written after its description (ipvs-behaviour, section 5): lists that are walked,
//! pointers that are moved, tables that are filled from scratch. It shares nothing with the crate's own code.

use std::collections::HashMap;
use std::net::IpAddr;

/// A real server by its number; its endpoint is 10.0.0.NUMBER:80.
pub(crate) type Name = u8;

/// A destination of the list; the one added last comes first.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dest {
    pub(crate) name: Name,
    pub(crate) weight: u32,
    pub(crate) last_weight: u32,
    pub(crate) active: i128,
    pub(crate) inactive: i128,
    pub(crate) overloaded: bool,
}

impl Dest {
    fn usable(&self) -> bool {
        self.weight > 0 && !self.overloaded
    }

    fn overhead(&self) -> i128 {
        self.active * 256 + self.inactive
    }

    fn w(&self) -> i128 {
        i128::from(self.weight)
    }
}

/// A packet and its time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Packet {
    pub(crate) source: u32,
    pub(crate) port: u16,
    pub(crate) dest: IpAddr,
    pub(crate) now_millis: u64,
    pub(crate) random: u64,
}

/// A change of the list.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Event {
    Added,
    /// The removed destination, and the one before it.
    Removed(Name, Option<Name>),
    Edited,
}

pub(crate) trait Model {
    /// The list has changed; it is passed as it is now.
    fn event(&mut self, _: &[Dest], _: Event) {}
    /// The destination of the connection.
    fn pick(&mut self, list: &[Dest], packet: &Packet) -> Option<Name>;
}

/// The model of a scheduler.
pub(crate) fn model(name: &str, flags: u8, lblcr_expiration_seconds: u64) -> Box<dyn Model> {
    let (fallback, port) = (flags & 1 != 0, flags & 2 != 0);
    match name {
        "rr" => Box::new(Rr(None)),
        "wrr" => Box::new(Wrr { last: None, cw: 0, mw: 0, di: 1 }),
        "lc" => Box::new(Stateless(lc)),
        "wlc" => Box::new(Stateless(wlc)),
        "sed" => Box::new(Stateless(sed)),
        "nq" => Box::new(Stateless(nq)),
        "fo" => Box::new(Stateless(fo)),
        "ovf" => Box::new(Stateless(ovf)),
        "none" => Box::new(Stateless(|_, _| None)),
        "twos" => Box::new(Stateless(twos)),
        "dh" => Box::new(Stateless(dh)),
        "sh" => Box::new(Sh { fallback, port }),
        "mh" => Box::new(Mh { fallback, port, table: Vec::new() }),
        "lblc" => Box::new(Lblc(HashMap::new())),
        "lblcr" => Box::new(Lblcr { sets: HashMap::new(), expiration: lblcr_expiration_seconds * 1000 }),
        _ => panic!("{name} has no model"),
    }
}

/// The place of a destination in the list.
fn place(list: &[Dest], name: Name) -> usize {
    list.iter().position(|dest| dest.name == name).expect("it is in the list")
}

struct Stateless(fn(&[Dest], &Packet) -> Option<Name>);

impl Model for Stateless {
    fn pick(&mut self, list: &[Dest], packet: &Packet) -> Option<Name> {
        self.0(list, packet)
    }
}

/// The last choice.
struct Rr(Option<Name>);

impl Model for Rr {
    fn event(&mut self, _: &[Dest], event: Event) {
        if let Event::Removed(name, before) = event
            && self.0 == Some(name)
        {
            self.0 = before;
        }
    }

    fn pick(&mut self, list: &[Dest], _: &Packet) -> Option<Name> {
        let start = self.0.map_or(0, |last| place(list, last) + 1);
        let chosen = list[start..].iter().chain(&list[..start]).find(|dest| dest.usable())?;
        self.0 = Some(chosen.name);
        self.0
    }
}

struct Wrr {
    last: Option<Name>,
    cw: i64,
    mw: i64,
    di: i64,
}

impl Model for Wrr {
    fn event(&mut self, list: &[Dest], _: Event) {
        let weights = || list.iter().map(|dest| i64::from(dest.weight)).filter(|weight| *weight > 0);
        // The greatest number that divides all weights.
        let most = weights().max().unwrap_or(0);
        self.di = (1..=most).rev().find(|d| weights().all(|weight| weight % d == 0)).unwrap_or(1);
        self.mw = most - (self.di - 1);
        self.last = None;
        if self.cw > self.mw || self.cw == 0 {
            self.cw = self.mw;
        } else if self.di > 1 {
            self.cw = self.cw / self.di * self.di + 1;
        }
    }

    fn pick(&mut self, list: &[Dest], _: &Packet) -> Option<Name> {
        if self.mw <= 0 {
            return None;
        }
        let before = (self.last, self.cw);
        let mut whole_pass = false;
        loop {
            let start = self.last.map_or(0, |last| place(list, last) + 1);
            whole_pass |= start == 0;
            let fits = |dest: &&Dest| i64::from(dest.weight) >= self.cw && !dest.overloaded;
            if let Some(dest) = list[start..].iter().find(fits) {
                self.last = Some(dest.name);
                return self.last;
            }
            self.last = None;
            let lowest = self.cw - self.di <= 0;
            if lowest && whole_pass {
                (self.last, self.cw) = before;
                return None;
            }
            self.cw = if lowest { self.mw } else { self.cw - self.di };
        }
    }
}

fn lc(list: &[Dest], _: &Packet) -> Option<Name> {
    let mut least: Option<&Dest> = None;
    for dest in list.iter().filter(|dest| dest.usable()) {
        if least.is_none_or(|least| dest.overhead() < least.overhead()) {
            least = Some(dest);
        }
    }
    least.map(|dest| dest.name)
}

fn ratio<'a>(list: impl Iterator<Item = &'a Dest>, overhead: fn(&Dest) -> i128) -> Option<Name> {
    let mut candidate: Option<&Dest> = None;
    for dest in list {
        match candidate {
            None if dest.usable() => candidate = Some(dest),
            Some(best) if !dest.overloaded && overhead(best) * dest.w() > overhead(dest) * best.w() => {
                candidate = Some(dest);
            }
            _ => {}
        }
    }
    candidate.map(|dest| dest.name)
}

fn wlc(list: &[Dest], _: &Packet) -> Option<Name> {
    ratio(list.iter(), Dest::overhead)
}

fn sed(list: &[Dest], _: &Packet) -> Option<Name> {
    ratio(list.iter(), |dest| dest.active + 1)
}

fn nq(list: &[Dest], packet: &Packet) -> Option<Name> {
    for dest in list {
        if dest.usable() && dest.active == 0 {
            return Some(dest.name);
        }
    }
    sed(list, packet)
}

fn heaviest(list: &[Dest], fits: fn(&Dest) -> bool) -> Option<Name> {
    let most = list.iter().filter(|dest| fits(dest)).map(|dest| dest.weight).max()?;
    list.iter().find(|dest| fits(dest) && dest.weight == most).map(|dest| dest.name)
}

fn fo(list: &[Dest], _: &Packet) -> Option<Name> {
    heaviest(list, Dest::usable)
}

fn ovf(list: &[Dest], _: &Packet) -> Option<Name> {
    heaviest(list, |dest| dest.usable() && dest.active <= dest.w())
}

fn twos(list: &[Dest], packet: &Packet) -> Option<Name> {
    let usable: Vec<&Dest> = list.iter().filter(|dest| dest.usable()).collect();
    let sum: i128 = usable.iter().map(|dest| dest.w()).sum();
    let draw = |bits: u64| {
        let mut left = (i128::from(bits) * (sum + 1)) / (1 << 32);
        usable.iter().find(|dest| {
            left -= dest.w();
            left <= 0
        })
    };
    let first = draw(packet.random >> 32)?;
    let second = draw(packet.random % (1 << 32))?;
    let second_is_better = second.w() * first.overhead() > first.w() * second.overhead();
    Some(if second_is_better { second.name } else { first.name })
}

/// The kernel's golden ratio hash: the topmost `bits`.
fn hash32(value: u32, bits: u32) -> usize {
    ((u64::from(value) * 0x61c8_8647 % (1 << 32)) >> (32 - bits)) as usize
}

fn number(addr: IpAddr) -> u32 {
    match addr {
        IpAddr::V4(v4) => v4.into(),
        IpAddr::V6(v6) => {
            v6.segments().chunks(2).fold(0, |all, word| all ^ u32::from(word[0]) << 16 ^ u32::from(word[1]))
        }
    }
}

fn dh(list: &[Dest], packet: &Packet) -> Option<Name> {
    let buckets: Vec<&Dest> = list.iter().cycle().take(256).collect();
    let dest = buckets.get(hash32(number(packet.dest), 8))?;
    dest.usable().then_some(dest.name)
}

struct Sh {
    fallback: bool,
    port: bool,
}

impl Model for Sh {
    fn pick(&mut self, list: &[Dest], packet: &Packet) -> Option<Name> {
        if list.is_empty() {
            return None;
        }
        let mut buckets: Vec<&Dest> = Vec::new();
        while buckets.len() < 256 {
            for dest in list {
                for _ in 0..dest.weight.max(1) {
                    buckets.push(dest);
                }
            }
        }
        let port = if self.port { u32::from(packet.port) } else { 0 };
        let h = hash32(packet.source.wrapping_add(port), 8);
        if buckets[h].usable() {
            return Some(buckets[h].name);
        }
        if self.fallback {
            for off in 0..256 {
                let r = (off + h) % 256;
                let dest = buckets[(h + r) & 255];
                if dest.usable() {
                    return Some(dest.name);
                }
            }
        }
        None
    }
}

struct Mh {
    fallback: bool,
    port: bool,
    table: Vec<Name>,
}

const TABLE: usize = 4093;
const KEY1: u64 = 2_654_435_761;
const KEY2: u64 = 2_654_446_892;

/// SipHash with one round for each word and three at the end (Aumasson, Bernstein 2012), of four bytes.
fn siphash13(k: u64, value: u32) -> u32 {
    let mut v = [
        k ^ 0x736f_6d65_7073_6575,
        k ^ 0x646f_7261_6e64_6f6d,
        k ^ 0x6c79_6765_6e65_7261,
        k ^ 0x7465_6462_7974_6573,
    ];
    fn round(v: &mut [u64; 4]) {
        v[0] = v[0].wrapping_add(v[1]);
        v[1] = v[1].rotate_left(13) ^ v[0];
        v[0] = v[0].rotate_left(32);
        v[2] = v[2].wrapping_add(v[3]);
        v[3] = v[3].rotate_left(16) ^ v[2];
        v[0] = v[0].wrapping_add(v[3]);
        v[3] = v[3].rotate_left(21) ^ v[0];
        v[2] = v[2].wrapping_add(v[1]);
        v[1] = v[1].rotate_left(17) ^ v[2];
        v[2] = v[2].rotate_left(32);
    }
    let last = 4u64 << 56 | u64::from(value);
    v[3] ^= last;
    round(&mut v);
    v[0] ^= last;
    v[2] ^= 0xff;
    (0..3).for_each(|_| round(&mut v));
    (v[0] ^ v[1] ^ v[2] ^ v[3]) as u32
}

impl Model for Mh {
    fn event(&mut self, list: &[Dest], _: Event) {
        self.table.clear();
        let weights = || list.iter().map(|dest| dest.last_weight).filter(|weight| *weight > 0);
        let Some(most) = weights().max() else { return };
        let g = (1..=most).rev().find(|d| weights().all(|weight| weight % d == 0)).unwrap_or(1);
        let mut shift = 0;
        while (most / g) >> shift >= 64 {
            shift += 1;
        }
        // Each destination with its own order of slots, and its progress in it.
        let mut orders: Vec<(&Dest, usize, usize)> = list
            .iter()
            .map(|dest| {
                let value = 80 + 0x0a00_0000 + u32::from(dest.name);
                (
                    dest,
                    siphash13(KEY1, value) as usize % TABLE,
                    siphash13(KEY2, value) as usize % (TABLE - 1) + 1,
                )
            })
            .collect();
        let mut table: Vec<Option<Name>> = vec![None; TABLE];
        let mut filled = 0;
        while filled < TABLE {
            for (dest, at, skip) in &mut orders {
                let turns = match dest.last_weight {
                    0 => 0,
                    weight => ((weight / g) >> shift).max(1),
                };
                for _ in 0..turns {
                    if filled == TABLE {
                        break;
                    }
                    while table[*at].is_some() {
                        *at = (*at + *skip) % TABLE;
                    }
                    table[*at] = Some(dest.name);
                    filled += 1;
                }
            }
        }
        self.table = table.into_iter().flatten().collect();
    }

    fn pick(&mut self, list: &[Dest], packet: &Packet) -> Option<Name> {
        if self.table.is_empty() {
            return None;
        }
        let port = if self.port { u32::from(packet.port) } else { 0 };
        let slot = |off: usize| {
            siphash13(KEY1, packet.source.wrapping_add(port).wrapping_add(off as u32)) as usize % TABLE
        };
        let usable = |slot: usize| {
            let dest = &list[place(list, self.table[slot])];
            dest.usable().then_some(dest.name)
        };
        let own = slot(0);
        if let Some(name) = usable(own) {
            return Some(name);
        }
        if self.fallback {
            for off in 0..TABLE {
                if let Some(name) = usable(slot((off + own) % TABLE)) {
                    return Some(name);
                }
            }
        }
        None
    }
}

fn busy(dest: &Dest, list: &[Dest]) -> bool {
    dest.active > dest.w() && list.iter().any(|other| other.active * 2 < other.w())
}

fn find(list: &[Dest], name: Name) -> Option<&Dest> {
    list.iter().find(|dest| dest.name == name)
}

struct Lblc(HashMap<IpAddr, Name>);

impl Model for Lblc {
    fn pick(&mut self, list: &[Dest], packet: &Packet) -> Option<Name> {
        let known = self.0.get(&packet.dest).and_then(|name| find(list, *name));
        if let Some(dest) = known
            && dest.weight > 0
            && !busy(dest, list)
        {
            return Some(dest.name);
        }
        let chosen = wlc(list, packet)?;
        self.0.insert(packet.dest, chosen);
        Some(chosen)
    }
}

struct Lblcr {
    /// Members, the one added last first, and when that changed.
    sets: HashMap<IpAddr, (Vec<Name>, u64)>,
    expiration: u64,
}

impl Model for Lblcr {
    fn pick(&mut self, list: &[Dest], packet: &Packet) -> Option<Name> {
        let now = packet.now_millis;
        let mut own = None;
        if let Some((set, modified)) = self.sets.get_mut(&packet.dest) {
            own = ratio(set.iter().filter_map(|name| find(list, *name)), Dest::overhead);
            if set.len() > 1 && now > *modified + self.expiration {
                // A removed destination is lost first. The kernel differs: it still knows its load.
                let gone = set.iter().copied().find(|name| find(list, *name).is_none());
                let mut most: Option<&Dest> = None;
                for dest in set.iter().filter_map(|name| find(list, *name)).filter(|dest| dest.weight > 0) {
                    if most.is_none_or(|most| most.overhead() * dest.w() < dest.overhead() * most.w()) {
                        most = Some(dest);
                    }
                }
                if let Some(lost) = gone.or(most.map(|dest| dest.name)) {
                    set.retain(|name| *name != lost);
                    *modified = now;
                }
            }
        }
        if let Some(name) = own
            && !busy(&list[place(list, name)], list)
        {
            return Some(name);
        }
        let chosen = wlc(list, packet)?;
        let (set, modified) = self.sets.entry(packet.dest).or_insert((Vec::new(), now));
        if !set.contains(&chosen) {
            set.insert(0, chosen);
            *modified = now;
        }
        Some(chosen)
    }
}
