//! `weft-simulate`: runs scenarios and prints what they show. `cargo xtask simulate` builds and starts it.

use std::ops::Range;
use std::process::ExitCode;
use std::time::Instant;

use weft_simulator::{Outcome, Scenario, run};

const HELP: &str = "\
Usage: weft-simulate [--scenario NAME] [--federators N[,N]] [--agents M] [--seed S] [--seeds K]
       weft-simulate --seeds A..B
       weft-simulate --table [--federators N[,N]]

  --seeds A..B  small worlds of chaos, each from one of these seeds: says how many held, and tells of those that did not
  --table       what the exchange costs as federators become more (default 3,10,100,1000, with 100 agents each): each number in
                a calm run, one where a federator is down for half a minute, and one where a third is cut off for ten minutes
  --scenario    calm, change, split, chaos (default calm)
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
    small: Option<Range<u64>>,
    table: bool,
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
    if let Some(seeds) = asked.small {
        return small_worlds(seeds);
    }
    if asked.table {
        return table(&asked.federators);
    }
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
        small: None,
        table: false,
        membership: true,
    };
    let mut counted = false;
    while let Some(word) = words.next() {
        if word == "--help" || word == "-h" {
            return Ok(None);
        }
        if word == "--table" {
            asked.table = true;
            continue;
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
                counted = true;
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
            "--seeds" => match value.split_once("..") {
                Some((first, end)) => asked.small = Some(number(first)?..number(end)?),
                None => asked.seeds = number(&value)?,
            },
            other => return Err(format!("unknown option {other}")),
        }
    }
    if asked.table && !counted {
        asked.federators = vec![3, 10, 100, 1000];
    }
    Ok(Some(asked))
}

/// Runs small worlds, and tells of those in which something did not hold.
fn small_worlds(seeds: Range<u64>) -> ExitCode {
    let (start, count) = (Instant::now(), seeds.end.saturating_sub(seeds.start));
    let mut bad = 0_u64;
    for seed in seeds {
        let scenario = Scenario::small(seed);
        let outcome = run(&scenario);
        if !outcome.is_good() {
            bad += 1;
            print!("{}", outcome.complaint(&scenario));
        }
    }
    let took = start.elapsed().as_secs_f64();
    println!(
        "{count} seeds, {bad} in which something did not hold; {took:.1} s, {:.0} seeds a second",
        count as f64 / took.max(1e-9)
    );
    if bad == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// What the exchange costs as federators become more.
fn table(federators: &[usize]) -> ExitCode {
    println!(
        "{:>5} {:>7} {:>9} {:>9} {:>9} {:>9} {:>7} {:>7} {:>9} {:>9} {:>7} {:>11} {:>9} {:>10} {:>8} {:>6} {:>7}",
        "FEDS",
        "AGENTS",
        "HALVES",
        "ITEM/HALF",
        "MSG/HALF",
        "BYTE/HALF",
        "P50 MS",
        "P99 MS",
        "CORE MAX",
        "OFFER MAX",
        "MB/FED",
        "REOFFER/CHG",
        "MESH MAX",
        "HEALED S",
        "HELD %",
        "WRONG",
        "TOOK S"
    );
    let mut good = true;
    for count in federators {
        let (start, agents) = (Instant::now(), count * 100);
        let calm = check(&Scenario::calm(1, *count, agents), &mut good);
        let memory = resident_mb() / *count as f64;
        let change = check(&Scenario::change(1, *count, agents), &mut good);
        let split = check(&Scenario::split(1, *count, agents), &mut good);
        let healed = split
            .healed_us
            .map_or("-".into(), |us| format!("{:.1}", us as f64 / 1e6));
        let given = (calm.offered + calm.held_back).max(1);
        let wrong = calm.wrongly_held_back + change.wrongly_held_back + split.wrongly_held_back;
        println!(
            "{:>5} {:>7} {:>9} {:>9.3} {:>9.3} {:>9.1} {:>7.0} {:>7.0} {:>9} {:>9} {:>7.2} {:>11.1} {:>9} {:>10} {:>8.1} {:>6} {:>7.0}",
            count,
            agents,
            calm.halves,
            calm.items_per_half(),
            calm.messages_per_half(),
            calm.bytes_per_half(),
            f64::from(calm.stitched_within_us(500)) / 1e3,
            f64::from(calm.stitched_within_us(990)) / 1e3,
            calm.most[0],
            calm.most[2],
            memory,
            // One goes, and comes back.
            change.reoffered as f64 / 2.0,
            change.most[3],
            healed,
            100.0 * calm.held_back as f64 / given as f64,
            wrong,
            start.elapsed().as_secs_f64(),
        );
    }
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn check(scenario: &Scenario, good: &mut bool) -> Outcome {
    let outcome = run(scenario);
    if !outcome.is_good() {
        *good = false;
        print!("{}", outcome.complaint(scenario));
    }
    outcome
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
