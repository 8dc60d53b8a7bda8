//! A whole federation: the bytes choose the scenario, and whatever it is, what must hold holds.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weft_simulator::scenario::{MILLI, SECOND};
use weft_simulator::{Scenario, run};

fuzz_target!(|data: &[u8]| {
    let mut bytes = data.iter().copied();
    let mut below = |limit: u64| u64::from(bytes.next().unwrap_or(0)) % limit;
    let seed = below(256) | below(256) << 8;
    let federators = 1 + below(5) as usize;
    let agents = federators + below(12) as usize;
    let chaos = Scenario::chaos(seed, federators, agents);
    let scenario = Scenario {
        connections: 1.0 + below(16) as f64,
        load_us: (10 + below(30) as i64) * SECOND,
        link_us: (MILLI, (1 + below(200) as i64) * MILLI),
        jitter_us: below(100) as i64 * MILLI,
        loss_ppm: below(256) * 500,
        agent_skew_us: below(256) as i64 * MILLI,
        cross_percent: below(70),
        outside_percent: below(30),
        lifetime_us: (1 + below(15) as i64) * SECOND,
        lasting_percent: below(50),
        ports: 1 + below(256) as u16,
        hold_us: (210 + below(256) as i64 * 8) * MILLI,
        crashes: below(4) as usize,
        partitions: below(3) as usize,
        cuts: below(6) as usize,
        absences: below(6) as usize,
        ..chaos
    };
    let outcome = run(&scenario);
    assert!(
        outcome.is_good(),
        "{scenario:?}\n{}",
        outcome.complaint(&scenario)
    );
});
