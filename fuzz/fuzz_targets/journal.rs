//! A segment of the federator's journal: what a crash left is cut off once, what is good is read again, and a whole entry of
//! another version of the program is left where it is.
//!
//! Random changes never pass the checksums. Where the first byte is odd, the rest is therefore taken as bodies of
//! entries, each after its length in one byte, and framed here.
#![no_main]

#[path = "../../federator/src/journal/mod.rs"]
#[allow(dead_code, unused_imports)]
mod journal;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use journal::{Entry, Journal, JournalError, Recovery};
use libfuzzer_sys::fuzz_target;

/// In memory: every opening makes its repairs durable.
static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    Path::new("/dev/shm").join(format!("weft-fuzz-journal-{}", std::process::id()))
});

fn frames(mut bodies: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some((length, rest)) = bodies.split_first() {
        let (body, rest) = rest.split_at(usize::from(*length).min(rest.len()));
        let mut crc = crc32fast::Hasher::new();
        crc.update(&(out.len() as u64).to_le_bytes());
        crc.update(body);
        out.extend_from_slice(&(body.len() as u32).to_le_bytes());
        out.extend_from_slice(&crc.finalize().to_le_bytes());
        out.extend_from_slice(body);
        bodies = rest;
    }
    out
}

/// `None`: there is an entry that this program does not know.
fn read() -> Option<(Vec<(u64, Entry)>, Recovery)> {
    let mut entries = Vec::new();
    let opened = Journal::open(&FOLDER, 0, 0, |position, entry| {
        entries.push((position, entry));
    });
    let (journal, recovery) = match opened {
        Err(JournalError::Damaged { .. }) => return None,
        opened => opened.expect("the last segment's damage is cut off"),
    };
    assert_eq!(journal.end(), entries.last().map_or(0, |(end, _)| *end));
    Some((entries, recovery))
}

fuzz_target!(|data: &[u8]| {
    let Some((mode, bytes)) = data.split_first() else {
        return;
    };
    let bytes = if mode % 2 == 1 {
        frames(bytes)
    } else {
        bytes.to_vec()
    };
    fs::create_dir_all(&*FOLDER).expect("memory has a file system");
    let file = FOLDER.join("0000000000000000.journal");
    fs::write(&file, &bytes).expect("memory is not full");
    if let Some((entries, recovery)) = read() {
        let end = entries.last().map_or(0, |(end, _)| *end);
        assert_eq!(end + recovery.torn_bytes, bytes.len() as u64);
        let (again, recovery) = read().expect("it was known before");
        assert_eq!(entries, again);
        assert_eq!(recovery.torn_bytes, 0);
    } else {
        assert_eq!(fs::read(&file).expect("it is there"), bytes);
    }
    fs::remove_dir_all(&*FOLDER).expect("it was made above");
});
