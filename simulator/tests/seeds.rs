//! Many small runs: whatever goes wrong in them, everything that was acknowledged is there, once, and joined with its other
//! end if it can be. A seed that fails says how to run it again.

use weft_simulator::{Scenario, run};

fn all_good(scenarios: impl Iterator<Item = Scenario>) {
    for scenario in scenarios {
        let outcome = run(&scenario);
        assert!(outcome.is_good(), "{}", outcome.complaint(&scenario));
        assert!(outcome.joined > 0, "seed {} joined nothing", scenario.seed);
    }
}

#[test]
fn calm_seeds() {
    all_good((0..2).map(|seed| Scenario::calm(seed, 4, 40)));
}

#[test]
fn chaotic_seeds() {
    all_good((0..60).map(Scenario::small));
}

#[test]
fn a_third_is_cut_off_for_ten_minutes() {
    all_good((0..1).map(|seed| Scenario::split(seed, 3, 30)));
}

#[test]
fn one_seed_is_one_run() {
    let scenario = Scenario::chaos(3, 3, 20);
    let (one, other) = (run(&scenario), run(&scenario));
    assert_eq!(format!("{one:?}"), format!("{other:?}"));
    let another = run(&Scenario {
        seed: 4,
        ..scenario
    });
    assert_ne!(one.events, another.events);
}
