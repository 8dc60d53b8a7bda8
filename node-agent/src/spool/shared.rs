//! The spools between the capture that writes and the uplink that reads: one for each federator that the agent reports to.

use std::io;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::Notify;
use weft_wire::federation::HomeAddress;
use weft_wire::{HalfBatch, LookupBatch};

use super::homes::{Home, Homes, MAX_KNOWN};
use super::{Spool, SpoolError, SpoolLimits, SpoolTotals};
use crate::sink::BatchSink;

/// Spools with two users. Cheap to clone.
#[derive(Clone, Debug)]
pub struct SharedSpool {
    spools: Arc<Mutex<Spools>>,
    /// For each home: something was appended.
    appended: Arc<[Notify; MAX_KNOWN]>,
}

#[derive(Debug)]
struct Spools {
    /// By home; never empty.
    list: Vec<Spool>,
    homes: Homes,
    /// Where further ones are made; without it there is only one.
    place: Option<Place>,
}

#[derive(Clone, Debug)]
struct Place {
    data_dir: PathBuf,
    limits: SpoolLimits,
}

impl Place {
    /// The first has the name that it had when there was only one.
    fn folder(&self, home: Home) -> PathBuf {
        match home {
            0 => self.data_dir.join("spool"),
            home => self.data_dir.join(format!("spool-{home}")),
        }
    }

    fn homes(&self) -> PathBuf {
        self.data_dir.join("homes.json")
    }
}

/// One of the spools, for a moment.
#[derive(Debug)]
pub struct Locked<'a> {
    spools: MutexGuard<'a, Spools>,
    home: Home,
}

impl Deref for Locked<'_> {
    type Target = Spool;

    fn deref(&self) -> &Spool {
        &self.spools.list[self.home]
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut Spool {
        &mut self.spools.list[self.home]
    }
}

impl SharedSpool {
    /// Shares a spool, of an agent that has one home and no other.
    pub fn new(spool: Spool) -> Self {
        Self::of(vec![spool], Homes::new(""), None)
    }

    fn of(list: Vec<Spool>, homes: Homes, place: Option<Place>) -> Self {
        Self {
            spools: Arc::new(Mutex::new(Spools { list, homes, place })),
            appended: Arc::new(std::array::from_fn(|_| Notify::new())),
        }
    }

    /// Opens the spools of all federators that the agent reported to. `federator` is the configuration's.
    pub fn open(
        data_dir: &Path,
        limits: SpoolLimits,
        federator: &str,
        clock_us: u64,
    ) -> Result<Self, SpoolError> {
        let place = Place {
            data_dir: data_dir.into(),
            limits,
        };
        let homes = Homes::load(&place.homes(), federator);
        let spools = (0..homes.known.len()).map(|home| {
            // Where one fails, nothing is captured that could not be kept.
            Spool::open(&place.folder(home), limits, clock_us)
        });
        let list = spools.collect::<Result<_, _>>()?;
        Ok(Self::of(list, homes, Some(place)))
    }

    fn spools(&self) -> MutexGuard<'_, Spools> {
        // A panic while it was held leaves at worst an entry that the next append overwrites.
        self.spools
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The spool of what is opened now, for a moment: its calls are short (page cache, no network).
    pub fn lock(&self) -> Locked<'_> {
        let spools = self.spools();
        let home = spools.homes.current();
        Locked { spools, home }
    }

    /// The spool of one home. Of one that is not known, the first.
    pub fn lock_of(&self, home: Home) -> Locked<'_> {
        let spools = self.spools();
        let home = if home < spools.list.len() { home } else { 0 };
        Locked { spools, home }
    }

    /// Where connections belong.
    pub fn homes(&self) -> Homes {
        self.spools().homes.clone()
    }

    /// What all spools together hold and have lost.
    pub fn totals(&self) -> SpoolTotals {
        let spools = self.spools();
        let mut sum = SpoolTotals::default();
        for totals in spools.list.iter().map(Spool::totals) {
            sum.bytes += totals.bytes;
            sum.rows += totals.rows;
            sum.rows_dropped += totals.rows_dropped;
            sum.rows_refused += totals.rows_refused;
            sum.segments_dropped += totals.segments_dropped;
            sum.torn_bytes += totals.torn_bytes;
        }
        sum
    }

    /// The home that was reached for the first time says its name.
    pub fn named(&self, home: Home, name: &str) -> io::Result<()> {
        self.change(|homes| {
            let before = homes.known.clone();
            homes.named(home, name);
            homes.known != before
        })
    }

    /// The home tells of the region's federators.
    pub fn tell(&self, told: &[HomeAddress]) -> io::Result<()> {
        self.change(|homes| homes.tell(told))
    }

    fn change(&self, change: impl FnOnce(&mut Homes) -> bool) -> io::Result<()> {
        let mut spools = self.spools();
        let changed = change(&mut spools.homes);
        match &spools.place {
            Some(place) if changed => spools.homes.store(&place.homes()),
            _ => Ok(()),
        }
    }

    /// What is opened from now on is reported to this federator. It is so on the disk when this returns, or nothing has changed;
    /// `false` when there is no room for another.
    pub fn move_to(&self, name: &str, address: &str, now_us: i64) -> io::Result<bool> {
        let mut spools = self.spools();
        let Some(place) = spools.place.clone() else {
            return Ok(false);
        };
        let mut homes = spools.homes.clone();
        let Some(home) = homes.move_to(name, address, now_us) else {
            return Ok(false);
        };
        if home >= spools.list.len() {
            let clock_us = u64::try_from(now_us).unwrap_or(0);
            let spool = Spool::open(&place.folder(home), place.limits, clock_us);
            spools.list.push(spool.map_err(io::Error::other)?);
        }
        homes.store(&place.homes())?;
        spools.homes = homes;
        Ok(true)
    }

    /// Writes to the disk what a power loss could still take. That takes the time the disk takes: the spool is not locked meanwhile.
    pub fn sync(&self) -> Result<(), SpoolError> {
        let mut files = Vec::new();
        for spool in &mut self.spools().list {
            files.extend(spool.unsynced()?);
        }
        files.iter().try_for_each(|file| {
            file.sync_data().map_err(|source| SpoolError::Io {
                path: "the spool".into(),
                source,
            })
        })
    }

    /// Waits until something was appended for this home since the last wait.
    pub async fn appended(&self, home: Home) {
        match self.appended.get(home) {
            Some(appended) => appended.notified().await,
            None => std::future::pending().await,
        }
    }

    fn wake(&self, home: Home) {
        if let Some(appended) = self.appended.get(home) {
            appended.notify_one();
        }
    }
}

impl BatchSink for SharedSpool {
    fn append(&mut self, batch: &HalfBatch, ring_position: u64) -> io::Result<()> {
        let mut spools = self.spools();
        let current = spools.homes.current();
        let mut woken = vec![current];
        if spools.homes.is_one() {
            spools.list[current]
                .append(batch, ring_position)
                .map_err(io::Error::other)?;
        } else {
            let mut parts: [Vec<_>; MAX_KNOWN] = Default::default();
            for half in &batch.halves {
                let home = spools.homes.of(half.opened_at.0);
                parts[home.min(MAX_KNOWN - 1)].push(*half);
            }
            let frame = HalfBatch {
                halves: Vec::new(),
                ..batch.clone()
            };
            let part = |halves| HalfBatch {
                halves,
                ..frame.clone()
            };
            let own = std::mem::take(&mut parts[current]);
            // The present home's comes last, for the ring has been taken up to its new position when all are written. Killed in
            // between, the others' rows come once more, to the same homes, which know them by their ids.
            for (home, halves) in parts.into_iter().enumerate() {
                let Some(spool) = spools.list.get_mut(home).filter(|_| !halves.is_empty()) else {
                    continue;
                };
                let stands = spool.last_ring_position().unwrap_or(0);
                spool
                    .append(&part(halves), stands)
                    .map_err(io::Error::other)?;
                woken.push(home);
            }
            spools.list[current]
                .append(&part(own), ring_position)
                .map_err(io::Error::other)?;
        }
        drop(spools);
        woken.into_iter().for_each(|home| self.wake(home));
        Ok(())
    }

    /// Positions of a later ring are higher, so the highest is the last.
    fn last_ring_position(&self) -> Option<u64> {
        let spools = self.spools();
        let positions = spools.list.iter().map(Spool::last_ring_position);
        positions.max().flatten()
    }

    /// Lookups have no life: they go to the present home.
    fn append_lookups(&mut self, batch: &LookupBatch, position: u64) -> io::Result<()> {
        let mut spools = self.spools();
        let current = spools.homes.current();
        spools.list[current]
            .append_lookups(batch, position)
            .map_err(io::Error::other)?;
        drop(spools);
        self.wake(current);
        Ok(())
    }

    fn last_lookup_position(&self) -> Option<u64> {
        let spools = self.spools();
        let positions = spools.list.iter().map(Spool::last_lookup_position);
        positions.max().flatten()
    }
}

#[cfg(test)]
mod tests {
    use weft_wire::Timestamp;

    use super::*;
    use crate::spool::tests::batch;

    fn cookies(spool: &SharedSpool, home: Home) -> Vec<u64> {
        let mut spool = spool.lock_of(home);
        let mut cookies = Vec::new();
        while let Some(entry) = spool.next_entry().unwrap() {
            let decoded = weft_wire::batch::decode(&entry.batch, weft_wire::AgentKey(1)).unwrap();
            cookies.extend(decoded.halves.iter().map(|half| half.cookie));
        }
        cookies
    }

    #[test]
    fn each_half_goes_to_the_home_of_its_opening_also_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let open = || SharedSpool::open(folder.path(), SpoolLimits::default(), "a:1", 5).unwrap();
        let mut spool = open();
        let opened = |at: i64, first: u64| {
            let mut batch = batch(first, 2);
            for half in &mut batch.halves {
                half.opened_at = Timestamp(at);
                half.seen_at = Timestamp(at);
                half.closed_at = None;
            }
            batch
        };
        spool.named(0, "a").unwrap();
        spool.append(&opened(10, 0), 1).unwrap();
        assert!(spool.move_to("b", "b:1", 100).unwrap());
        let mut mixed = opened(10, 0);
        mixed.halves.extend(opened(200, 7).halves);
        spool.append(&mixed, 2).unwrap();
        drop(spool);
        let mut spool = open();
        assert_eq!(spool.last_ring_position(), Some(2));
        spool.append(&opened(10, 0), 3).unwrap();
        assert_eq!(cookies(&spool, 0), [0, 1, 0, 1, 0, 1]);
        assert_eq!(cookies(&spool, 1), [7, 8]);
        // The home's part is empty: the position goes with it all the same.
        assert_eq!(spool.lock_of(1).last_ring_position(), Some(3));
        assert_eq!(spool.lock_of(0).last_ring_position(), Some(1));
        assert_eq!(spool.homes().name(spool.homes().current()), "b");
    }
}
