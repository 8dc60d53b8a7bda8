//! The pieces of an answer, put together and checked.

use weft_wire::Timestamp;
use weft_wire::query::{
    ChainLink, Completeness, Connection, DnsRow, FederatorHealth, HalfCounts, ReportRow, Response,
    SqlValue, Unmatched,
};

use crate::failure::Failure;
use crate::when::Window;
use crate::world::Received;

/// A whole answer, or as much of it as came before Ctrl-C.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The rows.
    pub rows: Rows,
    /// What of them goes on through a proxy, where that was asked too.
    pub chains: Vec<ChainLink>,
    /// What the answer rests on; `None` when it was interrupted.
    pub completeness: Option<Completeness>,
    /// The limit, or Ctrl-C, cut rows off.
    pub truncated: bool,
    /// The part of time asked about.
    pub window: Window,
    /// When it was asked.
    pub asked_at: Timestamp,
}

/// Rows of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Rows {
    /// Nothing came, so of what kind it would have been is not known.
    None,
    /// Connections.
    Connections(Vec<Connection>),
    /// Report rows.
    Report(Vec<ReportRow>),
    /// A table of any shape.
    Sql {
        /// Names.
        columns: Vec<String>,
        /// Cells.
        rows: Vec<Vec<SqlValue>>,
    },
    /// Federators.
    Health(Vec<FederatorHealth>),
    /// Rows of a report on lookups.
    Dns(Vec<DnsRow>),
}

impl Answer {
    /// Puts the pieces together. Pieces that contradict each other are the federator's fault.
    pub fn collect(
        received: Received,
        window: Window,
        asked_at: Timestamp,
    ) -> Result<Self, Failure> {
        let mut answer = Self {
            rows: Rows::None,
            chains: Vec::new(),
            completeness: None,
            truncated: received.interrupted,
            window,
            asked_at,
        };
        let mut ended = received.interrupted;
        for response in received.responses {
            match response {
                Response::Error(error) => return Err(Failure::query(&error)),
                Response::End {
                    completeness,
                    truncated,
                } => {
                    answer.completeness = Some(completeness);
                    answer.truncated |= truncated;
                    ended = true;
                }
                Response::Chains(links) => answer.chains.extend(links),
                rows => answer.rows.extend(rows)?,
            }
        }
        if ended {
            Ok(answer)
        } else {
            Err(Failure::protocol("it has no end"))
        }
    }

    /// How much of what was asked about the answer rests on, in percent, rounded down to two decimals.
    ///
    /// The part of the federators that answered, times the part of their halves that is settled: matched, known to have no
    /// partner, or never established. What is pending, ambiguous, without a fingerprint or dropped is not settled.
    pub fn percent_complete(&self) -> f64 {
        let Some(completeness) = &self.completeness else {
            return 0.0;
        };
        let reached = completeness.federators.iter().filter(|f| f.reached).count() as u64;
        let part = |of: u64, all: u64| {
            if all == 0 {
                1.0
            } else {
                of as f64 / all as f64
            }
        };
        let (settled, all) = settled(&completeness.halves);
        let percent =
            100.0 * part(reached, completeness.federators.len() as u64) * part(settled, all);
        (percent * 100.0).floor() / 100.0
    }
}

fn settled(halves: &HalfCounts) -> (u64, u64) {
    let reason = |reason: Unmatched| halves.unmatched.get(&reason).copied().unwrap_or(0);
    let unmatched = halves
        .unmatched
        .values()
        .fold(0_u64, |sum, n| sum.saturating_add(*n));
    let settled = halves
        .matched
        .saturating_add(reason(Unmatched::NoPartner))
        .saturating_add(reason(Unmatched::NotEstablished));
    (
        settled,
        halves
            .matched
            .saturating_add(unmatched)
            .saturating_add(halves.dropped),
    )
}

impl Rows {
    fn extend(&mut self, piece: Response) -> Result<(), Failure> {
        match (&mut *self, piece) {
            (Self::Connections(rows), Response::Connections(more)) => rows.extend(more),
            (Self::Report(rows), Response::Report(more)) => rows.extend(more),
            (Self::Health(rows), Response::Health(more)) => rows.extend(more),
            (Self::Dns(rows), Response::Dns(more)) => rows.extend(more),
            (Self::Sql { columns, rows }, Response::SqlRows(more)) => {
                if more.iter().any(|row| row.len() != columns.len()) {
                    return Err(Failure::protocol(
                        "a row has more or fewer cells than there are columns",
                    ));
                }
                rows.extend(more);
            }
            (Self::None, Response::Connections(rows)) => *self = Self::Connections(rows),
            (Self::None, Response::Report(rows)) => *self = Self::Report(rows),
            (Self::None, Response::Health(rows)) => *self = Self::Health(rows),
            (Self::None, Response::Dns(rows)) => *self = Self::Dns(rows),
            (Self::None, Response::SqlColumns(columns)) => {
                *self = Self::Sql {
                    columns,
                    rows: Vec::new(),
                }
            }
            _ => return Err(Failure::protocol("its pieces are of different kinds")),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_wire::query::Reach;

    fn answer(
        reached: &[bool],
        matched: u64,
        unmatched: &[(Unmatched, u64)],
        dropped: u64,
    ) -> Answer {
        let federators = reached
            .iter()
            .map(|r| Reach {
                federator: "f".into(),
                reached: *r,
                error: None,
            })
            .collect();
        let halves = HalfCounts {
            matched,
            unmatched: unmatched.iter().copied().collect(),
            dropped,
        };
        let end = Response::End {
            completeness: Completeness { federators, halves },
            truncated: false,
        };
        let received = Received {
            responses: vec![end],
            interrupted: false,
        };
        Answer::collect(
            received,
            Window {
                since: None,
                until: None,
            },
            Timestamp(0),
        )
        .unwrap()
    }

    #[test]
    fn completeness_counts_what_is_settled() {
        for (reached, matched, unmatched, dropped, percent) in [
            (&[true][..], 0, &[][..], 0, 100.0),
            (
                &[true, true],
                10,
                &[(Unmatched::NoPartner, 5), (Unmatched::NotEstablished, 1)],
                0,
                100.0,
            ),
            (&[true, false], 10, &[], 0, 50.0),
            (&[true], 9, &[(Unmatched::Pending, 1)], 0, 90.0),
            (&[true], 9, &[(Unmatched::Ambiguous, 1)], 0, 90.0),
            (&[true], 8, &[(Unmatched::NoFingerprint, 1)], 1, 80.0),
            // Never rounded up to a whole.
            (&[true], 999_999, &[], 1, 99.99),
            (&[false], 0, &[], 0, 0.0),
        ] {
            let found = answer(reached, matched, unmatched, dropped).percent_complete();
            assert!(
                (found - percent).abs() < 1e-9,
                "{found} instead of {percent}"
            );
        }
    }

    #[test]
    fn pieces_must_fit() {
        let collect = |responses| {
            let received = Received {
                responses,
                interrupted: false,
            };
            Answer::collect(
                received,
                Window {
                    since: None,
                    until: None,
                },
                Timestamp(0),
            )
        };
        let end = Response::End {
            completeness: Completeness::default(),
            truncated: false,
        };
        assert!(collect(vec![end.clone()]).is_ok());
        assert!(collect(vec![Response::Connections(vec![])]).is_err());
        assert!(
            collect(vec![
                Response::Connections(vec![]),
                Response::Report(vec![]),
                end.clone()
            ])
            .is_err()
        );
        let columns = Response::SqlColumns(vec!["a".into()]);
        let row = |n| Response::SqlRows(vec![vec![SqlValue::Null; n]]);
        assert!(collect(vec![columns.clone(), row(1), row(1), end.clone()]).is_ok());
        assert!(collect(vec![columns, row(2), end.clone()]).is_err());
        assert!(collect(vec![row(1), end]).is_err());
    }
}
