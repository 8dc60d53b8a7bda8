//! One answer of several federators'.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};

use weft_wire::HalfId;
use weft_wire::query::{Connection, HalfCounts, Reach};

/// Adds counts of another federator; every half is counted by its home only.
pub fn add_counts(to: &mut HalfCounts, more: &HalfCounts) {
    to.matched += more.matched;
    to.dropped += more.dropped;
    for (reason, count) in &more.unmatched {
        *to.unmatched.entry(*reason).or_default() += count;
    }
}

/// Who answered both of two questions that are one to the user: an answer without one's part of the second is not whole.
pub fn reached_twice(first: &mut Vec<Reach>, second: Vec<Reach>) {
    for again in second {
        match first
            .iter_mut()
            .find(|one| one.federator == again.federator)
        {
            Some(known) if known.reached => *known = again,
            Some(_) => {}
            None => first.push(again),
        }
    }
}

/// Each connection once, newest first, and whether the limit cut some off.
///
/// Two homes may both know a connection: the client's keeps the record. One may know already that two halves belong
/// together when the other does not: a half inside a stitched connection is not shown again alone.
pub fn connections(all: Vec<Connection>, limit: usize) -> (Vec<Connection>, bool) {
    let joined: HashSet<HalfId> = all
        .iter()
        .filter(|c| c.matched.is_some())
        .flat_map(|c| c.client.iter().chain(&c.server))
        .map(|end| end.half)
        .collect();
    let mut best: HashMap<HalfId, Connection> = HashMap::with_capacity(all.len());
    for connection in all {
        if connection.matched.is_none() && joined.contains(&connection.id) {
            continue;
        }
        match best.get(&connection.id) {
            Some(known) if rank(known) >= rank(&connection) => {}
            _ => drop(best.insert(connection.id, connection)),
        }
    }
    let mut list: Vec<Connection> = best.into_values().collect();
    list.sort_by_key(|c| (Reverse(c.opened_at), c.id));
    let truncated = list.len() > limit;
    list.truncate(limit);
    (list, truncated)
}

/// Of two records of one connection, the one that knows more.
fn rank(c: &Connection) -> (bool, bool, u64) {
    let bytes = c
        .client
        .iter()
        .chain(&c.server)
        .map(|end| end.bytes_sent / 2 + end.bytes_received / 2)
        .sum();
    (c.matched.is_some(), c.closed_at.is_some(), bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_wire::query::{Confidence, ConnectionState, Endpoint, Match, Path, PathClass};
    use weft_wire::{HalfState, Protocol, Site, Timestamp};

    fn end(half: u64) -> Endpoint {
        Endpoint {
            half: HalfId(half),
            agent: "a".into(),
            federator: "f".into(),
            site: Site::default(),
            workload: String::new(),
            process: None,
            container: None,
            pod: None,
            unit: None,
            escaped: false,
            sharers: Vec::new(),
            local: "10.0.0.1:1".into(),
            remote: "10.0.0.2:2".into(),
            bytes_sent: 0,
            bytes_received: 0,
            rtt_us: None,
            retransmits: 0,
            state: HalfState::Open,
            isn: None,
        }
    }

    #[test]
    fn who_failed_on_the_second_question_did_not_answer() {
        let reach = |name: &str, error: Option<&str>| Reach {
            federator: name.into(),
            reached: error.is_none(),
            error: error.map(str::to_owned),
        };
        let mut both = vec![
            reach("a", None),
            reach("b", None),
            reach("c", Some("at first")),
        ];
        let second = vec![
            reach("a", None),
            reach("b", Some("then")),
            reach("c", None),
            reach("d", None),
        ];
        reached_twice(&mut both, second);
        let expected = [
            reach("a", None),
            reach("b", Some("then")),
            reach("c", Some("at first")),
            reach("d", None),
        ];
        assert_eq!(both, expected);
    }

    fn connection(
        client: Option<u64>,
        server: Option<u64>,
        opened: i64,
        closed: bool,
    ) -> Connection {
        let both = client.is_some() && server.is_some();
        Connection {
            id: HalfId(client.or(server).unwrap()),
            protocol: Protocol::Tcp,
            opened_at: Timestamp(opened),
            closed_at: closed.then_some(Timestamp(opened + 1)),
            state: ConnectionState::Open,
            name: None,
            application: None,
            client: client.map(end),
            server: server.map(end),
            matched: both.then(|| Match {
                evidence: "tcp-isn-pair".into(),
                confidence: Confidence::Exact,
                nat: Vec::new(),
                checks: Vec::new(),
            }),
            path: Path {
                class: PathClass::Unknown,
                crosses: Vec::new(),
                via: Vec::new(),
                unmatched: None,
            },
        }
    }

    #[test]
    fn each_connection_is_shown_once() {
        let all = vec![
            connection(Some(1), Some(2), 10, false),
            connection(Some(1), Some(2), 10, true),
            connection(None, Some(2), 10, true),
            connection(Some(1), None, 10, true),
            connection(Some(3), None, 30, true),
            connection(None, Some(4), 20, true),
        ];
        let (list, truncated) = connections(all.clone(), 10);
        assert!(!truncated);
        assert_eq!(list.iter().map(|c| c.id.0).collect::<Vec<_>>(), [3, 4, 1]);
        assert!(list[2].matched.is_some() && list[2].closed_at.is_some());
        let (list, truncated) = connections(all, 2);
        assert_eq!((list.len(), truncated), (2, true));
    }
}
