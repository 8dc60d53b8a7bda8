//! Each way to break the exchange is noticed, and by nothing but the invariants that all runs are held to.

use std::collections::BTreeSet;

use weft_simulator::scenario::MILLI;
use weft_simulator::{Breakage, Scenario, run};

/// Seeds tried for each.
const SEEDS: u64 = 8;

fn scenarios(breakage: Breakage) -> impl Iterator<Item = Scenario> {
    (0..SEEDS).map(move |seed| {
        let scenario = match breakage {
            // Clocks that are off by an hour, and nothing else.
            Breakage::SkewIgnored => Scenario::calm(seed, 3, 30),
            // Crashes in the moment between the promise and its truth.
            Breakage::BatchAcknowledgedEarly | Breakage::CardAcknowledgedEarly => Scenario {
                sync_us: 400 * MILLI,
                crashes: 8,
                ..Scenario::chaos(seed, 3, 20)
            },
            _ => Scenario {
                // Many at once, so that messages carry several.
                connections: 60.0,
                ..Scenario::chaos(seed, 3, 20)
            },
        };
        Scenario {
            membership: false,
            breakage: Some(breakage),
            ..scenario
        }
    })
}

#[test]
fn every_breakage_is_caught() {
    let mut missed = BTreeSet::new();
    for breakage in Breakage::ALL {
        let caught = scenarios(breakage).find_map(|scenario| {
            let outcome = run(&scenario);
            let what = outcome.violations.first().map(|(what, ..)| *what)?;
            Some((scenario.seed, what))
        });
        match caught {
            Some((seed, what)) => println!("{breakage:?}: {what} (seed {seed})"),
            None => drop(missed.insert(breakage)),
        }
    }
    assert!(missed.is_empty(), "not caught: {missed:?}");
}
