//! The command line: asks a federator, presents the answer.
//!
//! What was typed ([`args`]) becomes a plan ([`plan`]) without side effects; the plan is carried out against a
//! [`world::World`], which is QUIC in [`live`] and a script in tests; an answer becomes a [`view::View`], which
//! [`output`] writes in the format asked for. stdout carries the answer, stderr everything else.
//!
//! What must stay absent: no view knows a format, no format knows a view, only [`live`] knows the network and the clock.
//!
//! Reading order: `args`, `plan`, `world`, `answer`, the views (`connections`, `explain`, both with `chains`, `report`, `sql`, `dns`, `health` with `diagnosis`),
//! `output`, `table`, `figures`, `failure`, `help`, `pki`, `identify`, `members`, `live`.

pub mod args;
pub mod plan;
pub mod when;
pub mod world;
pub mod answer;
pub mod view;
pub mod connections;
pub mod explain;
pub mod chains;
pub mod report;
pub mod sql;
pub mod dns;
pub mod health;
pub mod diagnosis;
pub mod output;
pub mod table;
pub mod figures;
pub mod failure;
pub mod help;
pub mod pki;
pub mod identify;
pub mod members;
pub mod live;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write;

use clap::Parser;
use weft_wire::federation::FederationRequest;

use crate::answer::Answer;
use crate::args::{Args, Verb};
use crate::failure::Failure;
use crate::output::Output;
use crate::plan::{Ask, Plan, What};
use crate::world::{Pause, World};

/// Exit code: interrupted by Ctrl-C (128 + SIGINT).
pub const EXIT_INTERRUPTED: u8 = 130;
/// Exit code: answered, but less complete than demanded.
pub const EXIT_INCOMPLETE: u8 = 3;
/// Exit code: usage or failure.
pub const EXIT_ERROR: u8 = 2;
/// Exit code: something was found wrong.
pub const EXIT_FINDING: u8 = 1;

/// What the process finds around it, read once.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// stdout is a terminal.
    pub stdout_is_terminal: bool,
    /// stderr is a terminal.
    pub stderr_is_terminal: bool,
    /// The terminal's columns.
    pub width: Option<usize>,
    /// Environment variables.
    pub environment: BTreeMap<String, String>,
}

impl Surroundings {
    /// An environment variable that is set and not empty.
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.environment
            .get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }
}

/// Runs one command line and gives its exit code.
pub fn run(
    typed: Vec<OsString>,
    surroundings: &Surroundings,
    world: &mut dyn World,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> u8 {
    let args = match Args::try_parse_from(&typed) {
        Ok(args) => args,
        Err(error) => {
            let code = failure::usage(&error, surroundings, out, err);
            return match code {
                EXIT_ERROR if args::means_health(typed) => health::EXIT_UNKNOWN,
                code => code,
            };
        }
    };
    let file = match &args.verb {
        Verb::Health(typed) => typed.output.clone(),
        _ => None,
    };
    let output = Output::new(&args.global, surroundings, out, err).into_file(file);
    carry_out(&args, surroundings, world, output)
}

fn carry_out(
    args: &Args,
    surroundings: &Surroundings,
    world: &mut dyn World,
    mut output: Output<'_>,
) -> u8 {
    let done = plan::plan(args, surroundings).and_then(|plan| match plan {
        Plan::Print(text) => output.text(&text).map(|()| 0),
        Plan::Pki(work) => pki::carry_out(&work, world.now(), &mut output),
        Plan::Identify(work) => identify::carry_out(&work, world, &mut output),
        Plan::Drain(work) => members::carry_out(&work, world, &mut output),
        Plan::Ask(ask) => ask_and_show(&ask, world, &mut output),
    });
    match done {
        Ok(code) => code,
        Err(Failure::ReaderLeft) => 0,
        Err(failure) => {
            let code = match &args.verb {
                Verb::Health(_) => health::unanswered(&failure, world.now(), &mut output),
                _ => failure.exit_code(),
            };
            output.failure(&failure);
            code
        }
    }
}

fn ask_and_show(ask: &Ask, world: &mut dyn World, output: &mut Output<'_>) -> Result<u8, Failure> {
    let Some(interval) = ask.watch else {
        return once(ask, world, output);
    };
    output.begin_watch();
    loop {
        let code = once(ask, world, output)?;
        if code == EXIT_INTERRUPTED || world.pause(interval) == Pause::Interrupted {
            return Ok(EXIT_INTERRUPTED);
        }
    }
}

fn once(ask: &Ask, world: &mut dyn World, output: &mut Output<'_>) -> Result<u8, Failure> {
    let now = world.now();
    let window = ask.window.at(now)?;
    let received = world.ask(&ask.target, &ask.request(&window), output.progress_style())?;
    let interrupted = received.interrupted;
    if interrupted && received.responses.is_empty() {
        output.interrupted();
        return Ok(EXIT_INTERRUPTED);
    }
    let mut answer = Answer::collect(received, window, now)?;
    let progress = output.progress_style();
    if let Err(failure) = chains::follow(ask, world, &mut answer, progress) {
        let Failure::Told(told) = &failure else {
            return Err(failure);
        };
        output.remark(&format!(
            "what goes on through proxies is not known: {}",
            told.what
        ));
    }
    let mut view = view::of(ask, &answer)?;
    if ask.what == What::Federators && !ask.local && !interrupted {
        let asked = world.federation(&ask.target, &FederationRequest::Federators);
        members::add(&mut view, asked)?;
    }
    output.show(&view, &answer)?;
    Ok(if interrupted {
        EXIT_INTERRUPTED
    } else if view.exit != 0 {
        view.exit
    } else if ask
        .min_complete
        .is_some_and(|least| answer.percent_complete() < least)
    {
        EXIT_INCOMPLETE
    } else {
        0
    })
}
