use super::packet::tests::Record;
use super::*;

#[test]
fn the_last_search_line_counts() {
    let text = "# a comment\nnameserver 10.0.0.10\nsearch old.example\n\
        search shop.svc.cluster.local svc.cluster.local Cluster.Local.\noptions ndots:5\n";
    assert_eq!(
        search_list(text),
        [
            "shop.svc.cluster.local",
            "svc.cluster.local",
            "cluster.local"
        ]
    );
    assert_eq!(search_list("domain corp.example\n"), ["corp.example"]);
    assert!(search_list("").is_empty());
}

#[test]
fn equal_owners_become_one_entry_of_a_batch() {
    let (one, other) = (Arc::new(Owner::default()), Arc::new(Owner::default()));
    let rows = [&one, &other, &one].map(|owner| (Lookup::default(), Arc::clone(owner)));
    let batch = batch(7, rows.to_vec());
    let owners: Vec<u32> = batch.lookups.iter().map(|lookup| lookup.owner).collect();
    assert_eq!(
        (batch.boot, batch.owners.len(), owners),
        (7, 2, vec![0, 1, 0])
    );
}

#[test]
fn a_record_of_the_kernel_is_a_message() {
    // A query for the root's servers.
    let query = [0, 9, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1];
    let record = Record {
        sent: true,
        protocol: 17,
        flags: 0,
        sequence: 0,
        segment_bytes: 0,
        at_ns: 5_000,
        pid: 1,
        payload: &query,
        length: query.len() as u32,
    };
    let bytes = record.bytes();
    let packet = packet::decode(&bytes).unwrap();
    let (payload, length) = packet.datagrams().next().unwrap();
    let message = weft_dns::Message::parse(payload).unwrap();
    assert_eq!((message.id, message.questions[0].qtype, length), (9, 2, 17));
}
