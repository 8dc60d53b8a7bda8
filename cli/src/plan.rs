//! What was typed, understood: everything checked that can be checked without asking anyone.

use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use weft_wire::control::PROTOCOL_VERSION;
use weft_wire::identity::IdentityRequest;
use weft_wire::query::{self, DnsReport, Filter, Question, ReportOrder, Request, Scope};

use crate::args::{
    Args, Asking, By, Dns, Ends, Format, Global, Health, Pki, Report, Token, Verb, Which, WhichDns,
    Window as TypedWindow,
};
use crate::failure::Failure;
use crate::health::objectives::Objectives;
use crate::identify::{self, Identify};
use crate::members::Drain;
use crate::when::{DEFAULT_SINCE_US, Span, When, Window, duration};
use crate::world::Target;
use crate::{Surroundings, help};

/// Most rows that can be asked for; what is larger belongs in `weft sql` aggregates.
pub const MAX_ROWS: u32 = 1_000_000;
/// Most often that `--watch` asks.
pub const MIN_WATCH_INTERVAL: Duration = Duration::from_millis(500);
/// Longest window of `weft health`: what federators remember.
pub const MAX_HEALTH_WINDOW_S: u64 = 86_400;
/// Longest SQL statement read from stdin, in bytes; the wire allows little more.
pub const MAX_STATEMENT: u64 = 200_000;

/// What is to be done.
#[derive(Debug)]
pub enum Plan {
    /// Print this.
    Print(String),
    /// Make certificates.
    Pki(Pki),
    /// Ask a federator for a token, or to shut somebody out.
    Identify(Identify),
    /// Relieve a federator, or no longer.
    Drain(Drain),
    /// Ask a federator.
    Ask(Ask),
}

/// What is to be asked.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Whom.
    pub target: Target,
    /// What.
    pub what: What,
    /// About when.
    pub window: Span,
    /// Only what the asked federator has itself.
    pub local: bool,
    /// Again after so long.
    pub watch: Option<Duration>,
    /// Exit code 3 below this percentage.
    pub min_complete: Option<f64>,
}

/// A question without its window.
#[derive(Clone, Debug, PartialEq)]
pub enum What {
    /// `weft connections`
    Connections {
        /// Between whom.
        filter: Filter,
        /// At most so many.
        limit: u32,
        /// With what goes on through proxies.
        chains: bool,
    },
    /// `weft explain`
    Explain {
        /// How the id begins.
        id_prefix: String,
    },
    /// `weft report`
    Report {
        /// Which.
        which: query::Report,
        /// Between whom.
        filter: Filter,
        /// Order.
        by: ReportOrder,
        /// At most so many.
        top: u32,
    },
    /// `weft sql`
    Sql {
        /// The statement.
        text: String,
        /// Over which connections.
        filter: Filter,
        /// At most so many.
        limit: u32,
    },
    /// `weft dns`
    Dns {
        /// Which.
        report: DnsReport,
        /// Asked by whom.
        filter: Filter,
        /// At most so many.
        top: u32,
    },
    /// `weft health`
    Health {
        /// With what happened within so many seconds.
        window_s: Option<u32>,
        /// By what it is judged.
        objectives: Box<Objectives>,
    },
    /// `weft federators`
    Federators,
}

/// Turns what was typed into what is to be done.
pub fn plan(args: &Args, surroundings: &Surroundings) -> Result<Plan, Failure> {
    let global = &args.global;
    if global
        .min_complete
        .is_some_and(|percent| !(0.0..=100.0).contains(&percent))
    {
        return Err(Failure::value(
            "--min-complete",
            "it must lie between 0 and 100",
            "--min-complete 99",
        ));
    }
    if let Some(Format::Nagios | Format::Prometheus) = global.format
        && !matches!(args.verb, Verb::Health(_))
    {
        return Err(Failure::value(
            "--format",
            "only weft health is written as nagios or prometheus",
            "--format json",
        ));
    }
    let ask = |what, window, asking: &Asking| -> Result<Plan, Failure> {
        Ok(Plan::Ask(Ask {
            target: target(global, surroundings)?,
            what,
            window,
            local: asking.local,
            watch: asking.watch.as_deref().map(interval).transpose()?,
            min_complete: global.min_complete,
        }))
    };
    let identified = |request| -> Result<Plan, Failure> {
        Ok(Plan::Identify(Identify {
            target: target(global, surroundings)?,
            request,
        }))
    };
    match &args.verb {
        Verb::Connections(typed) => {
            let what = What::Connections {
                filter: filter(&typed.ends)?,
                limit: rows("--limit", typed.limit)?,
                chains: typed.chains,
            };
            ask(what, span(&typed.window)?, &typed.asking)
        }
        Verb::Explain(typed) => ask(
            What::Explain {
                id_prefix: id_prefix(&typed.id)?,
            },
            Span::ALL,
            &Asking::default(),
        ),
        Verb::Report(typed) => ask(report(typed)?, span(&typed.window)?, &typed.asking),
        Verb::Sql(typed) => {
            let what = What::Sql {
                text: statement(&typed.statement)?,
                filter: filter(&typed.ends)?,
                limit: rows("--limit", typed.limit)?,
            };
            ask(what, span(&typed.window)?, &typed.asking)
        }
        Verb::Dns(typed) => ask(dns(typed)?, span(&typed.window)?, &typed.asking),
        Verb::Health(typed) => {
            let (what, window) = health(typed)?;
            ask(what, window, &typed.asking)
        }
        Verb::Federators(typed) => ask(What::Federators, Span::ALL, &typed.asking),
        Verb::Drain(typed) => Ok(Plan::Drain(Drain {
            target: target(global, surroundings)?,
            federator: typed.name.clone(),
            draining: !typed.undo,
        })),
        Verb::Token(Token::Create(typed)) => identified(identify::create_token(typed)?),
        Verb::Pki(Pki::Revoke(typed)) => identified(identify::revoke(typed)?),
        Verb::Pki(Pki::Revoked) => identified(IdentityRequest::Revoked),
        Verb::Pki(work) => Ok(Plan::Pki(work.clone())),
        Verb::Completion { shell } => Ok(Plan::Print(help::completion(*shell)?)),
        Verb::Help { topic } => help::topic(topic).map(Plan::Print),
    }
}

impl Ask {
    /// The request, about a window.
    pub fn request(&self, window: &Window) -> Request {
        let within = |filter: &Filter| Filter {
            since: window.since,
            until: window.until,
            ..filter.clone()
        };
        let what = match &self.what {
            What::Connections { filter, limit, .. } => Question::Connections {
                filter: within(filter),
                limit: *limit,
            },
            What::Explain { id_prefix } => Question::Explain {
                id_prefix: id_prefix.clone(),
            },
            What::Report {
                which,
                filter,
                by,
                top,
            } => Question::Report {
                report: *which,
                filter: within(filter),
                by: *by,
                top: *top,
            },
            What::Sql {
                text,
                filter,
                limit,
            } => Question::Sql {
                text: text.clone(),
                filter: within(filter),
                limit: *limit,
            },
            What::Dns {
                report,
                filter,
                top,
            } => Question::Dns {
                report: report.clone(),
                filter: within(filter),
                top: *top,
            },
            What::Health {
                window_s: Some(window_s),
                ..
            } => Question::HealthSince {
                window_s: *window_s,
            },
            What::Health { .. } | What::Federators => Question::Health,
        };
        Request {
            version: PROTOCOL_VERSION,
            scope: self.scope(),
            what,
        }
    }

    /// Whose connections it is about.
    pub fn scope(&self) -> Scope {
        if self.local {
            Scope::Local { absent: Vec::new() }
        } else {
            Scope::Mesh
        }
    }
}

fn health(typed: &Health) -> Result<(What, Span), Failure> {
    let objectives = match &typed.objectives {
        Some(path) => Objectives::load(path)?,
        None => Objectives::default(),
    };
    let typed = typed.since.as_deref().map(|text| {
        let seconds = duration(text).map(|time| time.as_secs());
        seconds
            .filter(|seconds| (1..=MAX_HEALTH_WINDOW_S).contains(seconds))
            .and_then(|seconds| u32::try_from(seconds).ok())
            .ok_or_else(|| {
                Failure::value(
                    "--since",
                    "of health it must be a duration of a second to a day: federators remember no more",
                    "--since 15m",
                )
            })
    });
    let window_s = typed.transpose()?.or(objectives.window_s);
    let span = Span {
        since: window_s.map(|seconds| When::Ago(i64::from(seconds) * 1_000_000)),
        until: None,
    };
    let what = What::Health {
        window_s,
        objectives: Box::new(objectives),
    };
    Ok((what, span))
}

fn report(typed: &Report) -> Result<What, Failure> {
    let which = match typed.which {
        Which::CrossCluster => query::Report::CrossCluster,
        Which::CrossCloud => query::Report::CrossCloud,
        Which::CrossRegion => query::Report::CrossRegion,
        Which::CrossNamespace => query::Report::CrossNamespace,
        Which::NorthSouth => query::Report::NorthSouth,
        Which::Hairpins => query::Report::Hairpins,
        Which::Dependencies => query::Report::Dependencies,
    };
    let by = match typed.by {
        By::Bytes => ReportOrder::Bytes,
        By::Connections => ReportOrder::Connections,
    };
    Ok(What::Report {
        which,
        filter: filter(&typed.ends)?,
        by,
        top: rows("--top", typed.top)?,
    })
}

fn dns(typed: &Dns) -> Result<What, Failure> {
    let report = match (typed.which, &typed.name) {
        (WhichDns::Explain, Some(name)) => DnsReport::Explain {
            name: name.trim_end_matches('.').to_ascii_lowercase(),
        },
        (WhichDns::Explain, None) => {
            return Err(Failure::value(
                "NAME",
                "weft dns explain needs a name",
                "weft dns explain example.com",
            ));
        }
        (_, Some(_)) => {
            return Err(Failure::value(
                "NAME",
                "only weft dns explain takes a name",
                "weft dns explain example.com",
            ));
        }
        (WhichDns::Top, None) => DnsReport::Top,
        (WhichDns::Hotspots, None) => DnsReport::Hotspots,
        (WhichDns::External, None) => DnsReport::External,
        (WhichDns::Failures, None) => DnsReport::Failures,
        (WhichDns::Threats, None) => DnsReport::Threats,
        (WhichDns::Bypass, None) => DnsReport::Bypass,
    };
    let ends = Ends {
        from: typed.from.clone(),
        to: None,
        expression: typed.expression.clone(),
    };
    Ok(What::Dns {
        report,
        filter: filter(&ends)?,
        top: rows("--top", typed.top)?,
    })
}

fn target(global: &Global, surroundings: &Surroundings) -> Result<Target, Failure> {
    let federator = global
        .federator
        .as_deref()
        .or(surroundings.variable("WEFT_FEDERATOR"));
    let identity = global
        .identity
        .clone()
        .or(surroundings.variable("WEFT_IDENTITY").map(PathBuf::from));
    let federator = federator.ok_or_else(Failure::no_federator)?;
    let bracketed = |host: &str| host.starts_with('[') && host.ends_with(']');
    let well_formed = federator.rsplit_once(':').is_some_and(|(host, port)| {
        // The last word of a bare IPv6 address would pass for a port.
        let one_host = bracketed(host) || !host.contains(':');
        !host.is_empty() && one_host && port.parse::<u16>().is_ok()
    });
    if !well_formed {
        let host = match federator.parse::<std::net::Ipv6Addr>() {
            Ok(address) => format!("[{address}]"),
            Err(_) => federator.to_owned(),
        };
        let hint = format!("--federator {host}:7443");
        return Err(Failure::value("--federator", "it must be HOST:PORT", &hint));
    }
    Ok(Target {
        federator: federator.to_owned(),
        identity: identity.ok_or_else(Failure::no_identity)?,
    })
}

fn filter(ends: &Ends) -> Result<Filter, Failure> {
    let filter = Filter {
        since: None,
        until: None,
        from: ends.from.clone(),
        to: ends.to.clone(),
        expression: ends.expression.clone(),
    };
    // The federator compiles it again; here only to say at once what is wrong, and with which option.
    let alone = |option: &'static str, part: Filter| {
        weft_wire::filter::compile(&part)
            .map(drop)
            .map_err(|error| Failure::filter(option, &error))
    };
    alone(
        "--from",
        Filter {
            from: filter.from.clone(),
            ..Filter::default()
        },
    )?;
    alone(
        "--to",
        Filter {
            to: filter.to.clone(),
            ..Filter::default()
        },
    )?;
    alone(
        "--where",
        Filter {
            expression: filter.expression.clone(),
            ..Filter::default()
        },
    )?;
    Ok(filter)
}

fn span(typed: &TypedWindow) -> Result<Span, Failure> {
    if let Some(at) = &typed.at {
        return match When::parse("--at", at)? {
            When::Ago(micros) => Ok(Span {
                since: Some(When::Ago(micros)),
                until: Some(When::Ago(micros - 1)),
            }),
            When::At(time) => {
                let after = weft_wire::Timestamp(time.0.saturating_add(1));
                Ok(Span {
                    since: Some(When::At(time)),
                    until: Some(When::At(after)),
                })
            }
        };
    }
    let read =
        |option, text: &Option<String>| text.as_deref().map(|t| When::parse(option, t)).transpose();
    let since = read("--since", &typed.since)?.unwrap_or(When::Ago(DEFAULT_SINCE_US));
    Ok(Span {
        since: Some(since),
        until: read("--until", &typed.until)?,
    })
}

fn interval(text: &str) -> Result<Duration, Failure> {
    match duration(text) {
        Some(interval) if interval >= MIN_WATCH_INTERVAL => Ok(interval),
        _ => Err(Failure::value(
            "--watch",
            "it must be a duration of 500ms or more",
            "--watch=5s",
        )),
    }
}

fn rows(option: &str, count: u32) -> Result<u32, Failure> {
    if (1..=MAX_ROWS).contains(&count) {
        return Ok(count);
    }
    Err(Failure::value(
        option,
        &format!("it must lie between 1 and {MAX_ROWS}"),
        &format!("{option} 100"),
    ))
}

fn id_prefix(text: &str) -> Result<String, Failure> {
    let id = text.to_ascii_lowercase();
    if (4..=16).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Ok(id);
    }
    Err(Failure::value(
        "ID",
        "it must be 4 to 16 hexadecimal digits",
        "weft connections --limit 10",
    ))
}

fn statement(typed: &str) -> Result<String, Failure> {
    if typed != "-" {
        return Ok(typed.to_owned());
    }
    let mut text = String::new();
    let read = std::io::stdin()
        .take(MAX_STATEMENT + 1)
        .read_to_string(&mut text);
    match read {
        Ok(bytes) if bytes as u64 > MAX_STATEMENT => Err(Failure::value(
            "SELECT",
            &format!("it is longer than {MAX_STATEMENT} bytes"),
            "weft sql 'SELECT …'",
        )),
        Ok(_) => Ok(text),
        Err(error) => Err(Failure::value(
            "SELECT",
            &format!("stdin cannot be read: {error}"),
            "weft sql 'SELECT …'",
        )),
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
