//! What `weft federators` shows of the membership, and `weft drain`.

use weft_wire::federation::{FederationAnswer, FederationRequest, FederatorState};

use crate::failure::Failure;
use crate::figures::{count, counted, duration_us};
use crate::output::Output;
use crate::table::{Table, figure, text};
use crate::view::{Block, View, json};
use crate::world::{Target, World};

/// `weft drain`
#[derive(Debug)]
pub struct Drain {
    /// Whom to ask where the federator is.
    pub target: Target,
    /// Which one.
    pub federator: String,
    /// `false`: no longer.
    pub draining: bool,
}

/// Puts the membership before what is known of the health of each; nothing, where the federator that is asked knows no such
/// question.
pub fn add(view: &mut View, answer: Result<FederationAnswer, Failure>) -> Result<(), Failure> {
    let Ok(FederationAnswer::Federators(states)) = answer else {
        return Ok(());
    };
    view.more.push(("members", json(&states)?));
    view.text.0.insert(0, Block::Table(table(&states)));
    view.text.0.insert(1, Block::Lines(vec![String::new()]));
    Ok(())
}

fn table(states: &[FederatorState]) -> Table {
    let row = |state: &FederatorState| {
        vec![
            state.name.clone(),
            state.region.clone(),
            state.state.word().to_owned(),
            state.weight.to_string(),
            state.agents.map_or_else(|| "-".to_owned(), count),
            match state.rtt_us {
                Some(rtt) => duration_us(i64::try_from(rtt).unwrap_or(i64::MAX)),
                None => "-".to_owned(),
            },
            duration_us(i64::try_from(state.for_s.saturating_mul(1_000_000)).unwrap_or(i64::MAX)),
            state.error.clone().unwrap_or_default(),
        ]
    };
    Table {
        columns: vec![
            text("NAME", 0),
            text("REGION", 1),
            text("STATE", 0),
            figure("WEIGHT", 4),
            figure("AGENTS", 2),
            figure("ROUND TRIP", 3),
            figure("SINCE", 2),
            text("", 3),
        ],
        rows: states.iter().map(row).collect(),
    }
}

/// Finds out where the federator is, and asks itself: nobody else changes what it says of itself.
pub fn carry_out(
    work: &Drain,
    world: &mut dyn World,
    output: &mut Output<'_>,
) -> Result<u8, Failure> {
    let asked = world.federation(&work.target, &FederationRequest::Federators)?;
    let states = match asked {
        FederationAnswer::Federators(states) => states,
        FederationAnswer::Error(error) => return Err(Failure::query(&error)),
        FederationAnswer::Done { .. } => {
            return Err(Failure::protocol("an answer to another question"));
        }
    };
    let not_drained =
        |cause: String| Failure::new("E-DRAIN", "nothing was changed", cause, "weft federators");
    let found = states.iter().find(|state| state.name == work.federator);
    let Some(found) = found else {
        let names: Vec<&str> = states.iter().map(|state| state.name.as_str()).collect();
        let cause = format!(
            "no federator is called {:?}; there are {}",
            work.federator,
            names.join(", ")
        );
        return Err(not_drained(cause));
    };
    let target = match found {
        found if found.asked => work.target.clone(),
        found if found.address.is_empty() => {
            let cause = format!(
                "where {} is reached is not known; ask it itself: --federator HOST:PORT",
                found.name
            );
            return Err(not_drained(cause));
        }
        found => Target {
            federator: found.address.clone(),
            ..work.target.clone()
        },
    };
    let request = FederationRequest::Drain {
        federator: work.federator.clone(),
        draining: work.draining,
    };
    match world.federation(&target, &request)? {
        FederationAnswer::Done { agents } => {
            let word = if work.draining {
                "draining"
            } else {
                "no longer draining"
            };
            output.text(&format!("{}: {word}\n", work.federator))?;
            let agents = usize::try_from(agents).unwrap_or(usize::MAX);
            output.remark(&format!(
                "{} connected; those of its region move within some seconds. Connections that are open stay with their federator until they end",
                counted(agents, "agent", "agents")
            ));
            Ok(0)
        }
        FederationAnswer::Error(error) => Err(Failure::query(&error)),
        FederationAnswer::Federators(_) => Err(Failure::protocol("an answer to another question")),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use weft_wire::Timestamp;
    use weft_wire::federation::Presence;
    use weft_wire::identity::{IdentityAnswer, IdentityRequest};
    use weft_wire::query::{Completeness, Request, Response};

    use super::*;
    use crate::world::{Pause, Progress, Received};
    use crate::{EXIT_ERROR, Surroundings, run};

    /// Two federators; whoever is asked to drain is noted.
    #[derive(Default)]
    struct Script {
        drained: Vec<(String, String, bool)>,
    }

    fn state(name: &str, asked: bool) -> FederatorState {
        FederatorState {
            name: name.into(),
            region: "r1".into(),
            address: if name == "fed-c" {
                String::new()
            } else {
                format!("{name}.example:7443")
            },
            asked,
            state: if asked {
                Presence::Up
            } else {
                Presence::Draining
            },
            for_s: 90,
            weight: 1,
            agents: asked.then_some(12),
            rtt_us: (!asked).then_some(1_500),
            error: None,
        }
    }

    impl World for Script {
        fn now(&self) -> Timestamp {
            Timestamp(1_700_000_000_000_000)
        }

        fn ask(
            &mut self,
            _target: &Target,
            _request: &Request,
            _progress: Progress,
        ) -> Result<Received, Failure> {
            let completeness = Completeness::default();
            let end = Response::End {
                completeness,
                truncated: false,
            };
            Ok(Received {
                responses: vec![end],
                interrupted: false,
            })
        }

        fn identify(
            &mut self,
            _target: &Target,
            _request: &IdentityRequest,
        ) -> Result<IdentityAnswer, Failure> {
            Err(Failure::protocol("not asked"))
        }

        fn federation(
            &mut self,
            target: &Target,
            request: &FederationRequest,
        ) -> Result<FederationAnswer, Failure> {
            let FederationRequest::Drain {
                federator,
                draining,
            } = request
            else {
                return Ok(FederationAnswer::Federators(vec![
                    state("fed-a", true),
                    state("fed-b", false),
                    state("fed-c", false),
                ]));
            };
            let asked = (target.federator.clone(), federator.clone(), *draining);
            self.drained.push(asked);
            Ok(FederationAnswer::Done { agents: 1 })
        }

        fn pause(&mut self, _duration: Duration) -> Pause {
            Pause::Interrupted
        }
    }

    fn weft(words: &[&str]) -> (u8, String, String, Script) {
        let (mut out, mut err, mut script) = (Vec::new(), Vec::new(), Script::default());
        let common = ["--federator", "x.example:7443", "--identity", "/nowhere"];
        let typed = ["weft"].iter().chain(words).chain(&common);
        let typed = typed.map(|word| (*word).into()).collect();
        let surroundings = Surroundings::default();
        let code = run(typed, &surroundings, &mut script, &mut out, &mut err);
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (code, text(out), text(err), script)
    }

    #[test]
    fn the_federator_itself_is_asked() {
        let (code, out, _, script) = weft(&["drain", "fed-b"]);
        assert_eq!((code, out.as_str()), (0, "fed-b: draining\n"));
        let asked = ("fed-b.example:7443".into(), "fed-b".into(), true);
        assert_eq!(script.drained, [asked]);
        let (code, _, _, script) = weft(&["drain", "fed-a", "--undo"]);
        assert_eq!(code, 0);
        let asked = ("x.example:7443".into(), "fed-a".into(), false);
        assert_eq!(script.drained, [asked]);
    }

    #[test]
    fn one_that_is_not_there_is_not_drained() {
        for (name, word) in [("fed-x", "fed-a, fed-b, fed-c"), ("fed-c", "not known")] {
            let (code, out, err, script) = weft(&["drain", name]);
            assert_eq!((code, out.as_str()), (EXIT_ERROR, ""), "{err}");
            assert!(err.contains("E-DRAIN") && err.contains(word), "{err}");
            assert!(err.contains("hint:") && script.drained.is_empty());
        }
    }

    #[test]
    fn who_is_there_is_a_table_and_json() {
        let (_, out, _, _) = weft(&["federators"]);
        let lines: Vec<Vec<&str>> = out
            .lines()
            .take(3)
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(
            lines[0],
            [
                "NAME", "REGION", "STATE", "WEIGHT", "AGENTS", "ROUND", "TRIP", "SINCE"
            ]
        );
        assert_eq!(lines[1][..5], ["fed-a", "r1", "up", "1", "12"]);
        assert_eq!(lines[2][..5], ["fed-b", "r1", "draining", "1", "-"]);
        let (_, out, _, _) = weft(&["federators", "--json"]);
        let json: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!(json["members"][1]["state"], "draining");
    }
}
