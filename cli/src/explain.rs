//! `weft explain`: one connection in words.

use serde::Serialize;
use weft_wire::NameSource;
use weft_wire::query::{
    ChainLink, Confidence, Connection, Endpoint, Match, PathClass, ServerName, Unmatched,
};

use crate::answer::Answer;
use crate::chains::{Step, step};
use crate::connections::{client_name, csv_paths, nat, server_name, table};
use crate::failure::Failure;
use crate::figures::{bytes, counted, duration_us, time};
use crate::view::{Text, View, json};

/// A statement about a connection, with how it is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Statement {
    /// What it is about: match, check, path, class, chain, name, app, place, share, life, load.
    pub about: &'static str,
    /// How it is known, or how it came out.
    pub verdict: String,
    /// Stable code.
    pub code: String,
    /// In words.
    pub words: String,
}

/// A row: a connection with what can be said of it.
#[derive(Serialize)]
struct Explained<'a> {
    #[serde(flatten)]
    connection: &'a Connection,
    explanation: Vec<Statement>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    chain: Vec<Step<'a>>,
}

pub(crate) fn view(
    found: &[Connection],
    id_prefix: &str,
    answer: &Answer,
) -> Result<View, Failure> {
    let rows: Result<Vec<String>, Failure> = found
        .iter()
        .map(|connection| {
            json(&Explained {
                connection,
                explanation: statements(connection, &answer.chains),
                chain: answer.chains.iter().map(step).collect(),
            })
        })
        .collect();
    let (text, hints) = match found {
        [] => return Err(not_found(id_prefix, answer)),
        [one] => (Text::lines(words(one, &answer.chains)), Vec::new()),
        several => (
            Text::table(table(several)),
            vec![format!(
                "several begin with {id_prefix}: give more digits, weft explain {}",
                several[0].id
            )],
        ),
    };
    Ok(View {
        schema: "weft.explain/1".to_owned(),
        rows: rows?,
        paths: csv_paths(),
        text,
        summary: if found.len() == 1 {
            String::new()
        } else {
            counted(found.len(), "connection", "connections")
        },
        hints,
        ..View::default()
    })
}

fn not_found(id_prefix: &str, answer: &Answer) -> Failure {
    let unreached = answer
        .completeness
        .iter()
        .flat_map(|c| &c.federators)
        .filter(|f| !f.reached)
        .count();
    let cause = match unreached {
        0 => "no federator has one, or no longer".to_owned(),
        n => format!(
            "{} did not answer; none of the others has one",
            counted(n, "federator", "federators")
        ),
    };
    Failure::new(
        "E-NOT-FOUND",
        format!("no connection's id begins with {id_prefix}"),
        cause,
        "weft connections --since 24h",
    )
}

fn words(c: &Connection, chains: &[ChainLink]) -> Vec<String> {
    let mut lines = vec![format!(
        "{} ({}) -> {} ({})",
        client_name(c),
        holder(c.client.as_ref()),
        server_name(c),
        holder(c.server.as_ref())
    )];
    let sees = |who: &str, end: Option<&Endpoint>, arrow: &str| match end {
        Some(end) => format!("  {who} sees  {} {arrow} {}", end.local, end.remote),
        None => format!("  {who} sees  -"),
    };
    lines.push(sees("client", c.client.as_ref(), ">"));
    lines.push(sees("server", c.server.as_ref(), "<"));
    let statements = statements(c, chains);
    let width = |cell: fn(&Statement) -> &str| {
        statements
            .iter()
            .map(|s| cell(s).chars().count())
            .max()
            .unwrap_or(0)
    };
    let (verdict, code) = (width(|s| &s.verdict), width(|s| &s.code));
    for s in &statements {
        let line = format!(
            "{:<5}  {:<verdict$}  {:<code$}  {}",
            s.about, s.verdict, s.code, s.words
        );
        lines.push(line.trim_end().to_owned());
    }
    lines.push(format!("id     {}", c.id));
    lines
}

fn holder(end: Option<&Endpoint>) -> String {
    let Some(end) = end else {
        return "not seen".to_owned();
    };
    match &end.process {
        Some(process) => format!("agent {}, {} {}", end.agent, process.name, process.pid),
        None => format!("agent {}, process not known", end.agent),
    }
}

/// Everything that can be said.
fn statements(c: &Connection, chains: &[ChainLink]) -> Vec<Statement> {
    let mut all = Vec::new();
    match &c.matched {
        Some(m) => {
            all.push(matched(c, m));
            all.extend(m.checks.iter().map(|check| Statement {
                about: "check",
                verdict: if check.agrees { "agrees" } else { "DIFFERS" }.to_owned(),
                code: check.code.clone(),
                words: check.detail.clone(),
            }));
            all.push(rewritten(c, m));
        }
        None => all.push(unmatched(c)),
    }
    all.push(statement("class", c.path.class.as_str(), "", why_class(c)));
    all.extend(chains.iter().flat_map(crate::chains::statements));
    all.extend(c.name.as_ref().map(named));
    all.extend(c.application.map(|known| {
        let words = "as its first bytes say".to_owned();
        statement("app", "observed", known.as_str(), words)
    }));
    all.extend(
        [("client", &c.client), ("server", &c.server)]
            .into_iter()
            .filter_map(|(who, end)| {
                let end = end.as_ref()?;
                Some(statement("place", who, &end.federator, place(end)))
            }),
    );
    all.extend(
        [("client", &c.client), ("server", &c.server)]
            .into_iter()
            .filter_map(|(who, end)| shared(who, end.as_ref()?)),
    );
    all.push(life(c));
    all.extend(
        [("client", &c.client), ("server", &c.server)]
            .into_iter()
            .filter_map(|(who, end)| {
                let end = end.as_ref()?;
                Some(statement("load", who, "", load(end)))
            }),
    );
    all
}

fn statement(about: &'static str, verdict: &str, code: &str, words: String) -> Statement {
    Statement {
        about,
        verdict: verdict.to_owned(),
        code: code.to_owned(),
        words,
    }
}

/// Under which name the client knew the server.
fn named(name: &ServerName) -> Statement {
    let asked = |who: &str| {
        let before = duration_us(name.before_us.into());
        format!("{}, {who} {before} before", name.name)
    };
    let words = match name.source {
        NameSource::DnsProcess => asked("asked"),
        NameSource::DnsPod => asked("asked by another process of its pod"),
        NameSource::DnsNode => asked("asked by another process of its node"),
        NameSource::Sni => format!("{}, in its TLS greeting", name.name),
        NameSource::HttpHost => format!("{}, in its request", name.name),
    };
    statement("name", "observed", name.source.as_str(), words)
}

/// Who else uses an end's socket.
fn shared(who: &str, end: &Endpoint) -> Option<Statement> {
    let others: Vec<String> = end
        .sharers
        .iter()
        .map(|process| format!("{} {}", process.name, process.pid))
        .collect();
    let words = format!("{} with the same socket", others.join(", "));
    (!others.is_empty()).then(|| statement("share", who, "", words))
}

fn matched(c: &Connection, m: &Match) -> Statement {
    let isn = [&c.client, &c.server]
        .into_iter()
        .find_map(|end| end.as_ref()?.isn.clone());
    let both = match &isn {
        Some([client, server]) => format!("{client}/{server}"),
        None => "the same sequence numbers".to_owned(),
    };
    let words = match m.evidence.as_str() {
        "tcp-isn-pair" => format!("both ends hold {both}"),
        "tcp-client-isn" => {
            let client = isn.map_or_else(
                || "the client's sequence number".to_owned(),
                |[client, _]| client,
            );
            format!(
                "both ends hold {client}, the server's number differs: a SYN proxy is in the path"
            )
        }
        "reversed-tuple" => {
            "sequence numbers of one end or both not known; each end's addresses are the other's reversed, so no NAT"
                .to_owned()
        }
        _ => sure(m.confidence).to_owned(),
    };
    statement("match", m.confidence.as_str(), &m.evidence, words)
}

fn sure(confidence: Confidence) -> &'static str {
    match confidence {
        Confidence::Exact => "64 random bits agree",
        Confidence::High => "chance or error is improbable",
        Confidence::Medium => "circumstances that others are unlikely to share",
        Confidence::Low => "circumstances that others could share",
    }
}

fn rewritten(c: &Connection, m: &Match) -> Statement {
    let (Some(client), Some(server)) = (&c.client, &c.server) else {
        return statement("path", "observed", &nat(&m.nat), String::new());
    };
    let mut changes = Vec::new();
    if client.local != server.remote {
        changes.push(format!("source {} became {}", client.local, server.remote));
    }
    if client.remote != server.local {
        changes.push(format!(
            "destination {} became {}",
            client.remote, server.local
        ));
    }
    let words = if changes.is_empty() {
        "both ends see the same addresses".to_owned()
    } else {
        changes.join("; ")
    };
    statement("path", "observed", &nat(&m.nat), words)
}

fn unmatched(c: &Connection) -> Statement {
    let other = if c.client.is_some() {
        "server"
    } else {
        "client"
    };
    let (code, words) = match c.path.unmatched {
        Some(Unmatched::Pending) => ("pending", format!("the {other}'s half has not come yet; ask again in a moment")),
        Some(Unmatched::NoPartner) => (
            "no-partner",
            format!("no {other}'s half came in time: it has no agent, or something between ends TCP (a proxy, an L7 load balancer)"),
        ),
        Some(Unmatched::Ambiguous) => {
            ("ambiguous", format!("several {other}'s halves would fit, and nothing tells which: none was chosen"))
        }
        Some(Unmatched::NoFingerprint) => (
            "no-fingerprint",
            "it is older than its agent, so its sequence numbers are not known, and no other half has its addresses reversed".to_owned(),
        ),
        Some(Unmatched::NotEstablished) => ("not-established", not_established(c)),
        None => ("unknown", "the federator gave no reason".to_owned()),
    };
    statement("match", "none", code, words)
}

fn not_established(c: &Connection) -> String {
    use weft_wire::HalfState::{Aborted, Refused, TimedOut};
    let state = c.client.as_ref().or(c.server.as_ref()).map(|end| end.state);
    match state {
        Some(Refused) => "the server, or a host on the way, refused it".to_owned(),
        Some(TimedOut) => "nothing answered before the kernel gave up".to_owned(),
        Some(Aborted) => "the client gave up before anything answered".to_owned(),
        _ => "it never became a connection".to_owned(),
    }
}

fn why_class(c: &Connection) -> String {
    let crosses = c.path.crosses.join(", ");
    let via = c.path.via.join(" > ");
    match c.path.class {
        PathClass::Hairpin if crosses.is_empty() => {
            format!("the ends are near each other, the path left the network: {via}")
        }
        PathClass::Hairpin => format!(
            "the ends are near each other (across {crosses}), the path left the network: {via}"
        ),
        PathClass::NorthSouth => match c.path.unmatched {
            Some(Unmatched::Pending) => "one end is not ours, as far as is known yet".to_owned(),
            _ => "one end is not ours, as far as is known".to_owned(),
        },
        PathClass::Unknown => match c.path.unmatched {
            Some(Unmatched::Ambiguous) => {
                "the other end is one of ours; which one is not known".to_owned()
            }
            Some(_) => "there was no connection".to_owned(),
            None => "the labels of the two sites do not say enough".to_owned(),
        },
        PathClass::SameNode => "both ends on one host".to_owned(),
        PathClass::SameCluster => with_crossings("both ends in one cluster", &crosses),
        PathClass::SameZone => with_crossings("both ends in one zone", &crosses),
        _ => format!("the ends differ in {crosses}"),
    }
}

fn with_crossings(words: &str, crosses: &str) -> String {
    if crosses.is_empty() {
        words.to_owned()
    } else {
        format!("{words}; they differ in {crosses}")
    }
}

fn place(end: &Endpoint) -> String {
    let site = &end.site;
    let parts = [
        ("cloud", &site.cloud),
        ("account", &site.account),
        ("region", &site.region),
        ("zone", &site.zone),
        ("network", &site.network),
        ("cluster", &site.cluster),
        ("namespace", &site.namespace),
    ];
    let known: Vec<String> = parts
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| format!("{name} {value}"))
        .collect();
    if known.is_empty() {
        "no labels".to_owned()
    } else {
        known.join(", ")
    }
}

fn life(c: &Connection) -> Statement {
    let opened = format!("opened {} UTC", time(c.opened_at));
    let words = match c.closed_at {
        Some(closed) => format!(
            "{opened}, over after {}",
            duration_us(closed.0.saturating_sub(c.opened_at.0))
        ),
        None => opened,
    };
    statement("life", c.state.as_str(), c.protocol.as_str(), words)
}

fn load(end: &Endpoint) -> String {
    let mut words = format!(
        "sent {}, received {}",
        bytes(end.bytes_sent),
        bytes(end.bytes_received)
    );
    if let Some(rtt) = end.rtt_us {
        words.push_str(&format!(", rtt {}", duration_us(rtt.into())));
    }
    if end.retransmits > 0 {
        words.push_str(&format!(
            ", {} sent again",
            counted(end.retransmits as usize, "segment", "segments")
        ));
    }
    words
}
