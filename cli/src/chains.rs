//! What goes on through a proxy: asked for what another answer has, and shown with it.

use std::collections::BTreeSet;

use serde::Serialize;
use weft_wire::control::PROTOCOL_VERSION;
use weft_wire::query::{
    ChainLink, Check, Confidence, Connection, MAX_CHAIN_HALVES, Question, Request,
};
use weft_wire::{HalfId, Protocol, Role};

use crate::answer::{Answer, Rows};
use crate::connections::{client_name, server_name};
use crate::explain::Statement;
use crate::failure::Failure;
use crate::plan::{Ask, What};
use crate::world::{Progress, World};

/// Proxies one behind the other that an explanation follows each way.
const MAX_HOPS: usize = 8;

/// A step of a chain, as JSON has it.
#[derive(Serialize)]
pub(crate) struct Step<'a> {
    /// `to`: the way goes on with `connection`; `from`: it came with that.
    direction: &'static str,
    /// The end at the proxy.
    half: HalfId,
    agent: &'a str,
    federator: &'a str,
    workload: &'a str,
    process: Option<&'a str>,
    pid: Option<u32>,
    connection: Option<HalfId>,
    client: Option<String>,
    server: Option<String>,
    evidence: &'a str,
    confidence: Option<Confidence>,
    checks: &'a [Check],
    fitting: u32,
}

/// Asks for the chains of an answer's connections, where that is wanted.
pub(crate) fn follow(
    ask: &Ask,
    world: &mut dyn World,
    answer: &mut Answer,
    progress: Progress,
) -> Result<(), Failure> {
    let Rows::Connections(rows) = &answer.rows else {
        return Ok(());
    };
    let found = match (&ask.what, rows.as_slice()) {
        (What::Explain { .. }, [one]) => all_hops(ask, world, answer, one, progress)?,
        (What::Connections { chains: true, .. }, rows) => {
            let halves: Vec<HalfId> = rows.iter().flat_map(ends).collect();
            let mut found = Vec::new();
            for some in halves.chunks(MAX_CHAIN_HALVES) {
                found.extend(ask_for(ask, world, answer, some, progress)?);
            }
            found
        }
        _ => Vec::new(),
    };
    answer.chains = found;
    Ok(())
}

/// The ends of a connection that may be at a proxy.
fn ends(c: &Connection) -> impl Iterator<Item = HalfId> {
    let tcp = c.protocol == Protocol::Tcp;
    [&c.client, &c.server]
        .into_iter()
        .filter(move |_| tcp)
        .filter_map(|end| Some(end.as_ref()?.half))
}

/// From one connection on, each way, proxy by proxy.
fn all_hops(
    ask: &Ask,
    world: &mut dyn World,
    answer: &Answer,
    one: &Connection,
    progress: Progress,
) -> Result<Vec<ChainLink>, Failure> {
    let mut tips: Vec<HalfId> = ends(one).collect();
    let (mut found, mut seen): (Vec<ChainLink>, BTreeSet<HalfId>) = Default::default();
    for _ in 0..MAX_HOPS {
        tips.retain(|half| seen.insert(*half));
        if tips.is_empty() {
            break;
        }
        let links = ask_for(ask, world, answer, &tips, progress)?;
        let farther = links.iter().filter_map(|link| {
            let next = link.other.as_deref()?;
            // The proxy's own end of it is not asked about again.
            let end = match link.role {
                Role::Server => &next.server,
                Role::Client => &next.client,
            };
            Some(end.as_ref()?.half)
        });
        tips = farther.collect();
        found.extend(links);
    }
    Ok(found)
}

fn ask_for(
    ask: &Ask,
    world: &mut dyn World,
    answer: &Answer,
    halves: &[HalfId],
    progress: Progress,
) -> Result<Vec<ChainLink>, Failure> {
    if halves.is_empty() {
        return Ok(Vec::new());
    }
    let request = Request {
        version: PROTOCOL_VERSION,
        scope: ask.scope(),
        what: Question::Chains {
            halves: halves.to_vec(),
        },
    };
    let received = world.ask(&ask.target, &request, progress)?;
    Ok(Answer::collect(received, answer.window, answer.asked_at)?.chains)
}

/// The steps that a connection is the beginning of, or its end.
pub(crate) fn of<'a>(
    c: &'a Connection,
    chains: &'a [ChainLink],
) -> impl Iterator<Item = &'a ChainLink> {
    chains
        .iter()
        .filter(move |link| ends(c).any(|half| half == link.half))
}

/// As JSON has it.
pub(crate) fn step(link: &ChainLink) -> Step<'_> {
    let other = link.other.as_deref();
    Step {
        direction: match link.role {
            Role::Server => "to",
            Role::Client => "from",
        },
        half: link.half,
        agent: &link.proxy.agent,
        federator: &link.proxy.federator,
        workload: &link.proxy.workload,
        process: link.proxy.process.as_deref(),
        pid: link.pid,
        connection: other.map(|c| c.id),
        client: other.map(client_name),
        server: other.map(server_name),
        evidence: &link.evidence,
        confidence: link.confidence,
        checks: &link.checks,
        fitting: link.fitting,
    }
}

/// In a table's cell: `> 1a2b3c4d` goes on with that, `<` came with it, `> ?` with one of several.
pub(crate) fn cell(c: &Connection, chains: &[ChainLink]) -> String {
    let parts: Vec<String> = of(c, chains)
        .map(|link| {
            let arrow = match link.role {
                Role::Server => ">",
                Role::Client => "<",
            };
            match &link.other {
                Some(other) => format!("{arrow} {}", other.id),
                None => format!("{arrow} ?"),
            }
        })
        .collect();
    if parts.is_empty() {
        "-".to_owned()
    } else {
        parts.join(" ")
    }
}

/// What an explanation says of a chain.
pub(crate) fn statements(link: &ChainLink) -> Vec<Statement> {
    let proxy = match (&link.proxy.process, link.pid) {
        (Some(process), Some(pid)) => format!("{process} {pid} of agent {}", link.proxy.agent),
        _ => format!("agent {}", link.proxy.agent),
    };
    let way = match link.role {
        Role::Server => "goes on through",
        Role::Client => "came through",
    };
    let words = match (&link.other, link.evidence.as_str()) {
        (Some(other), _) => format!(
            "{way} {proxy} as {}: {} -> {}",
            other.id,
            client_name(other),
            server_name(other)
        ),
        (None, "too-many") => {
            format!("{proxy} had too many connections about that time to tell")
        }
        (None, _) => format!(
            "{} of the connections of {proxy} would fit, and nothing tells which: none was chosen",
            link.fitting
        ),
    };
    let verdict = link.confidence.map_or("none", Confidence::as_str);
    let say = |verdict: &str, code: &str, words: String| Statement {
        about: "chain",
        verdict: verdict.to_owned(),
        code: code.to_owned(),
        words,
    };
    let checks = link.checks.iter().map(|check| {
        let verdict = if check.agrees { "agrees" } else { "DIFFERS" };
        say(verdict, &check.code, check.detail.clone())
    });
    let mut all = vec![say(verdict, &link.evidence, words)];
    all.extend(checks);
    all
}
