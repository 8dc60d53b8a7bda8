use std::net::SocketAddr;

use tempfile::TempDir;
use weft_wire::*;

use super::*;

const CLOCK: u64 = 1_000_000;

pub(crate) fn batch(first_cookie: u64, rows: usize) -> HalfBatch {
    let address: SocketAddr = "10.0.0.1:80".parse().unwrap();
    let half = |cookie| Half {
        id: HalfId(0),
        cookie,
        protocol: Protocol::Tcp,
        role: Role::Client,
        state: HalfState::Open,
        fingerprint: Fingerprint::TcpIsn {
            client: cookie as u32,
            server: !cookie as u32,
        },
        local: address,
        remote: address,
        opened_at: Timestamp(1),
        closed_at: None,
        seen_at: Timestamp(2),
        bytes_sent: 0,
        bytes_received: 0,
        packets_sent: 0,
        packets_received: 0,
        rtt_us: 0,
        retransmits: 0,
        owner: 0,
        ..Half::default()
    };
    HalfBatch {
        boot: 9,
        owners: vec![Owner::default()],
        halves: (first_cookie..first_cookie + rows as u64)
            .map(half)
            .collect(),
        ..HalfBatch::default()
    }
}

pub(crate) fn open(dir: &TempDir) -> Spool {
    open_with(dir, SpoolLimits::default())
}

fn open_with(dir: &TempDir, limits: SpoolLimits) -> Spool {
    Spool::open(&dir.path().join("spool"), limits, CLOCK).unwrap()
}

fn read_all(spool: &mut Spool) -> Vec<Entry> {
    std::iter::from_fn(|| spool.next_entry().unwrap()).collect()
}

fn cookies(entries: &[Entry]) -> Vec<u64> {
    let decode = |entry: &Entry| batch::decode(&entry.batch, AgentKey(1)).unwrap().halves;
    entries
        .iter()
        .flat_map(decode)
        .map(|half| half.cookie)
        .collect()
}

fn files(dir: &TempDir) -> Vec<PathBuf> {
    segment::list(&dir.path().join("spool")).unwrap()
}

#[test]
fn gives_in_order_what_was_appended() {
    let dir = TempDir::new().unwrap();
    let mut spool = open(&dir);
    assert_eq!(spool.last_ring_position(), None);
    for index in 0..10 {
        spool.append(&batch(index * 3, 3), index * 100).unwrap();
    }
    let entries = read_all(&mut spool);
    assert_eq!(cookies(&entries), (0..30).collect::<Vec<_>>());
    assert!(entries.windows(2).all(|pair| pair[0].seq < pair[1].seq));
    assert!(!spool.has_unread());
    spool.append(&batch(30, 1), 1000).unwrap();
    assert_eq!(cookies(&read_all(&mut spool)), [30]);
    spool.rewind();
    assert_eq!(read_all(&mut spool).len(), 11);
}

#[test]
fn a_restart_gives_what_was_not_acknowledged_with_the_same_numbers() {
    let dir = TempDir::new().unwrap();
    let mut spool = open(&dir);
    spool.append(&batch(1, 2), 10).unwrap();
    spool.append(&batch(3, 2), 20).unwrap();
    let before = read_all(&mut spool);
    drop(spool);
    let mut spool = open(&dir);
    assert_eq!(spool.last_ring_position(), Some(20));
    assert_eq!(read_all(&mut spool), before);
    let seq = spool.append(&batch(5, 1), 30).unwrap();
    assert!(seq > before[1].seq);
    spool.acknowledge(before[0].seq).unwrap();
    spool.rewind();
    assert_eq!(cookies(&read_all(&mut spool)), [3, 4, 5]);
}

#[test]
fn numbers_and_ring_position_outlive_all_entries() {
    let dir = TempDir::new().unwrap();
    let mut spool = open(&dir);
    let last = spool.append(&batch(1, 1), 77).unwrap();
    spool.acknowledge(last).unwrap();
    drop(spool);
    for _ in 0..3 {
        let mut spool = Spool::open(&dir.path().join("spool"), SpoolLimits::default(), 0).unwrap();
        spool.acknowledge(last).unwrap();
        assert!(spool.last_seq() >= last);
        assert_eq!(spool.last_ring_position(), Some(77));
        assert_eq!(read_all(&mut spool), []);
    }
    assert!(files(&dir).len() <= 2, "{:?}", files(&dir));
}

#[test]
fn empty_batches_keep_the_ring_position_and_are_not_sent() {
    let dir = TempDir::new().unwrap();
    let mut spool = open(&dir);
    spool.append(&batch(1, 1), 1).unwrap();
    spool.append(&batch(1, 0), 2).unwrap();
    drop(spool);
    let mut spool = open(&dir);
    assert_eq!(spool.last_ring_position(), Some(2));
    assert_eq!(read_all(&mut spool).len(), 1);
}

#[test]
fn a_torn_tail_is_cut_at_every_length() {
    let dir = TempDir::new().unwrap();
    let mut spool = open(&dir);
    spool.append(&batch(1, 2), 10).unwrap();
    let whole = spool.totals().bytes;
    spool.append(&batch(3, 2), 20).unwrap();
    drop(spool);
    let path = files(&dir).pop().unwrap();
    let bytes = fs::read(&path).unwrap();
    for length in whole as usize..bytes.len() {
        let torn = TempDir::new().unwrap();
        fs::create_dir(torn.path().join("spool")).unwrap();
        fs::write(
            torn.path().join("spool").join(path.file_name().unwrap()),
            &bytes[..length],
        )
        .unwrap();
        let mut spool = open(&torn);
        assert_eq!(spool.totals().torn_bytes, length as u64 - whole);
        assert_eq!(spool.last_ring_position(), Some(10));
        assert_eq!(cookies(&read_all(&mut spool)), [1, 2], "{length}");
        spool.append(&batch(5, 1), 15).unwrap();
        assert_eq!(cookies(&read_all(&mut spool)), [5]);
    }
}

#[test]
fn a_flipped_bit_ends_a_segment_and_later_segments_are_still_read() {
    let dir = TempDir::new().unwrap();
    let mut spool = open(&dir);
    spool.append(&batch(1, 2), 10).unwrap();
    let place = spool.totals().bytes as usize + 40;
    spool.append(&batch(3, 2), 20).unwrap();
    drop(spool);
    let mut spool = open(&dir);
    spool.append(&batch(5, 2), 30).unwrap();
    drop(spool);
    let path = files(&dir).remove(0);
    let mut bytes = fs::read(&path).unwrap();
    bytes[place] ^= 4;
    fs::write(&path, bytes).unwrap();
    let mut spool = open(&dir);
    assert!(spool.totals().torn_bytes > 0);
    assert_eq!(cookies(&read_all(&mut spool)), [1, 2, 5, 6]);
    assert_eq!(spool.last_ring_position(), Some(30));
}

#[test]
fn at_the_limit_the_oldest_go_and_their_rows_are_counted() {
    let dir = TempDir::new().unwrap();
    let limits = SpoolLimits {
        max_bytes: SpoolLimits::MIN_BYTES,
    };
    let mut spool = open_with(&dir, limits);
    let mut appended = 0;
    while spool.totals().segments_dropped < 3 {
        spool.append(&batch(appended, 20), appended).unwrap();
        appended += 20;
        assert!(spool.totals().bytes <= limits.max_bytes);
    }
    let left = cookies(&read_all(&mut spool));
    let dropped = spool.totals().rows_dropped;
    assert_eq!(
        left,
        (dropped..appended).collect::<Vec<_>>(),
        "what is left are the newest, without a gap"
    );
    assert_eq!(spool.totals().rows, appended);
    drop(spool);
    let mut spool = open_with(&dir, limits);
    assert_eq!(cookies(&read_all(&mut spool)), left);
}

#[test]
fn rows_that_were_acknowledged_do_not_count_as_dropped() {
    let dir = TempDir::new().unwrap();
    let limits = SpoolLimits {
        max_bytes: SpoolLimits::MIN_BYTES,
    };
    let mut spool = open_with(&dir, limits);
    let first = spool.append(&batch(0, 20), 1).unwrap();
    spool.acknowledge(first).unwrap();
    let mut appended = 20;
    while spool.totals().segments_dropped == 0 {
        spool.append(&batch(appended, 20), 1).unwrap();
        appended += 20;
    }
    let left = cookies(&read_all(&mut spool)).len() as u64;
    assert_eq!(spool.totals().rows_dropped, appended - 20 - left);
}

#[test]
fn acknowledged_segments_are_deleted() {
    let dir = TempDir::new().unwrap();
    let mut spool = open_with(
        &dir,
        SpoolLimits {
            max_bytes: 8 * SpoolLimits::MIN_BYTES,
        },
    );
    let mut index = 0;
    while files(&dir).len() < 4 {
        spool.append(&batch(index * 50, 50), index).unwrap();
        index += 1;
    }
    let seq = spool.last_seq();
    spool.acknowledge(seq).unwrap();
    assert_eq!(files(&dir).len(), 1);
    assert_eq!(
        spool.totals().bytes,
        fs::metadata(&files(&dir)[0]).unwrap().len()
    );
    assert_eq!(spool.totals().rows_dropped, 0);
}

#[test]
fn a_federator_that_knows_later_numbers_gets_what_waits_with_higher_ones() {
    let dir = TempDir::new().unwrap();
    let mut spool = open(&dir);
    spool.append(&batch(1, 4), 1).unwrap();
    let durable = spool.last_seq() + 1000;
    assert!(!spool.may_have_given(durable));
    let before = spool.totals();
    spool.renumber(durable).unwrap();
    let entries = read_all(&mut spool);
    assert_eq!(cookies(&entries), [1, 2, 3, 4]);
    assert_eq!(entries[0].seq, durable + 1);
    assert_eq!(spool.append(&batch(5, 1), 2).unwrap(), durable + 2);
    assert_eq!(cookies(&read_all(&mut spool)), [5]);
    assert_eq!(
        (spool.totals().rows, spool.totals().rows_dropped),
        (before.rows + 1, 0)
    );
    drop(spool);
    let mut spool = open(&dir);
    assert!(spool.may_have_given(durable));
    spool.acknowledge(durable).unwrap();
    spool.rewind();
    assert_eq!(cookies(&read_all(&mut spool)), [1, 2, 3, 4, 5]);
    assert_eq!(spool.last_ring_position(), Some(2));
}

#[test]
fn numbers_that_were_never_given_are_the_federators_own_even_among_those_that_wait() {
    let dir = TempDir::new().unwrap();
    let mut spool = open(&dir);
    let first = spool.append(&batch(1, 1), 1).unwrap();
    spool.append(&batch(2, 1), 2).unwrap();
    let last = spool.append(&batch(3, 1), 3).unwrap();
    assert!(spool.may_have_given(first - 1) && !spool.may_have_given(first));
    spool.next_entry().unwrap();
    assert!(spool.may_have_given(first) && !spool.may_have_given(last));
    spool.rewind();
    spool.renumber(last - 1).unwrap();
    let entries = read_all(&mut spool);
    assert_eq!(cookies(&entries), [1, 2, 3]);
    assert!(entries[0].seq > last);
}

#[test]
fn a_long_batch_becomes_several_entries_and_the_position_goes_with_the_last() {
    let dir = TempDir::new().unwrap();
    let mut spool = open(&dir);
    spool.append(&batch(0, MAX_ROWS + 1), 50).unwrap();
    let entries = read_all(&mut spool);
    assert_eq!(
        entries.iter().map(|entry| entry.rows).collect::<Vec<_>>(),
        [MAX_ROWS as u32, 1]
    );
    drop(spool);
    let path = files(&dir).pop().unwrap();
    let length = fs::metadata(&path).unwrap().len();
    fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(length - 1)
        .unwrap();
    assert_eq!(
        open(&dir).last_ring_position(),
        None,
        "the ring is read again from the start"
    );
}

#[test]
fn owners_with_too_much_text_for_one_batch_are_spread() {
    let dir = TempDir::new().unwrap();
    let mut spool = open(&dir);
    let mut long = batch(0, 1500);
    long.owners = (0..1500)
        .map(|_| Owner {
            cgroup: "x".repeat(4096),
            ..Owner::default()
        })
        .collect();
    long.halves
        .iter_mut()
        .enumerate()
        .for_each(|(index, half)| half.owner = index as u32);
    spool.append(&long, 1).unwrap();
    let entries = read_all(&mut spool);
    assert!(entries.len() > 1);
    assert_eq!(cookies(&entries), (0..1500).collect::<Vec<u64>>());
}

#[test]
fn lookups_go_the_same_way_and_remember_their_own_ring() {
    let dir = tempfile::tempdir().unwrap();
    let limits = SpoolLimits::default();
    let lookups = |rows: usize| LookupBatch {
        boot: 1,
        owners: vec![Owner::default()],
        lookups: vec![Lookup::default(); rows],
    };
    let mut spool = Spool::open(dir.path(), limits, 100).unwrap();
    spool.append(&batch(1, 2), 10).unwrap();
    // More than a batch takes: the position counts with the last part alone.
    spool
        .append_lookups(&lookups(MAX_LOOKUPS + 5), 777)
        .unwrap();
    spool.append(&batch(9, 1), 20).unwrap();
    drop(spool);
    let mut spool = Spool::open(dir.path(), limits, 100).unwrap();
    assert_eq!(
        (spool.last_ring_position(), spool.last_lookup_position()),
        (Some(20), Some(777))
    );
    spool.renumber(10_000).unwrap();
    let mut entries = Vec::new();
    while let Some(entry) = spool.next_entry().unwrap() {
        entries.push((entry.lookups, entry.rows));
        if entry.lookups {
            let decoded = lookups::decode(&entry.batch).unwrap();
            assert_eq!(decoded.lookups.len(), entry.rows as usize);
        }
    }
    let large = MAX_LOOKUPS as u32;
    assert_eq!(entries, [(false, 2), (true, large), (true, 5), (false, 1)]);
    assert_eq!(spool.last_lookup_position(), Some(777));
}

#[test]
fn a_full_segment_waits_for_the_disk_without_keeping_anyone_waiting() {
    let dir = TempDir::new().unwrap();
    let limits = SpoolLimits {
        max_bytes: 64 << 10,
    };
    let mut spool = open_with(&dir, limits);
    assert_eq!(spool.unsynced().unwrap().len(), 1);
    let segments = spool.segments.len();
    let mut position = 0;
    while spool.segments.len() == segments {
        position += 1;
        spool.append(&batch(position, 50), position).unwrap();
    }
    // The full one and the new one.
    assert_eq!(spool.unsynced().unwrap().len(), 2);
    assert_eq!(spool.unsynced().unwrap().len(), 1);
}
