//! `weft-simulate`: runs scenarios and prints what they show. `cargo xtask simulate` builds and starts it.

use std::process::ExitCode;
use std::time::Instant;

use weft_simulator::{Outcome, Scenario, run};

const HELP: &str = "\
Usage: weft-simulate [--scenario NAME] [--federators N[,N]] [--agents M] [--seed S] [--seeds K]

  --scenario    calm, split, chaos (default calm)
  --federators  one number, or several with commas: a table with a row for each (default 3)
  --agents      in all (default: 100 for each federator)
  --seed        the first (default 1)
  --seeds       so many, one after the other (default 1)
  --membership  on, or off: all own offers at all times, whoever can be reached (default on)
";

struct Asked {
    scenario: String,
    federators: Vec<usize>,
    agents: Option<usize>,
    seed: u64,
    seeds: u64,
    membership: bool,
}

fn main() -> ExitCode {
    let asked = match parse(std::env::args().skip(1)) {
        Ok(Some(asked)) => asked,
        Ok(None) => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("error: {error}\n\n{HELP}");
            return ExitCode::from(2);
        }
    };
    let mut good = true;
    heading();
    for federators in &asked.federators {
        for seed in asked.seed..asked.seed.saturating_add(asked.seeds) {
            let agents = asked.agents.unwrap_or(federators * 100);
            let Some(scenario) = Scenario::named(&asked.scenario, seed, *federators, agents) else {
                eprintln!(
                    "error: no scenario '{}'; there are {}",
                    asked.scenario,
                    Scenario::NAMES.join(", ")
                );
                return ExitCode::from(2);
            };
            let scenario = Scenario {
                membership: asked.membership,
                ..scenario
            };
            let start = Instant::now();
            let outcome = run(&scenario);
            line(&scenario, &outcome, start.elapsed().as_secs_f64());
            if !outcome.is_good() {
                good = false;
                print!("{}", outcome.complaint(&scenario));
            }
        }
    }
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Option<Asked>, String> {
    let mut asked = Asked {
        scenario: "calm".into(),
        federators: vec![3],
        agents: None,
        seed: 1,
        seeds: 1,
        membership: true,
    };
    while let Some(word) = words.next() {
        if word == "--help" || word == "-h" {
            return Ok(None);
        }
        let value = words.next().ok_or(format!("{word} needs a value"))?;
        let number = |value: &str| {
            value
                .parse::<u64>()
                .map_err(|_| format!("{word}: '{value}' is not a number"))
        };
        match word.as_str() {
            "--scenario" => asked.scenario = value,
            "--federators" => {
                let list: Result<Vec<u64>, String> = value.split(',').map(number).collect();
                asked.federators = list?.into_iter().map(|n| n as usize).collect();
            }
            "--agents" => asked.agents = Some(number(&value)? as usize),
            "--seed" => asked.seed = number(&value)?,
            "--membership" => {
                asked.membership = match value.as_str() {
                    "on" => true,
                    "off" => false,
                    other => return Err(format!("--membership is on or off, not '{other}'")),
                }
            }
            "--seeds" => asked.seeds = number(&value)?,
            other => return Err(format!("unknown option {other}")),
        }
    }
    Ok(Some(asked))
}

fn heading() {
    println!(
        "{:>8} {:>6} {:>7} {:>6} {:>9} {:>9} {:>8} {:>8} {:>9} {:>9} {:>9} {:>9} {:>9} {:>8} {:>8} {:>8} {:>9} {:>9}",
        "SCENARIO",
        "SEED",
        "FEDS",
        "AGENTS",
        "HALVES",
        "CROSSING",
        "MSG/HALF",
        "ACK/HALF",
        "BYTE/HALF",
        "P50 MS",
        "P99 MS",
        "CORE MAX",
        "OFFER MAX",
        "HEALED S",
        "MB/FED",
        "TOOK S",
        "CHANGES",
        "REOFFERS"
    );
}

fn line(scenario: &Scenario, outcome: &Outcome, took: f64) {
    let memory = resident_mb() / scenario.federators as f64;
    let healed = outcome
        .healed_us
        .map_or("-".into(), |us| format!("{:.1}", us as f64 / 1e6));
    println!(
        "{:>8} {:>6} {:>7} {:>6} {:>9} {:>9} {:>8.3} {:>8.3} {:>9.1} {:>9.1} {:>9.1} {:>9} {:>9} {:>8} {:>8.2} {:>8.1} {:>9} {:>9}",
        scenario.name,
        scenario.seed,
        scenario.federators,
        scenario.agents,
        outcome.halves,
        outcome.crossing,
        outcome.messages_per_half(),
        outcome.acknowledgements as f64 / outcome.halves.max(1) as f64,
        outcome.bytes_per_half(),
        f64::from(outcome.stitched_within_us(500)) / 1e3,
        f64::from(outcome.stitched_within_us(990)) / 1e3,
        outcome.most[0],
        outcome.most[2],
        healed,
        memory,
        took,
        outcome.owner_changes,
        outcome.reoffered,
    );
}

/// Memory of this process, in megabytes; 0 where the system does not say.
fn resident_mb() -> f64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kb = line.and_then(|line| line.trim().split(' ').next()?.parse::<f64>().ok());
    kb.unwrap_or(0.0) / 1024.0
}
