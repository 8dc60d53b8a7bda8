//! Which times are taken from others. DuckDB has times that are no number ("infinity") and fails on what lies beyond its calendar,
//! so one row with such a time would fail every question about its table. What was never so is not stored: a batch of an agent with
//! a time outside of 1970 to 2200 is refused, and what a peer says is brought into that range (its session would break again and
//! again otherwise).
//!
//! Checked once, where it comes in: the journal, the core and the store have only such times.

use weft_wire::batch::{BatchError, Columns};
use weft_wire::control::PeerMessage;
use weft_wire::{LookupBatch, Owner, Timestamp};

/// The first that is taken; also what stands for "not known".
pub const FIRST: Timestamp = Timestamp(0);
/// The last: the end of 2199.
pub const LAST: Timestamp = Timestamp(7_258_118_400_000_000 - 1);

/// What is said of a batch with another.
pub const OUT_OF_RANGE: BatchError = BatchError::Malformed("a time before 1970 or after 2199");

fn taken(micros: i64) -> bool {
    (FIRST.0..=LAST.0).contains(&micros)
}

fn check(all_taken: bool) -> Result<(), BatchError> {
    all_taken.then_some(()).ok_or(OUT_OF_RANGE)
}

/// Of a batch of halves.
pub fn check_halves(columns: &Columns) -> Result<(), BatchError> {
    let closed = |row: &usize| columns.flow_of(*row).closed;
    let mut ends = (0..columns.len())
        .filter(closed)
        .map(|row| columns.closed_at[row]);
    let mut seen = columns.opened_at.iter().chain(&columns.seen_at);
    check(seen.all(|at| taken(*at)) && ends.all(taken) && columns.owners.iter().all(of_owner_taken))
}

/// Of a batch of lookups.
pub fn check_lookups(batch: &LookupBatch) -> Result<(), BatchError> {
    let mut asked = batch.lookups.iter().map(|lookup| lookup.asked_at.0);
    check(asked.all(taken) && batch.owners.iter().all(of_owner_taken))
}

fn of_owner_taken(owner: &Owner) -> bool {
    let mut processes = owner.process.iter().chain(&owner.sharers);
    processes.all(|process| taken(process.started_at.0))
}

/// Brings what a peer says into the range; how many times were outside of it.
pub fn correct(message: &mut PeerMessage) -> u64 {
    let mut corrected = 0;
    let mut within = |at: &mut Timestamp| {
        let known = (*at).clamp(FIRST, LAST);
        corrected += u64::from(known != *at);
        *at = known;
    };
    match message {
        PeerMessage::Offers(offers) => offers
            .iter_mut()
            .for_each(|offer| within(&mut offer.opened_at)),
        PeerMessage::Recall(recalls) => recalls
            .iter_mut()
            .for_each(|recall| within(&mut recall.opened_at)),
        PeerMessage::Cards(cards) => {
            for card in cards {
                let half = &mut card.half;
                within(&mut half.opened_at);
                within(&mut half.seen_at);
                half.closed_at.iter_mut().for_each(&mut within);
                let processes = card.owner.process.iter_mut().chain(&mut card.owner.sharers);
                processes.for_each(|process| within(&mut process.started_at));
            }
        }
        PeerMessage::Withdraw(_)
        | PeerMessage::Matched(_)
        | PeerMessage::Ambiguous(_)
        | PeerMessage::Summary(_) => {}
    }
    corrected
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_wire::control::{EndpointCard, Handle, Offer, Recall};
    use weft_wire::{Half, Process, Role, Site};

    #[test]
    fn the_last_is_before_2200() {
        assert_eq!(LAST.to_string(), "2199-12-31T23:59:59.999999Z");
        assert_eq!(FIRST.to_string(), "1970-01-01T00:00:00.000000Z");
    }

    #[test]
    fn what_a_peer_says_is_brought_into_the_range() {
        let outside = [
            Timestamp(i64::MAX),
            Timestamp(-i64::MAX),
            Timestamp(i64::MIN),
        ];
        let nearest = [LAST, FIRST, FIRST];
        let inside = Timestamp(1_795_361_335_123_456);
        let recall = |opened_at| Recall {
            routing_key: 1,
            opened_at,
        };
        let offer = |opened_at| Offer {
            routing_key: 1,
            matching_key: 2,
            role: Role::Client,
            opened_at,
            handle: Handle(3),
        };
        let card = |at| EndpointCard {
            yours: Handle(1),
            theirs: Handle(2),
            partial: false,
            half: Half {
                opened_at: at,
                closed_at: Some(at),
                seen_at: at,
                ..Half::default()
            },
            owner: Owner {
                process: Some(Process {
                    started_at: at,
                    ..Process::default()
                }),
                sharers: vec![Process {
                    started_at: at,
                    ..Process::default()
                }],
                ..Owner::default()
            },
            name: None,
            agent: String::new(),
            federator: String::new(),
            site: Site::default(),
        };
        for (from, to) in outside.into_iter().zip(nearest) {
            let mut message = PeerMessage::Recall(vec![recall(from), recall(inside)]);
            assert_eq!(correct(&mut message), 1);
            assert_eq!(
                message,
                PeerMessage::Recall(vec![recall(to), recall(inside)])
            );
            let mut message = PeerMessage::Offers(vec![offer(from), offer(inside)]);
            assert_eq!(correct(&mut message), 1);
            assert_eq!(message, PeerMessage::Offers(vec![offer(to), offer(inside)]));
            let mut message = PeerMessage::Cards(vec![card(from), card(inside)]);
            assert_eq!(correct(&mut message), 5);
            assert_eq!(message, PeerMessage::Cards(vec![card(to), card(inside)]));
        }
    }
}
