//! Cards of other homes, and the rows that stand in the store.

use weft_stitching::{Rule, Verdict};
use weft_wire::control::{EndpointCard, Handle};

use super::*;

/// Of the server's end, seen by another home.
fn card(opened_at: i64) -> EndpointCard {
    EndpointCard {
        yours: Handle(1),
        theirs: Handle(2),
        partial: false,
        half: Half {
            opened_at: Timestamp(opened_at),
            ..half(9, 1, Role::Server, 9, HalfState::Closed)
        },
        owner: Owner::default(),
        name: None,
        agent: "other".into(),
        federator: "fed-b".into(),
        site: Site::default(),
    }
}

#[test]
fn a_card_with_other_times_replaces_the_row_that_stands_in_the_store() {
    let mut core = core();
    let ours = half(1, 1, Role::Client, 9, HalfState::Closed);
    batch(&mut core, 1, 1, 1, vec![ours]);
    let verdict = Verdict {
        rule: Rule::TcpIsnPair,
        confidence: weft_stitching::Confidence::Exact,
    };
    core.join(ours.id, &card(500), verdict, 1);
    core.done(ours.id);
    let flush = core.flush();
    assert!(flush.rows[0].settled);
    assert_eq!(flush.rows[0].opened_at(), Timestamp(500));
    // The other home has restarted, and tells other times.
    core.join(ours.id, &card(900), verdict, 2);
    let flush = core.flush();
    assert_eq!(
        (flush.rows.len(), flush.replaced_done.as_slice()),
        (1, [ours.id].as_slice())
    );
    // From there on the row is looked for that stands in the store, and it must be found.
    assert!(
        flush.replaced_from <= Timestamp(500),
        "{:?}",
        flush.replaced_from
    );
    assert_eq!(flush.rows[0].opened_at(), Timestamp(900));
}
