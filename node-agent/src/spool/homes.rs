//! Which federator a half is reported to: the one that was the agent's home when the connection was opened, for as long as it
//! lasts. So two federators never have the same half, and nothing needs to be handed over between them.
//!
//! Pure but for [`Homes::load`] and [`Homes::store`].

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use weft_wire::federation::{HomeAddress, MAX_HOMES};

/// Federators that an agent reported to and remembers; each has a spool of its own. With as many, it moves to no further one.
pub const MAX_KNOWN: usize = 8;
/// Moves that are remembered. Beyond it the oldest is forgotten: what was opened before it is reported to the home after it.
pub const MAX_MOVES: usize = 256;

/// A federator, by its place in [`Homes::known`]. It never changes.
pub type Home = usize;

/// A federator of the region.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// Empty until it was reached for the first time.
    pub name: String,
    /// `host:port`, as it was told; empty for the one that the configuration names.
    pub address: String,
}

/// Where connections belong, by the time when they were opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Homes {
    /// The configuration's federator, when this was written: another one there is a word of the operator.
    pub configured: String,
    /// In the order in which they became homes.
    pub known: Vec<Known>,
    /// Since when (in microseconds since 1970) which was home; ascending, never empty.
    moves: Vec<(i64, Home)>,
    /// What the home told of the region's federators, the one that this agent belongs to first.
    pub told: Vec<(String, String)>,
}

impl Homes {
    /// Of an agent that knows only what its configuration says.
    pub fn new(configured: &str) -> Self {
        Self {
            configured: configured.into(),
            known: vec![Known::default()],
            moves: vec![(i64::MIN, 0)],
            told: Vec::new(),
        }
    }

    /// What was stored; as new where nothing was, or nothing that makes sense.
    pub fn load(path: &Path, configured: &str) -> Self {
        let stored = fs::read(path).ok();
        let stored: Option<Self> = stored.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let sound = |homes: &Self| {
            !homes.known.is_empty()
                && homes.known.len() <= MAX_KNOWN
                && !homes.moves.is_empty()
                && homes
                    .moves
                    .iter()
                    .all(|(_, home)| *home < homes.known.len())
        };
        let Some(mut homes) = stored.filter(sound) else {
            return Self::new(configured);
        };
        if homes.configured != configured {
            homes.configured = configured.into();
            homes.told.clear();
        }
        homes
    }

    /// Stores it: whole or not at all, and on the disk when this returns.
    pub fn store(&self, path: &Path) -> io::Result<()> {
        let next = path.with_extension("next");
        let mut file = fs::File::create(&next)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.sync_all()?;
        fs::rename(&next, path)?;
        path.parent()
            .map_or(Ok(()), |folder| fs::File::open(folder)?.sync_all())
    }

    /// The home of what is opened now.
    pub fn current(&self) -> Home {
        self.moves.last().map_or(0, |(_, home)| *home)
    }

    /// The home of a connection.
    pub fn of(&self, opened_at: i64) -> Home {
        let after = self.moves.partition_point(|(since, _)| *since <= opened_at);
        // What is older than all that is remembered belongs to the oldest.
        let at = self.moves.get(after.saturating_sub(1));
        at.map_or(0, |(_, home)| *home)
    }

    /// Whether everything belongs to one home.
    pub fn is_one(&self) -> bool {
        self.moves.len() == 1
    }

    /// The home that was reached for the first time says its name.
    pub fn named(&mut self, home: Home, name: &str) {
        if let Some(known) = self.known.get_mut(home)
            && known.name.is_empty()
        {
            known.name = name.into();
        }
    }

    /// The home tells of the region; `true` if that is news.
    pub fn tell(&mut self, homes: &[HomeAddress]) -> bool {
        let homes = homes.iter().take(MAX_HOMES);
        let told: Vec<_> = homes
            .map(|home| (home.name.clone(), home.address.clone()))
            .collect();
        for (name, address) in &told {
            if let Some(known) = self.known.iter_mut().find(|known| known.name == *name) {
                known.address.clone_from(address);
            }
        }
        let news = told != self.told;
        self.told = told;
        news
    }

    /// What is opened from now on belongs to this federator; `None` when there is no room for another.
    pub fn move_to(&mut self, name: &str, address: &str, now: i64) -> Option<Home> {
        let home = match self.known.iter().position(|known| known.name == name) {
            Some(home) => home,
            None if self.known.len() < MAX_KNOWN => {
                self.known.push(Known {
                    name: name.into(),
                    address: address.into(),
                });
                self.known.len() - 1
            }
            None => return None,
        };
        if home == self.current() {
            return Some(home);
        }
        // A clock that was set back must not let an earlier home in again.
        let last = self.moves.last().map_or(i64::MIN, |(since, _)| *since);
        self.moves.push((now.max(last.saturating_add(1)), home));
        if self.moves.len() > MAX_MOVES {
            self.moves.remove(0);
        }
        Some(home)
    }

    /// Where to dial a home.
    pub fn address(&self, home: Home) -> &str {
        match self.known.get(home) {
            Some(known) if !known.address.is_empty() => &known.address,
            _ => &self.configured,
        }
    }

    /// Its name; empty until it was reached.
    pub fn name(&self, home: Home) -> &str {
        self.known.get(home).map_or("", |known| &known.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(name: &str) -> HomeAddress {
        HomeAddress {
            name: name.into(),
            address: format!("{name}.example:7443"),
        }
    }

    #[test]
    fn a_connection_has_one_home_for_life() {
        let mut homes = Homes::new("fed.example:7443");
        homes.named(0, "a");
        assert_eq!(
            (homes.of(i64::MIN), homes.of(5), homes.is_one()),
            (0, 0, true)
        );
        assert_eq!(homes.move_to("b", "b:1", 100), Some(1));
        assert_eq!(homes.move_to("a", "a:1", 200), Some(0));
        assert_eq!(
            homes.move_to("c", "c:1", 150),
            Some(2),
            "the clock was set back"
        );
        let of: Vec<Home> = [0, 99, 100, 199, 200, 201, 9_000]
            .map(|at| homes.of(at))
            .into();
        assert_eq!(of, [0, 0, 1, 1, 0, 2, 2]);
        assert_eq!(homes.current(), 2);
        assert_eq!(homes.move_to("c", "c:1", 300), Some(2));
        assert_eq!(homes.moves.len(), 4, "it is there already");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut homes = Homes::new("fed:1");
        homes.named(0, "a");
        for n in 0..2 * MAX_MOVES as i64 {
            homes.move_to(if n % 2 == 0 { "b" } else { "a" }, "x:1", n);
        }
        assert_eq!(homes.moves.len(), MAX_MOVES);
        for n in 0..MAX_KNOWN {
            homes.move_to(&format!("f{n}"), "x:1", 10_000 + n as i64);
        }
        assert_eq!(homes.known.len(), MAX_KNOWN);
        assert_eq!(homes.move_to("further", "x:1", 20_000), None);
    }

    #[test]
    fn it_is_the_same_after_a_restart_until_the_operator_says_otherwise() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("homes.json");
        let mut homes = Homes::load(&path, "a:1");
        homes.named(0, "a");
        assert!(homes.tell(&[address("b"), address("a")]));
        assert!(!homes.tell(&[address("b"), address("a")]));
        assert_eq!(homes.address(0), "a.example:7443");
        homes.move_to("b", "b.example:7443", 7);
        homes.store(&path).unwrap();
        assert_eq!(Homes::load(&path, "a:1"), homes);
        let other = Homes::load(&path, "c:1");
        assert!(other.told.is_empty() && other.current() == 1);
        fs::write(&path, b"{").unwrap();
        assert_eq!(Homes::load(&path, "a:1"), Homes::new("a:1"));
    }
}
