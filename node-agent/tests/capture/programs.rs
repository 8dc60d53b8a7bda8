//! What this kernel makes of each kernel program, for the matrix of kernels.

use std::collections::BTreeSet;
use std::process::ExitCode;

use weft_agent::calls::{
    self,
    hooks::{CallHooks, Mode},
};
use weft_agent::kernel::{Datagrams, Hooks, datagrams, hooks};

use crate::world::{Place, Settings, plan};

/// Attaches the hooks as the agent does and prints a line for each program:
/// `program NAME attached [INSTRUCTIONS THAT THE VERIFIER LOOKED AT]`, `… unused WHY` or `… refused WHY`.
pub fn list() -> ExitCode {
    let place = Place::make("programs");
    let settings = Settings::default();
    let plan = plan(&place.cgroup, &place.pins, &settings);
    let before: BTreeSet<u32> = aya::programs::loaded_programs()
        .flatten()
        .map(|program| program.id())
        .collect();
    let sockets = Hooks::attach(&plan);
    let datagrams = sockets
        .as_ref()
        .map_err(ToString::to_string)
        .and_then(|hooks| {
            Datagrams::attach(&plan, &settings.datagrams, hooks).map_err(|error| error.to_string())
        });
    let loaded: Vec<_> = aya::programs::loaded_programs()
        .flatten()
        .filter(|program| !before.contains(&program.id()))
        .collect();
    let refusals = [
        sockets.as_ref().err().map(ToString::to_string),
        datagrams.as_ref().err().cloned(),
    ];
    let of_sockets = hooks::programs().map(|name| (name, &refusals[0]));
    let of_datagrams = datagrams::programs().map(|name| (name, &refusals[1]));
    for (name, refusal) in of_sockets.chain(of_datagrams) {
        match (loaded.iter().find(|program| is(program, name)), refusal) {
            (Some(program), _) => {
                let count = program.verified_instruction_count();
                let count = count.map(|count| format!(" {count}")).unwrap_or_default();
                println!("program {name} attached{count}");
            }
            (None, None) => println!("program {name} unused the others see all of it"),
            (None, Some(error)) => println!("program {name} refused {}", first_lines(error)),
        }
    }
    for mode in [Mode::Trampolines, Mode::Probes] {
        call_hooks(mode);
    }
    if refusals == [None, None] {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// The same of the call hooks, in one of their two forms.
fn call_hooks(mode: Mode) {
    let before: BTreeSet<u32> = aya::programs::loaded_programs()
        .flatten()
        .map(|program| program.id())
        .collect();
    let attached = CallHooks::attach_as(mode, weft_agent::calls::RING_BYTES);
    let word = match std::env::var_os("WEFT_CALL_HOOKS") {
        Some(word) if word == "required" => "refused",
        _ => "absent",
    };
    for (point, name) in calls::hooks::programs(mode) {
        // Tracepoints are the same in both forms.
        if mode == Mode::Probes && !name.ends_with("_probe") {
            continue;
        }
        let found = aya::programs::loaded_programs()
            .flatten()
            .find(|program| !before.contains(&program.id()) && is(program, name));
        match (found, &attached) {
            (_, Err(error)) => println!(
                "program {name}({point}) {word} {}",
                first_lines(&error.to_string())
            ),
            (found, Ok(_)) => {
                let count = found.and_then(|program| program.verified_instruction_count());
                let count = count.map(|count| format!(" {count}")).unwrap_or_default();
                println!("program {name}({point}) attached{count}");
            }
        }
    }
}

/// Bytes of a program's name in the kernel.
const NAME_LEN: usize = 15;

/// The kernel cuts names off.
fn is(program: &aya::programs::ProgramInfo, name: &str) -> bool {
    let known = program.name_as_str().unwrap_or_default();
    known == &name[..name.len().min(NAME_LEN)]
}

/// An error on one line; a verifier's log is long, and its end says what was wrong.
fn first_lines(error: &str) -> String {
    let lines: Vec<&str> = error
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    let from = lines.len().saturating_sub(6);
    let head = if from > 0 { lines[0] } else { "" };
    format!("{head} {}", lines[from..].join(" | "))
        .trim()
        .to_owned()
}
