//! The demo: a network, real traffic, and what Weft says about it.

use std::io::Write as _;
use std::thread;
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::score::Score;
use crate::topology::{self, Topology};
use crate::traffic;
use crate::truth::Connection;
use crate::weft::Weft;
use crate::workload::{Fetch, Servers};

/// How long Weft may take to agree with the truth before the demo shows what there is.
const PATIENCE: Duration = Duration::from_secs(30);
/// Rows of long lists that are shown.
const ROWS: &str = "12";

const LAYOUT: &str =
    "\x20 aws1, aws2 -- aws router -- carrier NAT -- internet -- gcp router -- gcp1, gcp2
                (masquerade)  (masquerade)              (port forwards, hairpin)
  aws1 and aws2 call gcp1 and gcp2 through the GCP router's public address;
  gcp1 calls its neighbour gcp2 by that public address as well.";

/// Runs the demo; gives whether Weft's answer agreed with the truth.
pub fn run(keep: bool) -> Result<bool> {
    step("laying out two clouds: network namespaces, routers with nftables NAT");
    eprintln!("{LAYOUT}");
    let topology = topology::demo()?;
    step("starting nginx on gcp1 and gcp2, a federator in each cloud, an agent on every host");
    let servers = Servers::start(&topology)?;
    let mut weft = Weft::start(&topology)?;
    step("running traffic: curl on aws1, aws2 and gcp1");
    let jobs = [
        Fetch::Small(20),
        Fetch::KeptAlive(10),
        Fetch::Large(3),
        Fetch::Upload(2),
        Fetch::Slow(3),
    ];
    let ledger = traffic::drive(&topology, |_| jobs.to_vec())?;
    step("reading the truth: curl's and nginx's counts, the routers' connection tracking");
    let truth = traffic::settle(&topology, &servers, &ledger)?;
    step("waiting until Weft has stitched what was closed");
    let score = await_agreement(&mut weft, &truth)?;
    show(&weft)?;
    step(&format!("against the truth of the programs' logs: {score}"));
    if !score.is_perfect() {
        eprintln!("{}\n{}", score.examples.join("\n"), topology.lab.logs());
    }
    if keep {
        explain_how_to_explore(&topology, &weft);
        // The processes go on; the lab is no longer ours.
        std::mem::forget(weft);
        std::mem::forget(servers);
        topology.lab.keep()?;
    } else {
        step("taking the lab down");
    }
    Ok(score.is_perfect())
}

fn await_agreement(weft: &mut Weft<'_>, truth: &[Connection]) -> Result<Score> {
    let end = Instant::now() + PATIENCE;
    loop {
        weft.check_alive()?;
        let score = Score::of(truth, &weft.connections()?);
        if score.is_perfect() || Instant::now() > end {
            return Ok(score);
        }
        thread::sleep(Duration::from_millis(300));
    }
}

/// Asks what a newcomer would ask.
fn show(weft: &Weft<'_>) -> Result<()> {
    ask(
        weft,
        "the newest connections, both ends and what was rewritten between them",
        &["connections", "--top", ROWS],
    )?;
    let rows = weft.connections()?;
    let through_carrier = rows
        .iter()
        .find(|row| row.client.as_ref().is_some_and(|end| end.agent == "aws1"));
    if let Some(row) = through_carrier {
        ask(
            weft,
            "one that was translated three times, in words",
            &["explain", &row.id],
        )?;
    }
    ask(weft, "what crosses clouds", &["report", "cross-cloud"])?;
    ask(
        weft,
        "what leaves the network only to come back",
        &["report", "hairpins"],
    )?;
    ask(weft, "how the federation is", &["health"])
}

/// Prints a question and its answer.
fn ask(weft: &Weft<'_>, what: &str, words: &[&str]) -> Result<()> {
    step(what);
    let answer = weft.ask(words)?;
    let mut out = std::io::stdout().lock();
    // A closed pipe is the reader's choice.
    let _ = writeln!(out, "\n$ weft {}\n{}", words.join(" "), answer.stdout);
    let _ = out.flush();
    eprint!("{}", answer.stderr);
    Ok(())
}

fn explain_how_to_explore(topology: &Topology, weft: &Weft<'_>) {
    let line = |words: &[&str]| {
        let command = weft.command_line(0, words).join(" ");
        format!(
            "  sudo ip netns exec {} {command}",
            topology.operator.netns()
        )
    };
    let own = std::env::current_exe()
        .map_or_else(|_| "weft-lab".into(), |path| path.display().to_string());
    let target = topology.flows[0].target;
    eprintln!("\nThe lab is left running. Ask it:");
    for words in [
        &["connections"][..],
        &["report", "dependencies"],
        &["sql", "'SELECT * FROM connections LIMIT 5'"],
        &["health"],
    ] {
        eprintln!("{}", line(words));
    }
    eprintln!(
        "Make a connection of your own:\n  sudo {own} exec aws1 curl -s -o /dev/null http://{target}/large"
    );
    eprintln!(
        "Files and logs: {}\nTake it down:\n  cargo xtask demo --down",
        topology.lab.dir().display()
    );
}

fn step(text: &str) {
    eprintln!("==> {text}");
}
