//! A scripted world and a small, fixed mesh to show.
#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::VecDeque;
use std::time::Duration;

use weft_cli::failure::Failure;
use weft_cli::world::{Pause, Progress, Received, Target, World};
use weft_cli::{Surroundings, run};
use weft_wire::control::CloseCode;
use weft_wire::identity::{IdentityAnswer, IdentityRequest};
use weft_wire::query::*;
use weft_wire::{
    Application, HalfId, HalfState, NameSource, Process, Protocol, Role, Site, Timestamp,
};

/// Plays answers and remembers what was asked.
pub struct Script {
    pub answers: VecDeque<Received>,
    pub asked: Vec<Request>,
    pub pauses: u32,
}

impl World for Script {
    fn now(&self) -> Timestamp {
        at("2026-11-22T16:00:00.000000Z")
    }

    fn ask(&mut self, _: &Target, request: &Request, _: Progress) -> Result<Received, Failure> {
        self.asked.push(request.clone());
        // No proxies, unless a script has some.
        let chains = |answer: &Received| {
            let pieces = answer.responses.iter();
            pieces
                .into_iter()
                .any(|piece| matches!(piece, Response::Chains(_)))
        };
        if matches!(request.what, Question::Chains { .. })
            && !self.answers.front().is_some_and(chains)
        {
            return Ok(Received {
                responses: vec![end()],
                interrupted: false,
            });
        }
        Ok(self.answers.pop_front().expect("one answer a question"))
    }

    fn identify(&mut self, _: &Target, _: &IdentityRequest) -> Result<IdentityAnswer, Failure> {
        Ok(IdentityAnswer::Done)
    }

    fn pause(&mut self, _: Duration) -> Pause {
        self.pauses += 1;
        if self.answers.is_empty() {
            Pause::Interrupted
        } else {
            Pause::Elapsed
        }
    }
}

pub struct Ran {
    pub out: String,
    pub err: String,
    pub code: u8,
    pub asked: Vec<Request>,
}

impl Ran {
    /// Both streams and the exit code, as a golden file holds them.
    pub fn transcript(&self, typed: &str) -> String {
        format!(
            "$ weft {typed}\n{}--- stderr\n{}--- exit {}\n",
            self.out, self.err, self.code
        )
    }
}

/// In a pipe, with a federator and an identity named.
pub fn pipe() -> Surroundings {
    let named = [
        ("WEFT_FEDERATOR", "fed.example:7443"),
        ("WEFT_IDENTITY", "/etc/weft/me"),
    ];
    Surroundings {
        environment: named.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
        ..Surroundings::default()
    }
}

pub fn terminal(width: usize) -> Surroundings {
    Surroundings {
        stdout_is_terminal: true,
        stderr_is_terminal: true,
        width: Some(width),
        ..pipe()
    }
}

/// Splits on spaces; single quotes keep them.
pub fn words(typed: &str) -> Vec<std::ffi::OsString> {
    let mut words = vec!["weft".into()];
    for (index, part) in typed.split('\'').enumerate() {
        if index % 2 == 1 {
            words.push(part.into());
        } else {
            words.extend(part.split_whitespace().map(Into::into));
        }
    }
    words
}

pub fn weft(typed: &str, surroundings: &Surroundings, answers: Vec<Vec<Response>>) -> Ran {
    let answers = answers
        .into_iter()
        .map(|responses| Received {
            responses,
            interrupted: false,
        })
        .collect();
    play(typed, surroundings, answers)
}

pub fn play(typed: &str, surroundings: &Surroundings, answers: VecDeque<Received>) -> Ran {
    let mut world = Script {
        answers,
        asked: vec![],
        pauses: 0,
    };
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = run(words(typed), surroundings, &mut world, &mut out, &mut err);
    Ran {
        out: String::from_utf8(out).unwrap(),
        err: String::from_utf8(err).unwrap(),
        code,
        asked: world.asked,
    }
}

pub fn at(text: &str) -> Timestamp {
    Timestamp::parse(text).unwrap()
}

pub fn end() -> Response {
    let federators = ["fed-a", "fed-b"].map(|f| Reach {
        federator: f.into(),
        reached: true,
        error: None,
    });
    let unmatched = [(Unmatched::NoPartner, 12), (Unmatched::Pending, 21)].into();
    let completeness = Completeness {
        federators: federators.into(),
        halves: HalfCounts {
            matched: 5_210,
            unmatched,
            dropped: 0,
        },
    };
    Response::End {
        completeness,
        truncated: false,
    }
}

pub fn end_with_gap() -> Response {
    let Response::End {
        mut completeness, ..
    } = end()
    else {
        unreachable!()
    };
    completeness.federators[1].reached = false;
    completeness.federators[1].error = Some("no answer within 10s".into());
    Response::End {
        completeness,
        truncated: true,
    }
}

pub fn site(region: &str, cluster: &str, namespace: &str) -> Site {
    let (cloud, region) = region.split_once('/').unwrap();
    Site {
        cloud: cloud.into(),
        region: region.into(),
        zone: format!("{region}-a"),
        cluster: cluster.into(),
        namespace: namespace.into(),
        ..Site::default()
    }
}

pub fn endpoint(agent: &str, site: Site, workload: &str, local: &str, remote: &str) -> Endpoint {
    Endpoint {
        half: HalfId(u64::from(agent.bytes().last().unwrap())),
        agent: agent.into(),
        federator: "fed-a".into(),
        site,
        workload: workload.into(),
        process: Some(Process {
            pid: 4121,
            started_at: at("2026-11-22T09:00:00.000000Z"),
            name: "envoy".into(),
            exe: Some("/usr/local/bin/envoy".into()),
            uid: 1337,
            user: None,
            ..Process::default()
        }),
        container: None,
        pod: None,
        unit: None,
        escaped: false,
        sharers: vec![],
        local: local.into(),
        remote: remote.into(),
        bytes_sent: 18_204,
        bytes_received: 1_204_113,
        rtt_us: Some(850),
        retransmits: 2,
        state: HalfState::Closed,
        isn: Some(["634c6601".into(), "9229c6d7".into()]),
    }
}

/// Out through the NAT gateway and back in.
pub fn hairpin() -> Connection {
    let place = |namespace| site("aws/use1", "prod-a", namespace);
    Connection {
        id: HalfId(0x7f3a_9c41_d2e8_0b65),
        protocol: Protocol::Tcp,
        opened_at: at("2026-11-22T15:28:55.123456Z"),
        closed_at: Some(at("2026-11-22T15:28:56.623456Z")),
        state: ConnectionState::Closed,
        name: Some(ServerName {
            name: "api.shop.example".into(),
            source: NameSource::DnsProcess,
            before_us: 71_000,
        }),
        application: Some(Application::Http2),
        client: Some(endpoint(
            "node-a7",
            place("web"),
            "checkout",
            "10.1.4.7:48568",
            "203.0.113.9:443",
        )),
        server: Some(Endpoint {
            bytes_sent: 1_204_113,
            bytes_received: 18_204,
            retransmits: 0,
            sharers: vec![Process {
                pid: 4122,
                name: "envoy".into(),
                ..Process::default()
            }],
            ..endpoint(
                "node-a3",
                place("pay"),
                "ledger",
                "10.1.9.2:8443",
                "198.51.100.1:51713",
            )
        }),
        matched: Some(Match {
            evidence: "tcp-isn-pair".into(),
            confidence: Confidence::Exact,
            nat: ["source", "source-port", "destination", "destination-port"]
                .map(str::to_owned)
                .into(),
            checks: vec![Check {
                code: "bytes-both-ends".into(),
                agrees: true,
                detail: "sent 18204 = received 18204; sent 1204113 = received 1204113".into(),
            }],
        }),
        path: Path {
            class: PathClass::Hairpin,
            crosses: vec!["namespace".into()],
            via: vec!["198.51.100.1".into(), "203.0.113.9".into()],
            unmatched: None,
        },
    }
}

/// To a host without an agent, over IPv6, by a process that wants to steer the terminal.
pub fn outward() -> Connection {
    let mut client = endpoint(
        "vm-1",
        Site::default(),
        "=cmd\x1b[31m",
        "[2001:db8::7]:40000",
        "[2001:db8:ffff::1]:443",
    );
    client.process = None;
    client.rtt_us = None;
    client.retransmits = 0;
    client.isn = None;
    client.state = HalfState::Open;
    Connection {
        id: HalfId(0x7f3a_0000_0000_0001),
        protocol: Protocol::Tcp,
        opened_at: at("2026-11-22T15:59:00.000000Z"),
        closed_at: None,
        state: ConnectionState::Open,
        name: None,
        application: None,
        client: Some(client),
        server: None,
        matched: None,
        path: Path {
            class: PathClass::NorthSouth,
            crosses: vec![],
            via: vec![],
            unmatched: Some(Unmatched::NoPartner),
        },
    }
}

/// Only the server was seen, and two clients would fit.
pub fn ambiguous() -> Connection {
    let mut c = hairpin();
    c.id = HalfId(0xa0b1_c2d3_e4f5_0617);
    c.client = None;
    c.name = None;
    c.matched = None;
    c.path = Path {
        class: PathClass::Unknown,
        crosses: vec![],
        via: vec![],
        unmatched: Some(Unmatched::Ambiguous),
    };
    c
}

/// The server of [`hairpin`] is a proxy, and so, perhaps, is its client.
pub fn chain_links() -> Vec<ChainLink> {
    let mut on = hairpin();
    on.id = HalfId(0x00c0_ffee_0000_0001);
    for end in [&mut on.client, &mut on.server].into_iter().flatten() {
        end.half = HalfId(end.half.0 + 1_000);
    }
    let link = |end: Option<Endpoint>, role, other: Option<Connection>| {
        let end = end.expect("an end");
        ChainLink {
            half: end.half,
            role,
            proxy: Asker {
                agent: end.agent,
                federator: end.federator,
                site: end.site,
                workload: end.workload,
                pod: None,
                container: None,
                process: Some("envoy".into()),
            },
            pid: Some(4121),
            evidence: if other.is_some() {
                "relayed-bytes".into()
            } else {
                "ambiguous".into()
            },
            confidence: other.is_some().then_some(Confidence::High),
            checks: Vec::from_iter(other.is_some().then(|| Check {
                code: "bytes-to-server".into(),
                agrees: true,
                detail: "received 18204 = sent on 18204".into(),
            })),
            fitting: if other.is_some() { 1 } else { 3 },
            other: other.map(Box::new),
        }
    };
    vec![
        link(hairpin().server, Role::Server, Some(on)),
        link(hairpin().client, Role::Client, None),
    ]
}

pub fn report_rows() -> Vec<ReportRow> {
    let party = |region, cluster, namespace, workload: &str| Party {
        workload: workload.into(),
        site: site(region, cluster, namespace),
        managed: true,
    };
    let row = ReportRow {
        client: party("aws/use1", "prod-a", "web", "checkout"),
        server: party("gcp/euw1", "prod-g", "pay", "ledger"),
        class: PathClass::CrossCloud,
        via: vec!["198.51.100.1".into(), "203.0.113.9".into()],
        connections: 41_200,
        bytes_to_server: 12_400_000_000,
        bytes_to_client: 399_600_000_000,
        first_seen: at("2026-11-21T16:02:11.000000Z"),
        last_seen: at("2026-11-22T15:59:58.500000Z"),
        example: HalfId(0x7f3a_9c41_d2e8_0b65),
    };
    let second = ReportRow {
        server: Party {
            workload: "192.0.2.44:443".into(),
            site: Site::default(),
            managed: false,
        },
        class: PathClass::NorthSouth,
        via: vec![],
        connections: 3,
        bytes_to_server: 512,
        bytes_to_client: 0,
        ..row.clone()
    };
    vec![row, second]
}

/// What no report would show together: each takes what it needs.
pub fn dns_rows() -> Vec<DnsRow> {
    let asker = Asker {
        agent: "node-a7".into(),
        federator: "fed-a".into(),
        site: site("aws/use1", "prod-a", "web"),
        workload: "checkout".into(),
        pod: Some("checkout-7f9c-x2".into()),
        container: Some("4f".repeat(32)),
        process: Some("python3".into()),
    };
    let row = DnsRow {
        name: "s3.amazonaws.com".into(),
        kind: "external".into(),
        threat: None,
        outcome: "answered".into(),
        asker: asker.clone(),
        asker_lookups: 11_800,
        askers: 3,
        names: 2,
        lookups: 12_345,
        internal: 0,
        failed: 12,
        unanswered: 3,
        wasted: 0,
        repeated: 40,
        timed: 12_342,
        latency_us: Some(8_120),
        latency_max_us: Some(1_204_000),
        resolvers: vec!["10.96.0.10:53".into()],
        answers: vec!["52.216.0.1/5".into(), "s3-1.amazonaws.com".into()],
        first_seen: at("2026-11-22T15:02:11.000000Z"),
        last_seen: at("2026-11-22T15:59:58.500000Z"),
        transport: String::new(),
        example: None,
    };
    let wasted = DnsRow {
        name: "api.bad.example".into(),
        threat: Some("bad.example".into()),
        outcome: "search-path".into(),
        asker: Asker {
            site: Site::default(),
            workload: "=cmd\x1b[31m".into(),
            pod: None,
            container: None,
            process: None,
            ..asker
        },
        asker_lookups: 300,
        askers: 1,
        lookups: 300,
        failed: 300,
        wasted: 300,
        unanswered: 0,
        latency_us: None,
        latency_max_us: None,
        timed: 0,
        resolvers: vec![],
        answers: vec![],
        ..row.clone()
    };
    let inside = DnsRow {
        name: String::new(),
        kind: "reserved".into(),
        lookups: 88,
        internal: 88,
        ..row.clone()
    };
    vec![row, wasted, inside]
}

/// Who asks where no names are seen.
pub fn hidden_rows() -> Vec<DnsRow> {
    let by_https = DnsRow {
        name: String::new(),
        kind: String::new(),
        outcome: String::new(),
        askers: 1,
        names: 0,
        failed: 0,
        unanswered: 0,
        repeated: 0,
        timed: 0,
        latency_us: None,
        latency_max_us: None,
        resolvers: vec!["8.8.8.8:443".into()],
        answers: vec![],
        transport: "doh".into(),
        example: Some("10.1.0.2:48568".into()),
        ..dns_rows().remove(0)
    };
    let by_tls = DnsRow {
        lookups: 3,
        asker_lookups: 3,
        resolvers: vec!["[2620:fe::fe]:853".into()],
        transport: "dot".into(),
        example: Some("[2001:db8::7]:40112".into()),
        ..by_https.clone()
    };
    vec![by_https, by_tls]
}

/// The end of an answer that has nothing to do with halves.
pub fn end_without_halves() -> Response {
    let Response::End {
        mut completeness, ..
    } = end()
    else {
        unreachable!()
    };
    completeness.halves = HalfCounts::default();
    Response::End {
        completeness,
        truncated: false,
    }
}

pub fn healthy() -> FederatorHealth {
    FederatorHealth {
        name: "fed-a".into(),
        region: "aws-use1".into(),
        version: "0.1.0".into(),
        reached: true,
        error: None,
        uptime_s: 86_400 * 3,
        agents: vec![AgentHealth {
            name: "node-a1".into(),
            version: "0.1.0".into(),
            connected: true,
            last_seen: at("2026-11-22T15:59:59.000000Z"),
            lag_us: 210_000,
            clock_skew_us: -2_100,
            certificate_days_left: 61,
            halves: 120_000,
            open: 210,
            ..AgentHealth::default()
        }],
        peers: vec![PeerHealth {
            name: "fed-b".into(),
            connected: true,
            last_seen: Some(at("2026-11-22T15:59:59.000000Z")),
            clock_skew_us: 800,
            rtt_us: 42_000,
            queued: 0,
            error: None,
        }],
        halves_per_second: 412.0,
        halves: 120_000,
        stitched: 59_000,
        match_ratio: Some(0.9969),
        open_halves: 420,
        exchange_delay_us: Some(84_000),
        certificate_days_left: 61,
        journal_bytes: 1_000_000,
        store_bytes: 48_000_000,
        disk_free_bytes: 80_000_000_000,
        counters: [
            ("offers_refused".to_owned(), 3_u64),
            ("journal_dropped".to_owned(), 0),
        ]
        .into(),
        closes: vec![(CloseCode::Version, 1)],
        journal_max_bytes: 8_000_000_000,
        troubles: vec![],
        window: None,
    }
}

pub fn ailing() -> FederatorHealth {
    let mut f = healthy();
    f.name = "fed-b".into();
    f.region = "gcp-euw1".into();
    f.agents[0].name = "node-b1".into();
    f.agents[0].kernel_dropped = 17;
    f.agents.push(AgentHealth {
        name: "node-b2".into(),
        connected: false,
        last_seen: at("2026-11-22T15:41:12.000000Z"),
        certificate_days_left: 3,
        clock_skew_us: 4_000_000,
        ..AgentHealth::default()
    });
    f.peers[0].name = "fed-a".into();
    f.peers[0].connected = false;
    f.peers[0].queued = 41;
    f.peers[0].error = Some("no answer within 3s".into());
    f.disk_free_bytes = 2_000_000_000;
    f.counters.insert("halves_dropped".into(), 5);
    f
}

/// With a window, and troubles of its own.
pub fn lately() -> FederatorHealth {
    let mut f = ailing();
    f.agents[0].lost_in_window = Some(0);
    f.agents[1].lost_in_window = Some(0);
    f.agents[0].spool_failing = true;
    f.counters.insert("disk_full_refusals".into(), 12);
    f.troubles = vec![Trouble {
        code: "disk-full".into(),
        failing: true,
        words: "0 MB of disk left".into(),
        since: at("2026-11-22T15:58:00.000000Z"),
    }];
    f.window = Some(HealthWindow {
        seconds: 600,
        halves: 6_000,
        stitched: 2_000,
        match_ratio: Some(0.5),
        lost: 0,
        counters: [
            ("disk_full_refusals".to_owned(), 4),
            ("halves_dropped".to_owned(), 0),
        ]
        .into(),
    });
    f
}

pub fn unreached() -> FederatorHealth {
    FederatorHealth {
        name: "fed-c".into(),
        region: "onprem".into(),
        error: Some("no answer within 10s".into()),
        ..FederatorHealth::default()
    }
}
