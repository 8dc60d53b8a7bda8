//! Weft's answer against the truth.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::AddAssign;

use crate::answer::{Row, RowEnd};
use crate::truth::{Connection, End};

/// Examples of what is wrong that are kept for the output.
const EXAMPLES: usize = 8;

/// How well the answer agrees with the truth.
#[derive(Clone, Debug, Default)]
pub struct Score {
    /// Connections that really were.
    pub truth: usize,
    /// Of those, stitched by the answer, each counted once.
    pub right: usize,
    /// Rows that join two ends which never talked, or the same two once more.
    pub wrong: usize,
    /// Rows without a match.
    pub unmatched: usize,
    /// Right pairs with a process that is not the one at that end.
    pub process_wrong: usize,
    /// Right pairs with the name of a thread in place of its process's.
    pub thread_named: usize,
    /// Right pairs whose bytes are not those that the programs sent.
    pub bytes_wrong: usize,
    /// Right pairs whose rewriting is named wrongly.
    pub nat_wrong: usize,
    /// Right pairs with another evidence than the network allows.
    pub evidence_wrong: usize,
    /// Right pairs that are not closed.
    pub not_closed: usize,
    /// Examples.
    pub examples: Vec<String>,
}

/// Names of threads that make a program's sockets. Where a kernel has no call hooks and the process is gone before the agent
/// looks, its thread's name is all that is known.
const THREADS: [(&str, &str); 1] = [("isc-net-0000", "dig")];

/// Whether a process is named as it is called, or as its thread is.
pub fn is_named(name: &str, process: &str) -> bool {
    name == process || THREADS.contains(&(name, process))
}

/// What identifies one end: host, own address, peer's address.
type EndKey = (String, String, String);

impl Score {
    /// Compares rows with the truth.
    pub fn of(truth: &[Connection], rows: &[Row]) -> Self {
        let mut score = Self {
            truth: truth.len(),
            ..Self::default()
        };
        let by_ends: BTreeMap<_, _> = truth
            .iter()
            .map(|c| ((key(&c.client), key(&c.server)), c))
            .collect();
        let mut seen = BTreeSet::new();
        for row in rows {
            let (Some(client), Some(server), Some(_)) = (&row.client, &row.server, &row.matched)
            else {
                score.unmatched += 1;
                score.example(|| format!("unmatched {row:?}"));
                continue;
            };
            let ends = (row_key(client), row_key(server));
            match by_ends.get(&ends) {
                Some(connection) if seen.insert(ends) => {
                    score.right_pair(connection, row, client, server)
                }
                Some(_) => score.wrong_row("twice", row),
                None => score.wrong_row("never was", row),
            }
        }
        for (ends, _) in by_ends.iter().filter(|(ends, _)| !seen.contains(*ends)) {
            score.example(|| format!("missing {ends:?}"));
        }
        score
    }

    /// Right pairs among all that really were.
    pub fn recall(&self) -> f64 {
        ratio(self.right, self.truth)
    }

    /// Right pairs among all pairs of the answer.
    pub fn precision(&self) -> f64 {
        ratio(self.right, self.right + self.wrong)
    }

    /// Whether answer and truth are the same in every respect.
    pub fn is_perfect(&self) -> bool {
        self.right == self.truth
            && [
                self.wrong,
                self.unmatched,
                self.process_wrong,
                self.bytes_wrong,
            ]
            .iter()
            .all(|n| *n == 0)
            && [self.nat_wrong, self.evidence_wrong, self.not_closed]
                .iter()
                .all(|n| *n == 0)
    }

    fn right_pair(&mut self, truth: &Connection, row: &Row, client: &RowEnd, server: &RowEnd) {
        self.right += 1;
        let Some(matched) = &row.matched else { return };
        let name = |end: &RowEnd| {
            end.process
                .as_ref()
                .map(|process| process.name.clone())
                .unwrap_or_default()
        };
        let ends = [(client, &truth.client), (server, &truth.server)];
        let named = ends.map(|(end, truth)| is_named(&name(end), truth.process));
        let exactly = ends.map(|(end, truth)| name(end) == truth.process);
        self.thread_named += usize::from(named == [true; 2] && exactly != named);
        let checks = [
            (named == [true; 2], 0),
            (bytes_agree(truth, client, server), 1),
            (matched.nat == truth.nat(), 2),
            (matched.evidence == truth.evidence, 3),
            (row.state == "closed", 4),
        ];
        for (_, which) in checks.iter().filter(|(agrees, _)| !agrees) {
            let (counter, what) = match which {
                0 => (&mut self.process_wrong, "process"),
                1 => (&mut self.bytes_wrong, "bytes"),
                2 => (&mut self.nat_wrong, "rewriting"),
                3 => (&mut self.evidence_wrong, "evidence"),
                _ => (&mut self.not_closed, "state"),
            };
            *counter += 1;
            self.example(|| format!("{what}: {row:?} but {truth:?}"));
        }
    }

    fn wrong_row(&mut self, why: &str, row: &Row) {
        self.wrong += 1;
        self.example(|| format!("{why}: {row:?}"));
    }

    fn example(&mut self, text: impl FnOnce() -> String) {
        if self.examples.len() < EXAMPLES {
            self.examples.push(text());
        }
    }
}

impl AddAssign for Score {
    fn add_assign(&mut self, other: Self) {
        self.truth += other.truth;
        self.right += other.right;
        self.wrong += other.wrong;
        self.unmatched += other.unmatched;
        self.process_wrong += other.process_wrong;
        self.thread_named += other.thread_named;
        self.bytes_wrong += other.bytes_wrong;
        self.nat_wrong += other.nat_wrong;
        self.evidence_wrong += other.evidence_wrong;
        self.not_closed += other.not_closed;
        self.examples.extend(other.examples);
        self.examples.truncate(EXAMPLES);
    }
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (recall, precision) = (self.recall() * 100.0, self.precision() * 100.0);
        write!(
            f,
            "{} connections, recall {recall:.2} %, precision {precision:.2} %",
            self.truth
        )?;
        let faults = [
            (self.wrong, "wrong"),
            (self.unmatched, "rows unmatched"),
            (self.process_wrong, "with a wrong process"),
            (self.thread_named, "named after a thread"),
            (self.bytes_wrong, "with wrong bytes"),
            (self.nat_wrong, "with a wrong NAT"),
            (self.evidence_wrong, "with a wrong evidence"),
            (self.not_closed, "not closed"),
        ];
        faults
            .iter()
            .filter(|(count, _)| *count > 0)
            .try_for_each(|(count, what)| write!(f, ", {count} {what}"))
    }
}

fn bytes_agree(truth: &Connection, client: &RowEnd, server: &RowEnd) -> bool {
    (client.bytes_sent, client.bytes_received) == (truth.up, truth.down)
        && (server.bytes_sent, server.bytes_received) == (truth.down, truth.up)
}

fn key(end: &End) -> EndKey {
    (
        end.host.clone(),
        end.local.to_string(),
        end.remote.to_string(),
    )
}

fn row_key(end: &RowEnd) -> EndKey {
    (end.agent.clone(), end.local.clone(), end.remote.clone())
}

#[expect(
    clippy::cast_precision_loss,
    reason = "counts of a test, far below 2^52"
)]
fn ratio(part: usize, whole: usize) -> f64 {
    if whole == 0 {
        1.0
    } else {
        part as f64 / whole as f64
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn truth() -> Vec<Connection> {
        let end = |host: &str, process, local: &str, remote: &str| End {
            host: host.into(),
            process,
            local: local.parse().unwrap(),
            remote: remote.parse().unwrap(),
        };
        let one = |port: u16| Connection {
            client: end("a", "curl", &format!("10.0.0.2:{port}"), "203.0.113.2:80"),
            server: end("b", "nginx", "10.0.0.3:80", &format!("198.51.100.2:{port}")),
            up: 100,
            down: 900,
            evidence: "tcp-isn-pair",
        };
        vec![one(1001), one(1002)]
    }

    /// The row that agrees with a connection, but for what `change` does to it.
    fn row(connection: &Connection, change: impl FnOnce(&mut serde_json::Value)) -> Row {
        let end = |end: &End, sent: u64, received: u64| {
            json!({"agent": end.host, "workload": "w", "process": {"pid": 1, "name": end.process}, "local": end.local,
                   "remote": end.remote, "bytes_sent": sent, "bytes_received": received})
        };
        let mut value = json!({
            "id": "00", "state": "closed",
            "client": end(&connection.client, connection.up, connection.down),
            "server": end(&connection.server, connection.down, connection.up),
            "match": {"evidence": "tcp-isn-pair", "confidence": "exact", "nat": connection.nat()},
            "path": {"class": "cross-cloud", "unmatched": null},
        });
        change(&mut value);
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn agreement_is_perfect() {
        let truth = truth();
        let rows: Vec<_> = truth
            .iter()
            .map(|connection| row(connection, |_| ()))
            .collect();
        let score = Score::of(&truth, &rows);
        assert!(score.is_perfect(), "{score}");
        assert_eq!(
            score.to_string(),
            "2 connections, recall 100.00 %, precision 100.00 %"
        );
    }

    #[test]
    fn every_disagreement_is_counted_as_what_it_is() {
        let truth = truth();
        let with = |change: fn(&mut serde_json::Value)| {
            Score::of(&truth, &[row(&truth[0], change), row(&truth[1], |_| ())])
        };
        assert_eq!(
            with(|row| row["client"]["process"]["name"] = "sh".into()).process_wrong,
            1
        );
        assert_eq!(
            with(|row| row["server"]["bytes_sent"] = 901.into()).bytes_wrong,
            1
        );
        assert_eq!(
            with(|row| row["match"]["nat"] = json!(["source"])).nat_wrong,
            1
        );
        assert_eq!(
            with(|row| row["match"]["evidence"] = "tcp-client-isn".into()).evidence_wrong,
            1
        );
        assert_eq!(with(|row| row["state"] = "open".into()).not_closed, 1);
        let crossed = with(|row| row["server"]["remote"] = "198.51.100.2:1002".into());
        assert_eq!(
            (crossed.right, crossed.wrong, crossed.is_perfect()),
            (1, 1, false)
        );
        let unmatched = with(|row| row["match"] = serde_json::Value::Null);
        assert_eq!(
            (unmatched.right, unmatched.unmatched, unmatched.is_perfect()),
            (1, 1, false)
        );
    }

    #[test]
    fn the_same_connection_twice_is_wrong_once() {
        let truth = truth();
        let rows = [
            row(&truth[0], |_| ()),
            row(&truth[0], |_| ()),
            row(&truth[1], |_| ()),
        ];
        let score = Score::of(&truth, &rows);
        assert_eq!((score.right, score.wrong), (2, 1));
    }
}
