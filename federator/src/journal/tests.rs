use super::*;
use weft_wire::{AgentKey, Timestamp};

fn write(journal: &mut Journal, seq: u64) -> u64 {
    let batch = vec![seq as u8; 10 + seq as usize % 7];
    let entry = BatchEntry {
        arrived_at: Timestamp(5),
        agent: AgentKey(9),
        seq,
        skew_us: -3,
        batch: batch.as_slice(),
    };
    let position = journal.append(EntryRef::Batch(entry)).unwrap();
    assert_eq!(journal.commit().unwrap(), position);
    position
}

fn sequence_numbers(folder: &Path, from: u64) -> (Vec<u64>, Journal, Recovery) {
    let mut found = Vec::new();
    let (journal, recovery) = Journal::open(folder, from, from, |_, entry| match entry {
        Entry::Batch(batch) => found.push(batch.seq),
        other => panic!("unexpected {other:?}"),
    })
    .unwrap();
    (found, journal, recovery)
}

#[test]
fn replays_what_is_above_the_position() {
    let folder = tempfile::tempdir().unwrap();
    let (_, journal, _) = sequence_numbers(folder.path(), 0);
    let mut journal = journal.with_segment_bytes(100);
    let positions: Vec<u64> = (1..=20).map(|seq| write(&mut journal, seq)).collect();
    drop(journal);
    for (index, position) in positions.iter().enumerate() {
        let expected: Vec<u64> = (index as u64 + 2..=20).collect();
        let (found, _, recovery) = sequence_numbers(folder.path(), *position);
        assert_eq!(found, expected);
        assert_eq!((recovery.torn_bytes, recovery.missing_bytes), (0, 0));
    }
}

#[test]
fn an_entry_of_another_version_is_not_cut_off() {
    let folder = tempfile::tempdir().unwrap();
    let (_, mut journal, _) = sequence_numbers(folder.path(), 0);
    let position = write(&mut journal, 1);
    let path = journal.path.clone();
    drop(journal);
    let body = [99; 20];
    let mut frame = (body.len() as u32).to_le_bytes().to_vec();
    frame.extend(segment::checksum(position, &body).to_le_bytes());
    frame.extend(body);
    let mut file = File::options().append(true).open(&path).unwrap();
    file.write_all(&frame).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let opened = Journal::open(folder.path(), 0, 0, |_, _| ());
    assert!(
        matches!(opened, Err(JournalError::Damaged { position: at, .. }) if at == position),
        "{opened:?}"
    );
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
    // That version wrote it into the store.
    let end = bytes.len() as u64;
    let (journal, recovery) = Journal::open(folder.path(), end, end, |_, _| panic!()).unwrap();
    assert_eq!((journal.end(), recovery.torn_bytes), (end, 0));
}

#[test]
fn lookups_are_not_taken_for_halves() {
    let batch = BatchEntry {
        arrived_at: Timestamp(1),
        agent: AgentKey(2),
        seq: 3,
        skew_us: -4,
        batch: [5, 6].as_slice(),
    };
    let mut bytes = Vec::new();
    EntryRef::Lookups(batch).encode(&mut bytes);
    let entry = Entry::decode(&bytes);
    assert!(
        matches!(entry, Some(Entry::Lookups(entry)) if entry.seq == 3 && entry.batch == [5, 6])
    );
}

#[test]
fn any_cut_in_the_tail_loses_only_what_was_cut() {
    let folder = tempfile::tempdir().unwrap();
    let (_, mut journal, _) = sequence_numbers(folder.path(), 0);
    let positions: Vec<u64> = (1..=4).map(|seq| write(&mut journal, seq)).collect();
    let path = journal.path.clone();
    drop(journal);
    let whole = std::fs::read(&path).unwrap();
    for cut in positions[1]..=positions[3] {
        std::fs::write(&path, &whole[..cut as usize]).unwrap();
        let (found, mut journal, recovery) = sequence_numbers(folder.path(), 0);
        let complete = positions
            .iter()
            .filter(|position| **position <= cut)
            .count() as u64;
        assert_eq!(found, (1..=complete).collect::<Vec<_>>(), "cut at {cut}");
        assert_eq!(recovery.torn_bytes, cut - positions[complete as usize - 1]);
        write(&mut journal, 99);
        drop(journal);
        let (found, ..) = sequence_numbers(folder.path(), 0);
        assert_eq!(found.last(), Some(&99), "appending after a cut at {cut}");
    }
}

#[test]
fn a_changed_byte_in_the_last_entry_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let (_, mut journal, _) = sequence_numbers(folder.path(), 0);
    let first = write(&mut journal, 1);
    write(&mut journal, 2);
    let path = journal.path.clone();
    drop(journal);
    let whole = std::fs::read(&path).unwrap();
    for at in first as usize..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x40;
        std::fs::write(&path, &damaged).unwrap();
        let (found, ..) = sequence_numbers(folder.path(), 0);
        assert_eq!(found, [1], "byte {at}");
        std::fs::write(&path, &whole).unwrap();
    }
}

#[test]
fn damage_in_a_complete_segment_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let (_, journal, _) = sequence_numbers(folder.path(), 0);
    let mut journal = journal.with_segment_bytes(60);
    for seq in 1..=4 {
        write(&mut journal, seq);
    }
    let (_, oldest) = journal.older[0].clone();
    drop(journal);
    let mut bytes = std::fs::read(&oldest).unwrap();
    bytes[20] ^= 1;
    std::fs::write(&oldest, bytes).unwrap();
    assert!(matches!(
        Journal::open(folder.path(), 0, 0, |_, _| ()),
        Err(JournalError::Damaged { position: 0, .. })
    ));
}

#[test]
fn releases_only_covered_segments() {
    let folder = tempfile::tempdir().unwrap();
    let (_, journal, _) = sequence_numbers(folder.path(), 0);
    let mut journal = journal.with_segment_bytes(100);
    let positions: Vec<u64> = (1..=20).map(|seq| write(&mut journal, seq)).collect();
    let before = journal.bytes();
    assert_eq!(journal.release(positions[0] - 1).unwrap(), 0);
    assert!(journal.release(positions[11]).unwrap() > 0);
    assert!(journal.bytes() < before);
    drop(journal);
    let (found, mut journal, recovery) = sequence_numbers(folder.path(), positions[11]);
    assert_eq!(found, (13..=20).collect::<Vec<_>>());
    assert_eq!(recovery.missing_bytes, 0);
    journal.release(positions[19]).unwrap();
    assert_eq!(
        journal.release(u64::MAX).unwrap(),
        0,
        "the segment being written stays"
    );
    drop(journal);
    let (found, ..) = sequence_numbers(folder.path(), positions[19]);
    assert!(found.is_empty());
}

#[test]
fn positions_go_on_when_the_files_are_gone() {
    let folder = tempfile::tempdir().unwrap();
    let (found, mut journal, _) = sequence_numbers(folder.path(), 5_000);
    assert!(found.is_empty());
    assert!(write(&mut journal, 1) > 5_000);
    drop(journal);
    let (found, _, recovery) = sequence_numbers(folder.path(), 5_000);
    assert_eq!((found, recovery.missing_bytes), (vec![1], 0));
}
