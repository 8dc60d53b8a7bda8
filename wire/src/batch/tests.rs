use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use proptest::prelude::*;

use super::*;
use crate::model::*;
use crate::testing::{Generator, Workload};

const NAMES: u32 = 4;
const AGENT: AgentKey = AgentKey(0xa9e7);

fn ip() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        (0u32..8).prop_map(|low| Ipv4Addr::from_bits(0x0a00_0000 + low).into()),
        any::<u32>().prop_map(|bits| Ipv4Addr::from_bits(bits).into()),
        any::<u128>().prop_map(|bits| Ipv6Addr::from_bits(bits).into()),
    ]
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), Just(u64::MAX), 0u64..5000, any::<u64>()]
}

fn time() -> impl Strategy<Value = Timestamp> {
    prop_oneof![
        Just(i64::MIN),
        Just(i64::MAX),
        any::<i64>(),
        (0i64..10_000_000).prop_map(|micros| 1_795_000_000_000_000 + micros)
    ]
    .prop_map(Timestamp)
}

fn half(owners: u32) -> impl Strategy<Value = Half> {
    use HalfState::*;
    let state = prop::sample::select(vec![Open, Closed, Refused, TimedOut, Aborted]);
    let role = prop::sample::select(vec![Role::Client, Role::Server]);
    let protocol = prop::sample::select(vec![Protocol::Tcp, Protocol::Udp]);
    let fingerprint = prop_oneof![
        Just(Fingerprint::Unknown),
        any::<(u32, u32)>().prop_map(|(client, server)| Fingerprint::TcpIsn { client, server }),
        (0usize..3, number(), number(), any::<bool>()).prop_map(
            |(sort, client, server, distinct)| Fingerprint::Datagrams(Datagrams {
                sort: [DatagramSort::Other, DatagramSort::Dns, DatagramSort::Quic][sort],
                client,
                server,
                distinct,
            })
        ),
    ];
    let named = prop_oneof![
        Just((0, 0)),
        (0..=NAMES, any::<u32>()),
        (0..=NAMES, 0u32..1000)
    ];
    let application = prop::sample::select(Application::ALL.to_vec());
    let ends = ((ip(), any::<u16>()), (ip(), any::<u16>()));
    let times = (time(), prop::option::of(time()), time());
    let counts = (
        number(),
        number(),
        number(),
        number(),
        any::<u32>(),
        any::<u32>(),
    );
    (
        number(),
        role,
        protocol,
        state,
        fingerprint,
        ends,
        times,
        counts,
        (0..owners, named, application),
    )
        .prop_map(
            |(
                cookie,
                role,
                protocol,
                state,
                fingerprint,
                (local, remote),
                times,
                counts,
                (owner, (name, named_before_us), application),
            )| Half {
                id: HalfId::new(AGENT, 77, cookie),
                cookie,
                protocol,
                role,
                state,
                fingerprint,
                local: SocketAddr::from(local),
                remote: SocketAddr::from(remote),
                opened_at: times.0,
                closed_at: times.1,
                seen_at: times.2,
                bytes_sent: counts.0,
                bytes_received: counts.1,
                packets_sent: counts.2,
                packets_received: counts.3,
                rtt_us: counts.4,
                retransmits: counts.5,
                owner,
                name,
                named_before_us: if name > 0 { named_before_us } else { 0 },
                application,
            },
        )
}

fn owner(index: u32) -> Owner {
    let process = Process {
        pid: index,
        name: format!("p{index}"),
        args: (index == 4).then(|| "p4 --key ***".into()),
        parent: index / 2,
        ..Process::default()
    };
    let pod = Pod {
        namespace: "shop".into(),
        name: format!("cart-{index}"),
        labels: vec![("app".into(), "cart".into())],
        ..Pod::default()
    };
    Owner {
        process: (index.is_multiple_of(2)).then_some(process.clone()),
        cgroup: format!("/c/{index}"),
        pod: (index == 3).then_some(pod),
        unit: (index == 1).then(|| "nginx.service".into()),
        escaped: index == 2,
        sharers: vec![process; index as usize % 3],
        ..Owner::default()
    }
}

fn names() -> Vec<PeerName> {
    [
        NameSource::DnsProcess,
        NameSource::DnsNode,
        NameSource::Sni,
        NameSource::HttpHost,
    ]
    .into_iter()
    .enumerate()
    .map(|(index, source)| PeerName {
        name: format!("n{index}.example"),
        source,
    })
    .collect()
}

/// What a decoder must give: owners and names without the unused, indices to match.
fn normal(batch: &HalfBatch) -> HalfBatch {
    let mut used: Vec<u32> = batch.halves.iter().map(|half| half.owner).collect();
    used.sort_unstable();
    used.dedup();
    let mut batch = batch.clone();
    for half in &mut batch.halves {
        half.owner = used.iter().position(|owner| *owner == half.owner).unwrap() as u32;
        half.id = HalfId::new(AGENT, batch.boot, half.cookie);
    }
    batch.owners = used
        .iter()
        .map(|owner| batch.owners[*owner as usize].clone())
        .collect();
    let mut used: Vec<u32> = batch.halves.iter().map(|half| half.name).collect();
    used.push(0);
    used.sort_unstable();
    used.dedup();
    for half in &mut batch.halves {
        half.name = used.iter().position(|name| *name == half.name).unwrap() as u32;
    }
    batch.names = used[1..]
        .iter()
        .map(|name| batch.names[*name as usize - 1].clone())
        .collect();
    batch
}

proptest! {
    #[test]
    fn any_batch_round_trips(halves in prop::collection::vec(half(5), 0..80)) {
        let batch = HalfBatch { boot: 77, owners: (0..5).map(owner).collect(), names: names(), halves };
        let bytes = encode(&batch).unwrap();
        prop_assert_eq!(decode(&bytes, AGENT).unwrap(), normal(&batch));
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = decode(&bytes, AGENT);
    }

    #[test]
    fn no_damage_panics(seed in any::<u64>(), damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut bytes = encode(&Generator::new(Workload::default(), seed).batch(300)).unwrap();
        for (place, byte) in damage {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        if let Ok(batch) = decode(&bytes, AGENT) {
            prop_assert!(batch.halves.iter().all(|half| (half.owner as usize) < batch.owners.len()));
        }
    }

    #[test]
    fn no_truncation_passes(seed in any::<u64>(), place in any::<prop::sample::Index>()) {
        let bytes = encode(&Generator::new(Workload::default(), seed).batch(100)).unwrap();
        prop_assert!(decode(&bytes[..place.index(bytes.len())], AGENT).is_err());
    }
}

#[test]
fn a_realistic_batch_round_trips_at_every_size() {
    let mut decoder = BatchDecoder::new();
    for rows in [0, 1, 2, 7, 255, 256, 1000, MAX_ROWS] {
        let batch = Generator::new(
            Workload {
                peers: 5000,
                ..Workload::default()
            },
            rows as u64,
        )
        .batch(rows);
        let bytes = encode(&batch).unwrap();
        let columns = decoder.decode(&bytes).unwrap();
        assert_eq!(columns.len(), rows);
        assert_eq!(
            columns.halves(AGENT).collect::<Vec<_>>(),
            normal(&batch).halves
        );
    }
}

#[test]
fn every_row_may_have_its_own_owner_and_addresses() {
    let mut batch = Generator::new(Workload::default(), 1).batch(MAX_ROWS);
    batch.owners = (0..MAX_ROWS as u32).map(owner).collect();
    for (index, half) in batch.halves.iter_mut().enumerate() {
        half.owner = index as u32;
        half.local.set_ip(Ipv6Addr::from_bits(index as u128).into());
        half.remote
            .set_ip(Ipv6Addr::from_bits(1 << 100 | index as u128).into());
    }
    let bytes = encode(&batch).unwrap();
    assert!(bytes.len() + 8 <= crate::frame::MAX_HALF_BATCH);
    assert_eq!(decode(&bytes, AGENT).unwrap(), normal(&batch));
}

#[test]
fn what_is_over_a_limit_is_not_encoded() {
    let mut batch = Generator::new(Workload::default(), 1).batch(MAX_ROWS);
    batch.halves.push(batch.halves[0]);
    assert!(matches!(
        encode(&batch),
        Err(BatchError::Limit { what: "rows", .. })
    ));
    batch.halves.truncate(1);
    batch.halves[0].owner = 99;
    assert!(matches!(encode(&batch), Err(BatchError::Malformed(_))));
}

#[test]
fn owners_that_are_too_much_text_are_not_encoded() {
    let mut batch = Generator::new(Workload::default(), 1).batch(2000);
    batch.owners = (0..2000).map(owner).collect();
    for (index, half) in (0..).zip(&mut batch.halves) {
        half.owner = index;
        batch.owners[index as usize].cgroup = "x".repeat(MAX_TEXT_BYTES);
    }
    assert!(matches!(encode(&batch), Err(BatchError::Limit { .. })));
    batch.halves.truncate(100);
    assert_eq!(
        decode(&encode(&batch).unwrap(), AGENT).unwrap(),
        normal(&batch)
    );
}

#[test]
fn what_is_longer_than_it_may_be_is_cut() {
    let mut batch = Generator::new(Workload::default(), 1).batch(1);
    let owner = &mut batch.owners[batch.halves[0].owner as usize];
    owner.cgroup = "\u{e4}".repeat(MAX_TEXT_BYTES);
    owner.sharers = vec![Process::default(); MAX_SHARERS + 3];
    batch.names = vec![PeerName {
        name: "n".repeat(2 * MAX_NAME_BYTES),
        source: NameSource::Sni,
    }];
    batch.halves[0].name = 1;
    let decoded = decode(&encode(&batch).unwrap(), AGENT).unwrap();
    assert_eq!(
        decoded.owners[0].cgroup,
        "\u{e4}".repeat(MAX_TEXT_BYTES / 2)
    );
    assert_eq!(decoded.owners[0].sharers.len(), MAX_SHARERS);
    assert_eq!(decoded.names[0].name, "n".repeat(MAX_NAME_BYTES));
    batch.halves[0].name = 2;
    assert!(matches!(encode(&batch), Err(BatchError::Malformed(_))));
}

#[test]
fn hostile_lengths_are_refused_before_memory_is_taken() {
    let mut bytes = vec![BATCH_VERSION];
    bits::write_varint(&mut bytes, 1);
    bits::write_varint(&mut bytes, 1 << 40);
    bytes.extend([0; 30]);
    assert!(matches!(
        decode(&bytes, AGENT),
        Err(BatchError::Limit { .. })
    ));
    assert_eq!(decode(&[9], AGENT), Err(BatchError::Version(9)));
    assert_eq!(decode(&[], AGENT), Err(BatchError::Truncated));
}

/// The goal is 24 with all overheads; those outside the batch are below 6 %.
#[test]
fn a_finished_half_is_small() {
    let rows = 2048;
    let batch = Generator::new(Workload::default(), 5).batch(rows);
    let bytes = encode(&batch).unwrap().len() as f64 / rows as f64;
    assert!(bytes < 22.5, "{bytes}");
}

#[test]
fn a_decoder_that_is_used_again_gives_what_a_new_one_gives() {
    let mut used = BatchDecoder::new();
    let mut generator = Generator::new(Workload::default(), 9);
    let mut other = Generator::new(
        Workload {
            workloads: 3,
            ..Workload::default()
        },
        8,
    );
    let batches = [
        generator.batch(300),
        generator.batch(10),
        other.batch(40),
        generator.batch(0),
        other.batch(700),
    ];
    for batch in batches {
        let bytes = encode(&batch).unwrap();
        assert!(used.decode(&bytes[..bytes.len() - 1]).is_err());
        let columns = used.decode(&bytes).unwrap();
        assert_eq!(columns.owners, normal(&batch).owners);
        assert_eq!(
            columns.halves(AGENT).collect::<Vec<_>>(),
            normal(&batch).halves
        );
    }
}
