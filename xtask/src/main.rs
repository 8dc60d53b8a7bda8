//! `cargo xtask`: everything a developer or a build machine does with this repository, as one program.
//!
//! Reading order: [`setup`] (what must be installed), [`ebpf`] (the kernel programs), [`demo`], [`mod@test`]
//! with [`tidy`], [`fuzz`] and [`kernel_matrix`], [`mod@bench`], [`mod@simulate`]; then the helpers [`layout`] (where things are) and [`sh`] (running programs).

mod setup;
mod ebpf;
mod demo;
mod test;
mod tidy;
mod fuzz;
mod kernel_matrix;
mod bench;
mod simulate;
mod layout;
mod sh;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;
use lexopt::prelude::*;

const HELP: &str = "\
Usage: cargo xtask COMMAND

  setup                       install what is missing on this machine (Debian 12)
  ebpf                        build the kernel programs, when their sources changed
  demo [--keep | --down]      the lab, real traffic through it, and what Weft says of it
                                --keep  leave the lab running; --down  remove it
  test [--only STEP[,STEP]]   all that can fail: tidy, deny, unit, doc, fuzz, kernels, lab
  tidy                        format, lints, documentation, dependency and text rules
  fuzz [--seconds N] [--only TARGET]
                              fuzz every target, N seconds in total (default 60)
  kernel-matrix [--kernel 5.10|6.1|6.12|ends|all] [--only CASE[,CASE]]
                              the capture tests on other kernels, in QEMU (default all)
  bench [--only PREFIX] [--json FILE]
                              measure what Weft reaches on this machine
  simulate [--scenario NAME] [--federators N[,N]] [--agents M] [--seed S] [--seeds K]
                              a federation in one process, from one seed (--help says more)

Environment:
  WEFT_CACHE                  downloaded tools and, with CI=true, build products
                                (default: .cache/weft in the home directory)
";

/// What was asked for.
#[derive(Debug, PartialEq, Eq)]
enum Command {
    Setup,
    Ebpf,
    Demo(demo::Mode),
    Test {
        only: Vec<String>,
    },
    Tidy,
    Fuzz {
        seconds: u64,
        only: Option<String>,
    },
    KernelMatrix {
        kernels: kernel_matrix::Choice,
        cases: Vec<String>,
    },
    Bench {
        only: Option<String>,
        json: Option<String>,
    },
    Simulate(Vec<OsString>),
    Help,
}

fn main() -> ExitCode {
    let command = match parse(lexopt::Parser::from_env()) {
        Ok(command) => command,
        Err(error) => {
            eprintln!("error: {error}\nhint:  cargo xtask --help");
            return ExitCode::from(2);
        }
    };
    match run(command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    let layout = layout::Layout::find()?;
    match command {
        Command::Setup => setup::setup(&layout, setup::Purpose::All),
        Command::Ebpf => ebpf::build(&layout),
        Command::Demo(mode) => demo::demo(&layout, mode),
        Command::Test { only } => test::test(&layout, &only),
        Command::Tidy => test::tidy_only(&layout),
        Command::Fuzz { seconds, only } => fuzz::run_all(&layout, seconds, only.as_deref()),
        Command::KernelMatrix { kernels, cases } => {
            kernel_matrix::kernel_matrix(&layout, &kernels, &cases)
        }
        Command::Bench { only, json } => bench::bench(&layout, only.as_deref(), json.as_deref()),
        Command::Simulate(args) => simulate::simulate(&layout, &args),
        Command::Help => {
            print!("{HELP}");
            Ok(())
        }
    }
}

fn parse(mut args: lexopt::Parser) -> Result<Command, lexopt::Error> {
    let mut name: Option<String> = None;
    let (mut only, mut json, mut seconds) = (None, None, None);
    let mut mode = demo::Mode::Once;
    let mut kernels = kernel_matrix::Choice::All;
    while let Some(arg) = args.next()? {
        match arg {
            Value(value) if name.is_none() && value == "simulate" => {
                return Ok(Command::Simulate(args.raw_args()?.collect()));
            }
            Long("help") | Short('h') => return Ok(Command::Help),
            Value(value) if name.is_none() => name = Some(value.string()?),
            Long("only") => only = Some(args.value()?.string()?),
            Long("json") if name.as_deref() == Some("bench") => {
                json = Some(args.value()?.string()?)
            }
            Long("seconds") if name.as_deref() == Some("fuzz") => {
                seconds = Some(args.value()?.parse()?)
            }
            Long("kernel") if name.as_deref() == Some("kernel-matrix") => {
                kernels = kernel_matrix::Choice::parse(&args.value()?.string()?)?;
            }
            Long("keep") if name.as_deref() == Some("demo") => mode = demo::Mode::Keep,
            Long("down") if name.as_deref() == Some("demo") => mode = demo::Mode::Down,
            other => return Err(other.unexpected()),
        }
    }
    let takes_only = matches!(
        name.as_deref(),
        Some("test" | "fuzz" | "bench" | "kernel-matrix")
    );
    if only.is_some() && !takes_only {
        return Err("--only belongs to test, fuzz, bench and kernel-matrix".into());
    }
    Ok(match name.as_deref() {
        None | Some("help") => Command::Help,
        Some("setup") => Command::Setup,
        Some("ebpf") => Command::Ebpf,
        Some("demo") => Command::Demo(mode),
        Some("test") => {
            let only = words(only);
            if let Some(unknown) = only
                .iter()
                .find(|step| !test::STEPS.contains(&step.as_str()))
            {
                return Err(
                    format!("no step '{unknown}'; there are {}", test::STEPS.join(", ")).into(),
                );
            }
            Command::Test { only }
        }
        Some("tidy") => Command::Tidy,
        Some("fuzz") => Command::Fuzz {
            seconds: seconds.unwrap_or(fuzz::TOTAL_SECONDS),
            only,
        },
        Some("kernel-matrix") => Command::KernelMatrix {
            kernels,
            cases: words(only),
        },
        Some("bench") => Command::Bench { only, json },
        Some(other) => return Err(format!("no command '{other}'").into()),
    })
}

/// A list with commas.
fn words(list: Option<String>) -> Vec<String> {
    list.map(|list| list.split(',').map(str::to_owned).collect())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(args: &[&str]) -> Result<Command, String> {
        let words = std::iter::once("xtask").chain(args.iter().copied());
        parse(lexopt::Parser::from_iter(words)).map_err(|error| error.to_string())
    }

    #[test]
    fn every_command_parses() {
        assert_eq!(
            parsed(&["demo", "--keep"]),
            Ok(Command::Demo(demo::Mode::Keep))
        );
        assert_eq!(
            parsed(&["test", "--only", "tidy,lab"]),
            Ok(Command::Test {
                only: vec!["tidy".into(), "lab".into()]
            })
        );
        assert_eq!(
            parsed(&["bench", "--only=stitch", "--json", "out.json"]),
            Ok(Command::Bench {
                only: Some("stitch".into()),
                json: Some("out.json".into())
            })
        );
        assert_eq!(
            parsed(&["kernel-matrix", "--kernel", "5.10", "--only", "ipv4,ipv6"]),
            Ok(Command::KernelMatrix {
                kernels: kernel_matrix::Choice::One("5.10".into()),
                cases: vec!["ipv4".into(), "ipv6".into()]
            })
        );
        assert_eq!(
            parsed(&["simulate", "--seed", "7"]),
            Ok(Command::Simulate(vec!["--seed".into(), "7".into()]))
        );
        assert_eq!(parsed(&[]), Ok(Command::Help));
    }

    #[test]
    fn a_flag_of_another_command_is_refused() {
        assert!(parsed(&["setup", "--keep"]).is_err());
        assert!(parsed(&["tidy", "--only", "fmt"]).is_err());
        assert!(
            parsed(&["test", "--only", "nothing"])
                .is_err_and(|error| error.contains("no step 'nothing'"))
        );
        assert!(parsed(&["dance"]).is_err());
    }
}
