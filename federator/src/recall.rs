//! Looks in the store for halves that were given up: the other ends of such that came late, and what could not be asked for.
//!
//! A row has no column for what its half is looked for by, and needs none: rows are in the order of time, more or less, so that few
//! are read to compute it for those that were opened at about one time.

use std::collections::{HashMap, HashSet};

use duckdb::{Connection, params};
use weft_mesh::{Members, MeshKey, half_view, host_key, network_key};
use weft_wire::query::Unmatched;
use weft_wire::{HalfId, Protocol, Timestamp};

use crate::core::CoreConfig;
use crate::record::{AgentNumber, AgentRecord, CutOff, Found, Row, Side, Sought, code};
use crate::store::{Readers, StoreError, read, schema};

/// Two ends of one connection are opened within this of each other, in microseconds: a round trip, and clocks that differ.
const WINDOW_US: i64 = 60_000_000;
/// A search's windows are read in steps of this: as much is in memory at a time.
const STEP_US: i64 = 10_000_000;
/// Rows read in one step of what could not be asked for.
const PAGE: usize = 20_000;
/// Halves in one journal entry: with owners of some hundred bytes far below what an entry may be.
const ENTRY: usize = 256;
/// One that was found is not given again so soon, in microseconds: what was written of it since may not be in the store yet.
const AGAIN_US: i64 = 60_000_000;
/// How rows of halves that were given up are marked.
const GIVEN_UP: [Unmatched; 2] = [Unmatched::NoPartner, Unmatched::NoFingerprint];

/// See the module.
pub struct Recaller {
    readers: Readers,
    key: MeshKey,
    name: String,
    members: Members,
    given: HashMap<HalfId, Timestamp>,
    now: Timestamp,
}

impl Recaller {
    /// For a federator's store.
    pub fn new(config: &CoreConfig, readers: Readers) -> Self {
        let peers = config.mesh.iter().flat_map(|(peers, _)| peers.clone());
        Self {
            readers,
            key: config.key(),
            name: config.name.clone(),
            members: Members::new(peers.chain([config.name.clone()])),
            given: HashMap::new(),
            now: Timestamp::default(),
        }
    }

    /// Gives what is found to `take`, as long as that says that it goes on.
    pub fn look(
        &mut self,
        now: Timestamp,
        sought: &Sought,
        mut take: impl FnMut(Vec<Found>) -> bool,
    ) -> Result<(), StoreError> {
        self.now = now;
        self.given
            .retain(|_, at| now.0.saturating_sub(at.0) < AGAIN_US);
        let connection = self.readers.connection()?;
        let agents = read::agents(&connection)?
            .into_iter()
            .filter(|(_, agent)| agent.key.is_some() && agent.federator == self.name)
            .map(|(number, agent)| (number, AgentRecord::clone(&agent)))
            .collect();
        let search = Search { connection, agents };
        self.recalled(&search, sought, &mut take)?;
        self.returned(&search, sought, &mut take)
    }

    fn recalled(
        &mut self,
        search: &Search,
        sought: &Sought,
        take: &mut impl FnMut(Vec<Found>) -> bool,
    ) -> Result<(), StoreError> {
        let keys: HashSet<u64> = sought.recalls.iter().map(|one| one.routing_key).collect();
        for window in windows(sought.recalls.iter().map(|one| one.opened_at)) {
            if !self.recalled_from(search, &keys, window, take)? {
                break;
            }
        }
        Ok(())
    }

    /// Whether to go on.
    fn recalled_from(
        &mut self,
        search: &Search,
        keys: &HashSet<u64>,
        window: (i64, i64),
        take: &mut impl FnMut(Vec<Found>) -> bool,
    ) -> Result<bool, StoreError> {
        for (from, to) in search.steps(window)? {
            let rows = search.given_up(
                "opened_at >= make_timestamp(?) AND opened_at < make_timestamp(?)",
                params![from, to],
            )?;
            let wanted = |owners: &_, side: &Side| {
                let known = search.routing_keys(&self.key, owners, side);
                known.iter().any(|key| keys.contains(key))
            };
            let found = search.select(&rows, true, wanted)?;
            if !self.give(found, take) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn returned(
        &mut self,
        search: &Search,
        sought: &Sought,
        take: &mut impl FnMut(Vec<Found>) -> bool,
    ) -> Result<(), StoreError> {
        // Federators that nobody named become known when they are first heard of.
        let known = (0..self.members.len()).map(|at| self.members.name(at).to_owned());
        self.members = Members::new(known.chain(sought.returned.iter().cloned()));
        let peers: HashSet<usize> = sought
            .returned
            .iter()
            .filter_map(|peer| self.members.index(peer))
            .collect();
        let mut after = (i64::MIN, 0);
        while !peers.is_empty() {
            let bits = CutOff::OWNER | CutOff::HOME;
            let rows = search.given_up(
                &format!(
                    "exchange & {bits} != 0 AND (epoch_us(opened_at), id) > (?, ?)
                     ORDER BY epoch_us(opened_at), id LIMIT {PAGE}"
                ),
                params![after.0, after.1],
            )?;
            let Some(last) = rows.last() else { break };
            after = (last.opened_at().0, last.id().0);
            let cut_off: HashMap<HalfId, CutOff> =
                rows.iter().map(|row| (row.id(), row.cut_off)).collect();
            let wanted = |owners: &_, side: &Side| {
                let bits = cut_off.get(&side.half.id).map_or(0, |cut| cut.0);
                let known = search.routing_keys(&self.key, owners, side);
                let mut owners = known.iter().map(|key| self.members.rendezvous(*key));
                bits & CutOff::HOME != 0 || owners.any(|owner| peers.contains(&owner))
            };
            let found = search.select(&rows, false, wanted)?;
            if !self.give(found, take) {
                break;
            }
        }
        Ok(())
    }

    fn give(&mut self, found: Vec<Found>, take: &mut impl FnMut(Vec<Found>) -> bool) -> bool {
        let now = self.now;
        let mut fresh = found
            .into_iter()
            .filter(|one| self.given.insert(one.half.id, now).is_none())
            .peekable();
        while fresh.peek().is_some() {
            if !take(fresh.by_ref().take(ENTRY).collect()) {
                return false;
            }
        }
        true
    }
}

/// One search: a connection of its own, and who may have seen what is sought.
struct Search {
    connection: Connection,
    agents: HashMap<AgentNumber, AgentRecord>,
}

type Owners = HashMap<u32, std::sync::Arc<weft_wire::Owner>>;

impl Search {
    /// Of a window, the steps in which anything was given up. That costs three narrow columns: when an agent comes back that was away
    /// for long, most of what it tells is sought, and there is nothing to find, because the other ends are only a little behind.
    fn steps(&self, (from, to): (i64, i64)) -> Result<Vec<(i64, i64)>, StoreError> {
        let [no_partner, no_fingerprint] =
            GIVEN_UP.map(|reason| code::of(&code::UNMATCHED, &reason));
        let mut statement = self.connection.prepare(&format!(
            "SELECT DISTINCT epoch_us(opened_at) // {STEP_US} AS step FROM connections_done
             WHERE opened_at >= make_timestamp(?) AND opened_at < make_timestamp(?)
                 AND fact.unmatched IN ({no_partner}, {no_fingerprint}) AND fact.protocol = {} ORDER BY step",
            Protocol::Tcp as u8,
        ))?;
        let steps = statement.query_map(params![from, to], |row| row.get::<_, i64>(0))?;
        let bounds = steps.map(|step| {
            let begins = step?.saturating_mul(STEP_US);
            Ok((begins.max(from), begins.saturating_add(STEP_US).min(to)))
        });
        bounds.collect()
    }

    /// Settled rows of one end that was given up. What a row has of UDP is not enough to look for.
    fn given_up(
        &self,
        condition: &str,
        params: impl duckdb::Params,
    ) -> Result<Vec<Row>, StoreError> {
        let [no_partner, no_fingerprint] =
            GIVEN_UP.map(|reason| code::of(&code::UNMATCHED, &reason));
        let sql = format!(
            "SELECT * FROM {} WHERE unmatched IN ({no_partner}, {no_fingerprint}) AND protocol = {} AND {condition}",
            schema::DONE,
            Protocol::Tcp as u8,
        );
        read::rows(&self.connection, &sql, params)
    }

    fn select(
        &self,
        rows: &[Row],
        asked_for: bool,
        wanted: impl Fn(&Owners, &Side) -> bool,
    ) -> Result<Vec<Found>, StoreError> {
        // Only the addresses of some need their owners to be looked for, by the namespace; but those are few.
        let unknown = rows
            .iter()
            .flat_map(Row::sides)
            .filter(|side| is_bare(side));
        let owners = read::owners(&self.connection, unknown.map(|side| side.half.owner))?;
        let sides: Vec<&Side> = rows
            .iter()
            .flat_map(Row::sides)
            .filter(|side| self.agents.contains_key(&side.agent) && wanted(&owners, side))
            .collect();
        let owners = read::owners(&self.connection, sides.iter().map(|side| side.half.owner))?;
        let names = read::names(&self.connection, sides.iter().map(|side| side.half.name))?;
        Ok(sides
            .iter()
            .map(|side| Found {
                agent: side.agent,
                half: side.half,
                owner: owners
                    .get(&side.half.owner)
                    .map(|owner| weft_wire::Owner::clone(owner))
                    .unwrap_or_default(),
                name: names
                    .get(&side.half.name)
                    .map(|name| weft_wire::PeerName::clone(name)),
                asked_for,
            })
            .collect())
    }

    /// Under each key of the mesh.
    fn routing_keys(&self, key: &MeshKey, owners: &Owners, side: &Side) -> Vec<u64> {
        let Some(agent) = self.agents.get(&side.agent) else {
            return Vec::new();
        };
        let netns = owners.get(&side.half.owner).map_or(0, |owner| owner.netns);
        let network = network_key(&agent.federator, &agent.info.site);
        let host = host_key(&agent.federator, &agent.info.name, netns);
        let view = half_view(&side.half, network, host);
        key.all_keys(&view).map(|keys| keys.routing).collect()
    }
}

/// Whether a half is looked for by its addresses.
fn is_bare(side: &Side) -> bool {
    side.half.fingerprint == weft_wire::Fingerprint::Unknown
}

/// Times around these, in order, without overlap.
fn windows(times: impl Iterator<Item = Timestamp>) -> Vec<(i64, i64)> {
    let mut times: Vec<i64> = times.map(|at| at.0).collect();
    times.sort_unstable();
    let mut windows: Vec<(i64, i64)> = Vec::new();
    for at in times {
        let (from, to) = (at.saturating_sub(WINDOW_US), at.saturating_add(WINDOW_US));
        match windows.last_mut() {
            Some((_, end)) if *end >= from => *end = to,
            _ => windows.push((from, to)),
        }
    }
    windows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_cover_what_is_near_once() {
        let at = |seconds: i64| Timestamp(seconds * 1_000_000);
        let span = |from, to| (at(from).0, at(to).0);
        assert_eq!(windows([at(100)].into_iter()), [span(40, 160)]);
        let two = windows([at(1000), at(100), at(130)].into_iter());
        assert_eq!(two, [span(40, 190), span(940, 1060)]);
    }
}
