//! `fuzz SEED FRAMES SECONDS`: random frames through a director, limited in number and time.
//!
//! Run by `scripts/fuzz`, in a release build. Prints the counters; a fault prints its burst and ends the program with
//! an exit code other than 0.

use std::time::{Duration, Instant};

use xvs::fuzz::{Plan, run};
use xvs::offload;

fn main() {
    let numbers: Vec<u64> = std::env::args().skip(1).map_while(|word| word.parse().ok()).collect();
    let [seed, frames, seconds] = numbers[..] else {
        eprintln!("usage: fuzz SEED FRAMES SECONDS");
        std::process::exit(2);
    };
    let began = Instant::now();
    let (done, counters) = run(Plan { seed, frames, at_most: Duration::from_secs(seconds) });
    println!("{counters:#}");
    if offload::is_wanted() {
        println!("{} frames were forwarded by the XDP program", offload::forwarded());
    }
    println!("seed {seed}: {done} of {frames} frames in {:.1} s, no fault", began.elapsed().as_secs_f64());
}
