//! The names of addresses on disk, so that the next agent knows what processes had looked up before it started.
//!
//! What is learnt is appended before the packets that told it are given back, so that no end of the agent loses it; what is learnt again
//! is not, and all is written anew now and then. A process is known by the same number in both agents, since it is made of its id and its
//! start; a file of another boot, or of an agent that numbers otherwise, is not read.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use weft_dns::Asker;
use weft_dns::cache::{Learnt, NameCache};
use weft_wire::Timestamp;

/// Version of what is written below.
const VERSION: u32 = 1;
/// Bytes after which all is written anew, and that are read at most; the names that are kept at most fill half of it.
const MAX_BYTES: u64 = 16 << 20;
/// How often all is written anew where something was learnt.
const REWRITE_INTERVAL: Duration = Duration::from_secs(60);

/// The file.
#[derive(Debug)]
pub struct Saved {
    path: PathBuf,
    header: String,
    /// Where it is appended to; `None` until all was written once, and after a failure.
    file: Option<File>,
    bytes: u64,
    /// Lines for the next append.
    new: String,
    /// Something was learnt that is not in the file.
    learnt: bool,
    rewritten: Instant,
    failing: bool,
    /// Times that it could not be written.
    pub failures: u64,
}

impl Saved {
    /// Of this boot. `probe` is something that two agents number alike if they number everything alike.
    pub fn new(path: &Path, boot: u64, probe: u64) -> Self {
        Self {
            path: path.into(),
            header: format!("weft-names {VERSION} {boot:x} {probe:x}"),
            file: None,
            bytes: 0,
            new: String::new(),
            learnt: false,
            rewritten: Instant::now(),
            failing: false,
            failures: 0,
        }
    }

    /// Teaches what the file holds. A file that cannot be read holds nothing; lines that are damaged are left out, and counted
    /// in what this returns beside those that were taken.
    pub fn read(&self, cache: &mut NameCache) -> (u64, u64) {
        let Ok(file) = File::open(&self.path) else {
            return (0, 0);
        };
        let mut lines = BufReader::new(file.take(MAX_BYTES)).split(b'\n');
        let header = lines.next().and_then(Result::ok);
        if header.as_deref() != Some(self.header.as_bytes()) {
            return (0, 0);
        }
        let (mut taken, mut damaged) = (0, 0);
        for line in lines.map_while(Result::ok) {
            match std::str::from_utf8(&line).ok().and_then(parse) {
                Some(learnt) => {
                    cache.relearn(&learnt);
                    taken += 1;
                }
                None => damaged += 1,
            }
        }
        (taken, damaged)
    }

    /// Something was learnt; `new` if the cache had not known it.
    pub fn note(&mut self, learnt: &Learnt, new: bool) {
        self.learnt = true;
        // After a failure all is written anew.
        if new && self.file.is_some() {
            line(&mut self.new, learnt);
        }
    }

    /// Brings the file up to date. A failure is logged once, counted, and harms nothing but the names after the next start.
    pub fn write(&mut self, cache: &NameCache) {
        let all = self.file.is_none()
            || self.bytes + self.new.len() as u64 > MAX_BYTES
            || (self.learnt && self.rewritten.elapsed() >= REWRITE_INTERVAL);
        if self.failing && self.rewritten.elapsed() < REWRITE_INTERVAL {
            return;
        }
        let written = if all {
            self.rewrite(cache)
        } else {
            self.append()
        };
        self.new.clear();
        if let Err(error) = &written {
            if !self.failing {
                tracing::warn!(path = %self.path.display(), %error, "names of addresses are not kept for the next start");
            }
            (self.file, self.rewritten) = (None, Instant::now());
            self.failures += 1;
        }
        self.failing = written.is_err();
    }

    fn append(&mut self) -> io::Result<()> {
        if let Some(file) = self.file.as_mut().filter(|_| !self.new.is_empty()) {
            file.write_all(self.new.as_bytes())?;
            self.bytes += self.new.len() as u64;
        }
        Ok(())
    }

    /// Beside the old file first: whoever is killed meanwhile leaves the old one whole.
    fn rewrite(&mut self, cache: &NameCache) -> io::Result<()> {
        let beside = self.path.with_extension("new");
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut out = BufWriter::new(options.open(&beside)?);
        let mut text = format!("{}\n", self.header);
        let mut bytes = text.len() as u64;
        out.write_all(text.as_bytes())?;
        for learnt in cache.entries() {
            text.clear();
            line(&mut text, &learnt);
            bytes += text.len() as u64;
            out.write_all(text.as_bytes())?;
        }
        let file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
        fs::rename(&beside, &self.path)?;
        (self.file, self.bytes, self.learnt) = (Some(file), bytes, false);
        self.rewritten = Instant::now();
        Ok(())
    }
}

fn line(out: &mut String, learnt: &Learnt) {
    if learnt.name.contains(char::is_control) {
        return;
    }
    let Asker { process, group } = learnt.asker;
    let [first, middle, last] = learnt.at.map(|at| at.0);
    // Writing to a string does not fail.
    let _ = writeln!(
        out,
        "{process:x} {group:x} {} {} {first} {middle} {last} {}",
        learnt.address, learnt.ttl_s, learnt.name
    );
}

fn parse(line: &str) -> Option<Learnt> {
    let mut words = line.splitn(8, ' ');
    let mut word = || words.next();
    let process = u64::from_str_radix(word()?, 16).ok()?;
    let group = u64::from_str_radix(word()?, 16).ok()?;
    let address: IpAddr = word()?.parse().ok()?;
    let ttl_s = word()?.parse().ok()?;
    let mut at = [Timestamp(0); 3];
    for at in &mut at {
        *at = Timestamp(word()?.parse().ok()?);
    }
    let name = word().filter(|name| !name.is_empty())?;
    Some(Learnt {
        asker: Asker { process, group },
        name: name.into(),
        address,
        ttl_s,
        at,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE_US: i64 = 600_000_000;

    fn learnt(process: u64, name: &str, last: u8, at: i64) -> Learnt {
        Learnt {
            asker: Asker { process, group: 9 },
            name: name.into(),
            address: IpAddr::from([10, 0, 0, last]),
            ttl_s: 60,
            at: [Timestamp(at); 3],
        }
    }

    fn told(saved: &mut Saved, cache: &mut NameCache, learnt: &Learnt) {
        let new = cache.relearn(learnt);
        saved.note(learnt, new);
    }

    fn names(path: &Path, boot: u64) -> (NameCache, (u64, u64)) {
        let mut cache = NameCache::new(100, GRACE_US);
        let read = Saved::new(path, boot, 7).read(&mut cache);
        (cache, read)
    }

    #[test]
    fn what_was_learnt_is_known_to_the_next_agent_of_the_boot() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("names");
        let (mut cache, read) = names(&path, 1);
        assert_eq!(read, (0, 0));
        let mut saved = Saved::new(&path, 1, 7);
        told(&mut saved, &mut cache, &learnt(3, "a.example", 1, 10));
        saved.write(&cache);
        // Appended: new, and known already.
        told(&mut saved, &mut cache, &learnt(4, "b c.example", 2, 20));
        told(&mut saved, &mut cache, &learnt(3, "a.example", 1, 30));
        saved.write(&cache);
        let (mut next, read) = names(&path, 1);
        assert_eq!(read, (2, 0));
        let asker = |process| Asker { process, group: 0 };
        let mut named = |process, last: u8| {
            let address = IpAddr::from([10, 0, 0, last]);
            let named = next.name_for(asker(process), address, Timestamp(100));
            named.map(|named| (named.name.to_string(), named.before_us))
        };
        assert_eq!(named(3, 1), Some(("a.example".into(), 90)));
        assert_eq!(named(4, 2), Some(("b c.example".into(), 80)));
        assert_eq!(names(&path, 2).1, (0, 0), "another boot");
        // All anew: what was learnt again has its time.
        Saved::new(&path, 1, 7).write(&cache);
        let (mut next, _) = names(&path, 1);
        let address = IpAddr::from([10, 0, 0, 1]);
        let named = next.name_for(asker(3), address, Timestamp(100)).unwrap();
        assert_eq!(named.before_us, 70);
    }

    #[test]
    fn damaged_lines_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("names");
        let mut cache = NameCache::new(100, GRACE_US);
        let mut saved = Saved::new(&path, 1, 7);
        told(&mut saved, &mut cache, &learnt(3, "a.example", 1, 10));
        told(&mut saved, &mut cache, &learnt(3, "two\nlines", 2, 10));
        saved.write(&cache);
        let mut text = fs::read(&path).unwrap();
        text.extend(b"3 9 10.0.0.9 60 1 1\n\xff\n3 9 10.0.0.1 60 1 1 1 half");
        fs::write(&path, text).unwrap();
        assert_eq!(names(&path, 1).1, (2, 2));
    }

    #[test]
    fn a_file_that_cannot_be_written_is_counted_and_tried_again_later() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("no such directory").join("names");
        let mut cache = NameCache::new(100, GRACE_US);
        let mut saved = Saved::new(&path, 1, 7);
        for _ in 0..3 {
            told(&mut saved, &mut cache, &learnt(3, "a.example", 1, 10));
            saved.write(&cache);
        }
        assert_eq!(saved.failures, 1);
        fs::create_dir(path.parent().unwrap()).unwrap();
        saved.rewritten -= REWRITE_INTERVAL;
        saved.write(&cache);
        assert_eq!(names(&path, 1).1, (1, 0));
    }
}
