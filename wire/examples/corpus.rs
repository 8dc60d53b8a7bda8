//! Writes the fuzz targets' first inputs for this crate: one valid example of everything.

use std::fs;
use std::path::{Path, PathBuf};

use weft_wire::batch;
use weft_wire::codec::{self, Message};
use weft_wire::control::*;
use weft_wire::frame::{HEADER_BYTES, Kind};
use weft_wire::query::*;
use weft_wire::testing::{Generator, LookupGenerator, Workload};
use weft_wire::*;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    let corpus = PathBuf::from(std::env::args().nth(1).ok_or("the corpus directory")?);
    let frames = control(&corpus.join("control"))?;
    write(
        &corpus.join("frame"),
        "all-kinds",
        &[[6].as_slice(), &frames].concat(),
    )?;
    batches(&corpus.join("batch"))?;
    lookups(&corpus.join("lookups"))
}

fn write(dir: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    fs::create_dir_all(dir)?;
    Ok(fs::write(dir.join(name), bytes)?)
}

/// Writes a message as the target takes it (index of the kind, payload), and its frame to `frames`.
fn message(dir: &Path, name: &str, frame: &[u8], frames: &mut Vec<u8>) -> Result<()> {
    frames.extend_from_slice(frame);
    let kind = Kind::ALL
        .iter()
        .position(|kind| *kind as u8 == frame[HEADER_BYTES - 1])
        .ok_or("an unknown kind")?;
    write(dir, name, &[&[kind as u8], &frame[HEADER_BYTES..]].concat())
}

fn framed<M: Message>(message: &M) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    codec::append(&mut bytes, message)?;
    Ok(bytes)
}

fn control(dir: &Path) -> Result<Vec<u8>> {
    let site = Site {
        cloud: "aws".into(),
        zone: "use1-az1".into(),
        ..Site::default()
    };
    let agent = AgentInfo {
        name: "node-a1".into(),
        version: "0.1.0".into(),
        site: site.clone(),
        ..AgentInfo::default()
    };
    let now = Timestamp(1_795_361_335_123_456);
    let mut all = Vec::new();
    let mut put = |name: &str, frame: Vec<u8>| message(dir, name, &frame, &mut all);
    put(
        "agent-hello",
        framed(&AgentHello {
            version: PROTOCOL_VERSION,
            agent,
            now,
        })?,
    )?;
    put(
        "agent-welcome",
        framed(&AgentWelcome {
            version: PROTOCOL_VERSION,
            federator: "fed-a".into(),
            durable_seq: 7,
            now,
        })?,
    )?;
    put(
        "agent-status",
        framed(&AgentStatus {
            now,
            halves: 1_000_000,
            given_up: Detail::ORDER.to_vec(),
            ..AgentStatus::default()
        })?,
    )?;
    put("ack", framed(&Ack { seq: 300 })?)?;
    let hello = PeerHello {
        version: PROTOCOL_VERSION,
        name: "fed-b".into(),
        region: "gcp-euw1".into(),
        instance: u64::MAX,
        now,
    };
    put("peer-hello", framed(&hello)?)?;
    for (name, peer) in peer_messages(now, site) {
        let mut frame = Vec::new();
        codec::append_peer(&mut frame, 5, &peer)?;
        put(name, frame)?;
    }
    let filter = Filter {
        since: Some(now),
        from: Some("checkout".into()),
        ..Filter::default()
    };
    for (name, what) in [
        (
            "request-connections",
            Question::Connections {
                filter: filter.clone(),
                limit: 20,
            },
        ),
        (
            "request-explain",
            Question::Explain {
                id_prefix: "00c0ffee".into(),
            },
        ),
        (
            "request-report",
            Question::Report {
                report: Report::Hairpins,
                filter,
                by: ReportOrder::Bytes,
                top: 5,
            },
        ),
        ("request-health", Question::Health),
        (
            "request-health-since",
            Question::HealthSince { window_s: 600 },
        ),
    ] {
        put(
            name,
            framed(&Request {
                version: PROTOCOL_VERSION,
                scope: Scope::Local {
                    absent: vec!["fed-b".into()],
                },
                what,
            })?,
        )?;
    }
    let values = vec![
        SqlValue::Null,
        SqlValue::Int(-5),
        SqlValue::Float(0.5),
        SqlValue::Text("x".into()),
    ];
    put(
        "response-sql-rows",
        framed(&Response::SqlRows(vec![values]))?,
    )?;
    put(
        "response-sql-columns",
        framed(&Response::SqlColumns(vec!["workload".into()]))?,
    )?;
    let health = FederatorHealth {
        name: "fed-a".into(),
        closes: vec![(CloseCode::Limit, 2)],
        troubles: vec![Trouble {
            code: "disk-full".into(),
            failing: true,
            words: "1 MB of disk left".into(),
            since: now,
        }],
        window: Some(HealthWindow {
            seconds: 600,
            match_ratio: Some(0.5),
            ..HealthWindow::default()
        }),
        ..FederatorHealth::default()
    };
    put("response-health", framed(&Response::Health(vec![health]))?)?;
    Ok(all)
}

fn peer_messages(now: Timestamp, site: Site) -> Vec<(&'static str, PeerMessage)> {
    let batch = Generator::new(Workload::default(), 1).batch(1);
    let (half, owner) = (batch.halves[0], batch.owners[0].clone());
    let (yours, theirs) = (Handle(1), Handle(u64::MAX));
    let offer = Offer {
        routing_key: 1,
        matching_key: 2,
        role: Role::Client,
        opened_at: now,
        handle: yours,
    };
    let notice = MatchNotice {
        yours,
        theirs,
        home: "fed-b".into(),
        partial: true,
    };
    let (agent, federator) = ("node-a1".into(), "fed-a".into());
    let card = EndpointCard {
        yours,
        theirs,
        partial: false,
        half,
        owner,
        name: Some(PeerName {
            name: "api.shop.example".into(),
            source: NameSource::DnsProcess,
        }),
        agent,
        federator,
        site,
    };
    vec![
        ("peer-offers", PeerMessage::Offers(vec![offer; 3])),
        ("peer-withdraw", PeerMessage::Withdraw(vec![yours])),
        ("peer-matched", PeerMessage::Matched(vec![notice])),
        (
            "peer-recall",
            PeerMessage::Recall(vec![Recall {
                routing_key: 7,
                opened_at: Timestamp(1),
            }]),
        ),
        ("peer-cards", PeerMessage::Cards(vec![card])),
    ]
}

fn batches(dir: &Path) -> Result<()> {
    for rows in [0, 1, 5, 300] {
        let batch = Generator::new(
            Workload {
                workloads: 2,
                ..Workload::default()
            },
            3,
        )
        .batch(rows);
        both(dir, &rows.to_string(), &batch::encode(&batch)?)?;
        both(
            dir,
            &format!("mixed-{rows}"),
            &batch::encode(&mixed(batch))?,
        )?;
    }
    Ok(())
}

fn lookups(dir: &Path) -> Result<()> {
    for rows in [0, 1, 5, 200] {
        let mut batch = LookupGenerator::new(5_000.0, 3).batch(rows);
        if let Some(lookup) = batch.lookups.get_mut(3) {
            lookup.role = Role::Server;
            lookup.protocol = LookupProtocol::Mdns;
            lookup.transport = LookupTransport::Tcp;
            lookup.truncated = true;
        }
        both(dir, &rows.to_string(), &batch::lookups::encode(&batch)?)?;
    }
    Ok(())
}

/// Every second row as a datagram flow; owners with all there can be; names.
fn mixed(mut batch: HalfBatch) -> HalfBatch {
    let other = Process {
        pid: 7,
        args: Some("nginx: worker process".into()),
        parent: 1,
        parent_name: "nginx".into(),
        ..Process::default()
    };
    batch.owners[0].sharers.push(other);
    batch.owners[0].unit = Some("nginx.service".into());
    batch.owners[1].pod = Some(Pod {
        namespace: "shop".into(),
        name: "cart-7f9".into(),
        owner_kind: "Deployment".into(),
        owner_name: "cart".into(),
        labels: vec![("app".into(), "cart".into())],
        ..Pod::default()
    });
    batch.names = ["s3.eu-west-1.amazonaws.com", "db.internal"]
        .map(|name| PeerName {
            name: name.into(),
            source: NameSource::DnsPod,
        })
        .into();
    for (index, half) in (0..).zip(&mut batch.halves) {
        half.name = index % 3;
        half.named_before_us = half.name * 71_000;
        half.application = Application::ALL[index as usize % Application::ALL.len()];
        if index % 2 == 1 {
            half.protocol = Protocol::Udp;
            half.cookie = mix64(half.cookie);
            half.fingerprint = Fingerprint::Datagrams(Datagrams {
                sort: DatagramSort::Quic,
                client: mix64(half.cookie),
                server: u64::from(index % 5),
                distinct: index % 4 == 1,
            });
        }
    }
    batch
}

/// A batch as it is, and as parts.
fn both(dir: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    write(
        dir,
        &format!("rows-{name}"),
        &[[0].as_slice(), bytes].concat(),
    )?;
    write(
        dir,
        &format!("parts-{name}"),
        &[[1].as_slice(), &parts(bytes)?].concat(),
    )
}

/// A batch as the target puts it together: rows; length of what is compressed, that, for both parts; the rest.
fn parts(batch: &[u8]) -> Result<Vec<u8>> {
    let mut at = 1;
    let mut varint = || {
        let (mut value, mut shift) = (0usize, 0);
        loop {
            let byte = batch[at];
            at += 1;
            value |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 {
                return value;
            }
        }
    };
    let rows = varint();
    let parts = [(varint(), varint()), (varint(), varint())];
    let mut rest = &batch[at + 8..];
    let mut out = Vec::new();
    out.extend_from_slice(&u16::try_from(rows)?.to_le_bytes());
    for (plain_bytes, compressed) in parts {
        let (part, after) = rest.split_at(compressed);
        let plain = zstd::bulk::decompress(part, plain_bytes)?;
        out.extend_from_slice(&u16::try_from(plain.len())?.to_le_bytes());
        out.extend_from_slice(&plain);
        rest = after;
    }
    out.extend_from_slice(rest);
    Ok(out)
}
