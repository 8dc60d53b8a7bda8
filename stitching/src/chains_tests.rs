use proptest::prelude::*;

use super::*;

/// A closed leg that received and sent so much.
fn leg(opened: i64, closed: i64, received: u64, sent: u64) -> Leg {
    Leg {
        opened: Some(opened),
        closed: Some(closed),
        counted: closed,
        received,
        sent,
        whole: true,
    }
}

/// Its other leg, opened a little later.
fn other(front: &Leg, opened: i64, closed: i64) -> Leg {
    leg(opened, closed, front.sent, front.received)
}

fn linked(other: usize, evidence: Evidence) -> Standing {
    Standing::Linked { other, evidence }
}

#[test]
fn the_same_bytes_at_the_same_time_are_one_way() {
    let fronts = [leg(0, 50, 100, 900), leg(60, 90, 70, 900)];
    let backs = [other(&fronts[1], 65, 95), other(&fronts[0], 5, 45)];
    let found = link(&fronts, &backs);
    assert_eq!(
        found.fronts,
        [linked(1, Evidence::Bytes), linked(0, Evidence::Bytes)]
    );
    assert_eq!(
        found.backs,
        [linked(1, Evidence::Bytes), linked(0, Evidence::Bytes)]
    );
}

#[test]
fn other_bytes_other_times_and_nothing_at_all_link_nothing() {
    let front = leg(0, 50, 100, 900);
    for back in [
        leg(5, 45, 900, 101),
        leg(5, 45, 100, 900),
        other(&front, 51, 60),
        other(&front, -20, -1),
    ] {
        let found = link(&[front], &[back]);
        assert_eq!(
            (found.fronts[0], found.backs[0]),
            (Standing::Alone, Standing::Alone)
        );
    }
    // A way that carried nothing one way has no mark.
    let silent = leg(0, 50, 100, 0);
    assert_eq!(
        link(&[silent], &[other(&silent, 5, 45)]).fronts,
        [Standing::Alone]
    );
}

#[test]
fn what_fits_two_is_ambiguous_unless_the_other_has_its_own() {
    let front = leg(0, 50, 100, 900);
    let two = [other(&front, 5, 45), other(&front, 6, 46)];
    let ambiguous = Standing::Ambiguous { fitting: 2 };
    assert_eq!(link(&[front], &two).fronts, [ambiguous]);
    assert_eq!(link(&[front, front], &two).fronts, [ambiguous, ambiguous]);
    // The second front is over when the second back begins: then there is one way only.
    let short = leg(0, 5, 100, 900);
    let found = link(&[front, short], &two);
    assert_eq!(
        found.fronts,
        [
            linked(1, Evidence::Elimination),
            linked(0, Evidence::Elimination)
        ]
    );
}

#[test]
fn legs_out_of_sight_could_be_the_ones() {
    let front = leg(0, 50, 100, 900);
    let back = Leg {
        whole: false,
        ..other(&front, 5, 45)
    };
    assert_eq!(
        link(&[front], &[back]).fronts,
        [Standing::Ambiguous { fitting: 1 }]
    );
}

#[test]
fn an_open_leg_is_another_choice_as_long_as_its_counters_are_old() {
    let front = leg(0, 50, 100, 900);
    let back = other(&front, 5, 45);
    let open = |counted, received, sent| Leg {
        closed: None,
        ..leg(1, counted, received, sent)
    };
    let standing = |open: Leg| link(&[front, open], &[back]).fronts[0];
    assert_eq!(
        standing(open(20, 40, 0)),
        Standing::Ambiguous { fitting: 1 }
    );
    assert_eq!(standing(open(20, 101, 0)), linked(0, Evidence::Bytes));
    assert_eq!(
        standing(open(50 + RELAY_US, 40, 0)),
        linked(0, Evidence::Bytes)
    );
    // Both open, with the same counters, and nobody else: as far as is known.
    let (a, b) = (open(20, 40, 70), open(25, 70, 40));
    assert_eq!(link(&[a], &[b]).fronts, [linked(0, Evidence::Bytes)]);
    assert_eq!(
        link(&[a], &[open(25, 70, 41)]).fronts,
        [Standing::Ambiguous { fitting: 1 }]
    );
}

/// Pairs that bytes and time tell, each opened `back_first` or the other way round.
fn witnesses(count: usize, back_first: bool) -> (Vec<Leg>, Vec<Leg>) {
    let fronts: Vec<Leg> = (0..count as i64)
        .map(|n| leg(n * 100 - 10_000, n * 100 - 9_990, 7 + n as u64, 5))
        .collect();
    let shift = if back_first { -3 } else { 3 };
    let backs = fronts.iter().map(|front| {
        let opened = front.opened.unwrap() + shift;
        other(front, opened, opened + 9)
    });
    (fronts.clone(), backs.collect())
}

#[test]
fn order_counts_once_a_process_has_shown_that_it_connects_on_demand() {
    let overlapping = [leg(0, 50, 100, 900), leg(10, 60, 100, 900)];
    let theirs = [
        other(&overlapping[0], 5, 45),
        other(&overlapping[1], 15, 55),
    ];
    let standing = |count, back_first| {
        let (mut fronts, mut backs) = witnesses(count, back_first);
        fronts.extend(overlapping);
        backs.extend(theirs);
        link(&fronts, &backs).fronts[count..].to_vec()
    };
    let ambiguous = Standing::Ambiguous { fitting: 2 };
    assert_eq!(
        standing(EVEN_CALLS, false),
        [
            linked(EVEN_CALLS, Evidence::Order),
            linked(EVEN_CALLS + 1, Evidence::Order)
        ]
    );
    assert_eq!(standing(WITNESSES, false), [ambiguous; 2]);
    assert_eq!(standing(EVEN_CALLS, true), [ambiguous; 2]);
    // One back that nobody had called for, and order counts no more.
    let (mut fronts, mut backs) = witnesses(EVEN_CALLS, false);
    fronts.extend(overlapping);
    backs.extend(theirs);
    backs.push(leg(-20_000, 900, 3, 3));
    assert_eq!(link(&fronts, &backs).fronts[EVEN_CALLS..], [ambiguous; 2]);
}

/// A way through a relay: when the front opens, how long until the back does, bytes are there, and each closes.
type Way = (i64, [i64; 4], [u64; 2]);

fn ways() -> impl Strategy<Value = Vec<Way>> {
    let way = (
        0_i64..600,
        prop::array::uniform4(0_i64..40),
        prop::array::uniform2(1_u64..4),
    );
    prop::collection::vec(way, 1..40)
}

/// Both legs of a way. A relay that connects ahead opens the back before anybody asks for it.
fn legs((at, [connect, carry, front_end, back_end], [up, down]): Way, ahead: bool) -> (Leg, Leg) {
    let carried = at + connect + carry;
    let back_at = if ahead {
        at - connect - 1
    } else {
        at + connect
    };
    let front = leg(at, carried + front_end, up, down);
    (front, other(&front, back_at, carried + back_end))
}

proptest! {
    /// Whatever the relay does at a time, and whatever its process does besides, what is linked belongs together; and what
    /// nothing else looks like is linked.
    #[test]
    fn nothing_is_linked_that_does_not_belong_together(
        ways in ways(),
        ahead in any::<bool>(),
        served in prop::collection::vec((0_i64..600, 0_i64..90, 1_u64..4), 0..4),
        called in prop::collection::vec((0_i64..600, 0_i64..90, 1_u64..4), 0..4),
        open in prop::collection::vec(any::<bool>(), 40),
    ) {
        let mut fronts = Vec::new();
        let mut backs = Vec::new();
        for (way, open) in ways.iter().zip(&open) {
            let (mut front, mut back) = legs(*way, ahead);
            if *open && front.received == 3 {
                // The client stays, and its counters are of some time before.
                front = Leg { closed: None, counted: front.opened.unwrap(), received: 1, sent: 0, ..front };
            } else if *open && front.sent == 3 {
                back = Leg { closed: None, ..back };
            }
            fronts.push(front);
            backs.push(back);
        }
        // What it answers itself, and asks on its own account: never alike.
        fronts.extend(served.iter().map(|(at, life, up)| leg(*at, at + life, *up, 1)));
        backs.extend(called.iter().map(|(at, life, up)| leg(*at, at + life, 3, *up)));
        let found = link(&fronts, &backs);
        for (index, standing) in found.fronts.iter().enumerate() {
            if let Standing::Linked { other, evidence } = standing {
                prop_assert_eq!((*other, index < ways.len()), (index, true), "{:?}", evidence);
                prop_assert_eq!(found.backs[*other], linked(index, *evidence));
            }
        }
        for (index, (_, _, bytes)) in ways.iter().enumerate() {
            let single = ways.iter().filter(|(_, _, others)| others == bytes).count() == 1;
            let strangers = served.iter().any(|(.., up)| [*up, 1] == *bytes)
                || called.iter().any(|(.., up)| [*up, 3] == *bytes);
            let all_closed = fronts.iter().chain(&backs).all(|leg| leg.closed.is_some());
            if single && !strangers && all_closed {
                prop_assert_eq!(found.fronts[index], linked(index, Evidence::Bytes));
            }
        }
    }

    /// The order in which legs are given means nothing.
    #[test]
    fn the_order_of_what_is_given_does_not_count(ways in ways(), ahead in any::<bool>()) {
        let (fronts, backs): (Vec<Leg>, Vec<Leg>) = ways.iter().map(|way| legs(*way, ahead)).unzip();
        let found = link(&fronts, &backs);
        let reversed = |legs: &[Leg]| legs.iter().rev().copied().collect::<Vec<_>>();
        let again = link(&reversed(&fronts), &reversed(&backs));
        let last = ways.len() - 1;
        for (index, standing) in found.fronts.iter().enumerate() {
            let mirrored = match again.fronts[last - index] {
                Standing::Linked { other, evidence } => linked(last - other, evidence),
                standing => standing,
            };
            prop_assert_eq!(*standing, mirrored);
        }
    }
}
