//! UDP flows through NAT: what tells flows apart is stitched as TCP is; what does not is never stitched wrongly.

mod common;

use std::path::PathBuf;
use std::time::Duration;

use common::{assert_perfect, compare, ok};
use weft_lab::score::Score;
use weft_lab::topology::{self, Topology};
use weft_lab::traffic::{self, by_nat};
use weft_lab::udp::{EchoServers, Speaker, Talk};
use weft_lab::weft::{Settings, Weft};
use weft_lab::{Result, wait};

fn quic() -> Speaker {
    Speaker::Quic(PathBuf::from(env!("CARGO_BIN_EXE_weft-lab-quic")))
}

/// Every flow is stitched, none wrongly, with the right process, bytes, NAT and evidence.
fn stitched(make: fn() -> Result<Topology>, speaker: Speaker, talk: Talk, at_least: usize) {
    let topology = ok(make());
    let mut weft = ok(Weft::start(&topology));
    // After the agents: of a socket older than the hooks nobody knows at first whether what comes is the first.
    let servers = ok(EchoServers::start(&topology, speaker.clone()));
    let asked = ok(traffic::talk(&topology, &servers, |_| talk));
    let truth = ok(traffic::settle_flows(&topology, &servers, &asked));
    let score = compare(&mut weft, &truth);
    println!(
        "{} {speaker:?}: {score} ({})",
        topology.name,
        by_nat(&truth)
    );
    assert!(truth.len() >= at_least, "{} flows", truth.len());
    assert_perfect(&score);
}

#[test]
fn echo_two_clouds() {
    stitched(
        topology::two_clouds,
        Speaker::Echo,
        Talk::Random(100, 3),
        600,
    );
}

#[test]
fn echo_carrier() {
    stitched(topology::carrier, Speaker::Echo, Talk::Random(150, 3), 300);
}

#[test]
fn echo_nat66() {
    stitched(topology::nat66, Speaker::Echo, Talk::Random(100, 3), 400);
}

#[test]
fn quic_carrier() {
    stitched(topology::carrier, quic(), Talk::Request(60, 20_000), 120);
}

#[test]
fn quic_nat66() {
    stitched(topology::nat66, quic(), Talk::Request(30, 20_000), 120);
}

/// A fleet that sends the same to everybody: where no NAT is in between, or one end's address stands and nobody else fits,
/// flows may be stitched; no pair is wrong, and what could be joined in two ways is not joined at all.
#[test]
fn a_fleet_that_sends_ping() {
    let topology = ok(topology::two_clouds());
    let settings = Settings {
        expiry_s: Some(20),
        ..Settings::default()
    };
    let weft = ok(Weft::start_with(&topology, settings));
    let servers = ok(EchoServers::start(&topology, Speaker::Echo));
    let asked = ok(traffic::talk(&topology, &servers, |_| Talk::Ping(60, 3)));
    let truth = ok(traffic::settle_flows(&topology, &servers, &asked));
    let (score, reasons) = ok(wait::until(
        "all halves to be judged",
        Duration::from_secs(90),
        || {
            let rows = weft.connections()?;
            let unmatched = |reason: &str| {
                let halves = rows.iter().filter(|row| row.matched.is_none());
                halves
                    .filter(|row| row.path.unmatched.as_deref() == Some(reason))
                    .count()
            };
            let score = Score::of(&truth, &rows);
            let reasons = ["ambiguous", "no-partner", "pending"].map(unmatched);
            let judged = 2 * score.right + score.unmatched;
            let told = score.not_closed == 0 && score.bytes_wrong == 0;
            Ok(if reasons[2] == 0 && judged == 2 * truth.len() && told {
                Ok((score, reasons))
            } else {
                Err(format!("{score}; {reasons:?}"))
            })
        },
    ));
    let halves = 2 * truth.len();
    println!(
        "{}: {score}; of {halves} halves {} ambiguous ({:.1} %), {} without a partner",
        topology.name,
        reasons[0],
        reasons[0] as f64 * 100.0 / halves as f64,
        reasons[1],
    );
    assert_eq!(score.wrong, 0, "{}", score.examples.join("\n"));
    assert_eq!(
        [score.process_wrong, score.bytes_wrong, score.nat_wrong],
        [0; 3],
        "{}",
        score.examples.join("\n")
    );
    // Neighbours that talk directly are told apart by their addresses.
    assert!(score.right >= 60, "{score}");
}
