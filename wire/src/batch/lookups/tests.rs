use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use proptest::prelude::*;

use super::*;
use crate::model::*;
use crate::testing::LookupGenerator;

fn ip() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        (0u32..8).prop_map(|low| Ipv4Addr::from_bits(0x0a00_0000 + low).into()),
        any::<u32>().prop_map(|bits| Ipv4Addr::from_bits(bits).into()),
        any::<u128>().prop_map(|bits| Ipv6Addr::from_bits(bits).into()),
    ]
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![Just(String::new()), "[a-c]{1,2}\\.(com|svc)", "\\PC{0,40}",]
}

fn answer() -> impl Strategy<Value = Answer> {
    prop_oneof![
        (ip(), prop_oneof![Just(30), any::<u32>()])
            .prop_map(|(address, life)| Answer::Address(address, life)),
        name().prop_map(Answer::Alias),
    ]
}

fn lookup(owners: u32) -> impl Strategy<Value = Lookup> {
    use LookupTransport::*;
    let kind = (
        any::<bool>(),
        any::<bool>(),
        prop::sample::select(vec![Udp, Tcp, Dot, Doh]),
        any::<bool>(),
    );
    let ends = ((ip(), any::<u16>()), (ip(), any::<u16>()));
    let times = (any::<i64>(), prop::option::of(0..u32::MAX));
    let question = (any::<u16>(), name(), any::<u16>(), prop::option::of(name()));
    let answers = prop::collection::vec(answer(), 0..=MAX_ANSWERS);
    let answer = (prop::option::of(any::<u16>()), answers, any::<u16>());
    let numbers = (any::<u8>(), any::<u32>(), any::<u32>(), 0..owners);
    (kind, ends, times, question, answer, numbers).prop_map(
        |(kind, ends, times, question, answer, numbers)| Lookup {
            protocol: if kind.0 {
                LookupProtocol::Mdns
            } else {
                LookupProtocol::Dns
            },
            role: if kind.1 { Role::Server } else { Role::Client },
            transport: kind.2,
            truncated: kind.3,
            local: SocketAddr::from(ends.0),
            resolver: SocketAddr::from(ends.1),
            asked_at: Timestamp(times.0),
            latency_us: times.1,
            id: question.0,
            name: question.1,
            qtype: question.2,
            search_of: question.3,
            code: answer.0,
            answers: answer.1,
            answer_total: answer.2,
            tries: numbers.0,
            request_bytes: numbers.1,
            response_bytes: numbers.2,
            owner: numbers.3,
        },
    )
}

fn owners(count: u32) -> Vec<Owner> {
    let owner = |index| Owner {
        cgroup: format!("/c/{index}"),
        ..Owner::default()
    };
    (0..count).map(owner).collect()
}

/// What a decoder must give: owners without the unused, indices to match.
fn normal(batch: &LookupBatch) -> LookupBatch {
    let mut used: Vec<u32> = batch.lookups.iter().map(|lookup| lookup.owner).collect();
    used.sort_unstable();
    used.dedup();
    let mut batch = batch.clone();
    for lookup in &mut batch.lookups {
        lookup.owner = used
            .iter()
            .position(|owner| *owner == lookup.owner)
            .unwrap() as u32;
    }
    batch.owners = used
        .iter()
        .map(|owner| batch.owners[*owner as usize].clone())
        .collect();
    batch
}

proptest! {
    #[test]
    fn any_batch_round_trips(lookups in prop::collection::vec(lookup(4), 0..40)) {
        let batch = LookupBatch { boot: 77, owners: owners(4), lookups };
        prop_assert_eq!(decode(&encode(&batch).unwrap()).unwrap(), normal(&batch));
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = decode(&bytes);
    }

    #[test]
    fn no_damage_panics(seed in any::<u64>(), damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut bytes = encode(&LookupGenerator::new(5000.0, seed).batch(200)).unwrap();
        for (place, byte) in damage {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        if let Ok(batch) = decode(&bytes) {
            prop_assert!(batch.lookups.iter().all(|lookup| (lookup.owner as usize) < batch.owners.len()));
        }
    }

    #[test]
    fn no_truncation_passes(seed in any::<u64>(), place in any::<prop::sample::Index>()) {
        let bytes = encode(&LookupGenerator::new(5000.0, seed).batch(100)).unwrap();
        prop_assert!(decode(&bytes[..place.index(bytes.len())]).is_err());
    }
}

#[test]
fn a_realistic_batch_round_trips_at_every_size() {
    let mut decoder = LookupDecoder::new();
    for rows in [0, 1, 2, 7, 255, 1000, MAX_LOOKUPS] {
        let batch = LookupGenerator::new(5000.0, rows as u64).batch(rows);
        assert_eq!(
            decoder.decode(&encode(&batch).unwrap()).unwrap(),
            normal(&batch)
        );
    }
}

#[test]
fn a_lookup_is_small() {
    for (rows, most) in [(200, 40.0), (1000, 25.0), (4000, 20.0)] {
        let batch = LookupGenerator::new(5000.0, 5).batch(rows);
        let bytes = encode(&batch).unwrap().len() as f64 / rows as f64;
        println!("{rows} lookups: {bytes:.1} bytes each");
        assert!(bytes < most, "{rows}: {bytes}");
    }
}

#[test]
fn what_is_over_a_limit_is_cut_or_not_encoded() {
    let mut batch = LookupGenerator::new(5000.0, 1).batch(1);
    batch.lookups[0].name = "n".repeat(2 * MAX_NAME_BYTES);
    batch.lookups[0].answers = vec![Answer::Alias("a".into()); MAX_ANSWERS + 5];
    batch.lookups[0].answer_total = 21;
    let decoded = decode(&encode(&batch).unwrap()).unwrap();
    assert_eq!(decoded.lookups[0].name.len(), MAX_NAME_BYTES);
    assert_eq!(decoded.lookups[0].answers.len(), MAX_ANSWERS);
    assert_eq!(decoded.lookups[0].answer_total, 21);
    batch.lookups[0].owner = 99;
    assert!(matches!(encode(&batch), Err(BatchError::Malformed(_))));
    let batch = LookupGenerator::new(5000.0, 1).batch(MAX_LOOKUPS + 1);
    assert!(matches!(
        encode(&batch),
        Err(BatchError::Limit {
            what: "lookups",
            ..
        })
    ));
}

/// Few bytes must not become many: one long name, in sixteen aliases of every row.
#[test]
fn text_is_limited_after_decoding() {
    let lookup = Lookup {
        answers: vec![Answer::Alias("x".repeat(MAX_NAME_BYTES)); MAX_ANSWERS],
        ..Lookup::default()
    };
    let mut batch = LookupBatch {
        owners: owners(1),
        lookups: vec![lookup; 1024],
        ..LookupBatch::default()
    };
    assert!(decode(&encode(&batch).unwrap()).is_ok());
    batch.lookups.push(batch.lookups[0].clone());
    assert!(matches!(
        encode(&batch),
        Err(BatchError::Limit {
            what: "bytes of text",
            ..
        })
    ));
    let unchecked = encode::encode(0, &batch.owners, &batch.lookups).unwrap();
    assert!(unchecked.len() < 1000);
    assert!(matches!(
        decode(&unchecked),
        Err(BatchError::Limit {
            what: "bytes of text",
            ..
        })
    ));
}
