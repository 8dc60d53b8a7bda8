//! What a run shows: violations, and figures.

use std::fmt;

use weft_mesh::Counters;
use weft_wire::control::PeerMessage;

use crate::scenario::Scenario;

/// Violations that are kept; of more only the number.
const KEPT: usize = 20;

/// What must never be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Violation {
    /// Ends of different connections were joined; the detail is the other's number.
    WrongMatch,
    /// A half is in two rows; the detail is the time.
    CountedTwice,
    /// A half that was acknowledged to its agent is in no row; the detail is the end.
    Lost,
    /// Ends that could be joined are not; the detail is the end.
    NotJoined,
    /// Both ends are closed and joined, and a home does not know that of the other; the detail is the end.
    Outdated,
    /// A half stands without partner, closed, and without a reason; the detail is the end.
    NoReason,
    /// Something is still on its way when all should be over.
    Unsettled,
}

/// What a run shows.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The first of them, with the connection's number and a detail.
    pub violations: Vec<(Violation, usize, i64)>,
    /// How many there are.
    pub violated: u64,
    /// What the first of them are about, for the reader.
    pub notes: Vec<String>,
    /// Connections opened.
    pub connections: u64,
    /// Halves that agents reported.
    pub halves: u64,
    /// Of these, whose other end another federator has.
    pub crossing: u64,
    /// Crossing connections that were joined.
    pub joined: u64,
    /// Where evidence is thin: rightly joined, of so many.
    pub maybe: (u64, u64),
    /// Offers, withdrawals, notices, cards, doubts, recalls, summaries: messages.
    pub messages: [u64; 7],
    /// The same: items in them.
    pub items: [u64; 7],
    /// The same: bytes, encoded and framed.
    pub bytes: [u64; 7],
    /// Acknowledgements between federators.
    pub acknowledgements: u64,
    /// From when both homes know their halves until both have joined them, sorted, in microseconds.
    pub stitch_us: Vec<u32>,
    /// From the end of the long partition until all that was opened before is joined, in microseconds.
    pub healed_us: Option<i64>,
    /// Connections that were opened before that end, cross the line, and were not joined then.
    pub to_heal: u64,
    /// Most halves in one core, waiting halves, offers kept as owner, own halves in the mesh.
    pub most: [u64; 4],
    /// Messages of the membership, all federators'.
    pub member_messages: u64,
    /// Their bytes.
    pub member_bytes: u64,
    /// How often a core was told who owns offers.
    pub owner_changes: u64,
    /// Offers made again because their owner changed, by all federators.
    pub reoffered: u64,
    /// Halves that owners were asked about.
    pub offered: u64,
    /// Halves that nobody was asked about, because their peers' addresses are nobody's.
    pub held_back: u64,
    /// Of these, such as were offered after all.
    pub released: u64,
    /// Of these, such as another federator has the other end of.
    pub wrongly_held_back: u64,
    /// Crashes.
    pub crashes: u64,
    /// Events of the simulation.
    pub events: u64,
    /// Virtual time, in microseconds.
    pub time_us: i64,
}

impl Outcome {
    pub(crate) fn violated(&mut self, what: Violation, connection: usize, detail: i64) {
        self.violated += 1;
        if self.violations.len() < KEPT {
            self.violations.push((what, connection, detail));
        }
    }

    pub(crate) fn sent(&mut self, message: &PeerMessage, bytes: u64) {
        let (kind, items) = match message {
            PeerMessage::Offers(items) => (0, items.len()),
            PeerMessage::Withdraw(items) => (1, items.len()),
            PeerMessage::Matched(items) => (2, items.len()),
            PeerMessage::Cards(items) => (3, items.len()),
            PeerMessage::Ambiguous(items) => (4, items.len()),
            PeerMessage::Recall(items) => (5, items.len()),
            PeerMessage::Summary(_) => (6, 1),
        };
        self.messages[kind] += 1;
        self.items[kind] += items as u64;
        self.bytes[kind] += bytes;
    }

    pub(crate) fn saw(&mut self, in_memory: usize, waiting: usize, mesh: Option<Counters>) {
        let mesh = mesh.unwrap_or_default();
        let now = [in_memory as u64, waiting as u64, mesh.offers, mesh.halves];
        for (most, now) in self.most.iter_mut().zip(now) {
            *most = now.max(*most);
        }
    }

    /// The time under which this share, in thousandths, of the crossing connections was stitched.
    pub fn stitched_within_us(&self, per_mille: usize) -> u32 {
        let last = self.stitch_us.len().saturating_sub(1);
        self.stitch_us
            .get(last * per_mille / 1000)
            .copied()
            .unwrap_or(0)
    }

    /// Messages between federators about halves, for each half; without acknowledgements and summaries.
    pub fn messages_per_half(&self) -> f64 {
        self.messages[..6].iter().sum::<u64>() as f64 / self.halves.max(1) as f64
    }

    /// Bytes between federators about halves, for each half.
    pub fn bytes_per_half(&self) -> f64 {
        self.bytes[..6].iter().sum::<u64>() as f64 / self.halves.max(1) as f64
    }

    /// What was said about halves, for each half: offers, withdrawals, notices, cards, doubts and recalls, however many to a
    /// message.
    pub fn items_per_half(&self) -> f64 {
        self.items[..6].iter().sum::<u64>() as f64 / self.halves.max(1) as f64
    }

    /// Whether everything held.
    pub fn is_good(&self) -> bool {
        self.violated == 0
    }

    /// For the reader of a failure.
    pub fn complaint(&self, scenario: &Scenario) -> String {
        let mut text = format!("seed {}: {} violations\n", scenario.seed, self.violated);
        for (what, connection, detail) in &self.violations {
            text += &format!("  {what}: connection {connection}, {detail}\n");
        }
        for note in &self.notes {
            text += &format!("  {note}\n");
        }
        text + &format!("again: {}\n", scenario.command())
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::WrongMatch => "wrong match",
            Self::CountedTwice => "counted twice",
            Self::Lost => "acknowledged and lost",
            Self::NotJoined => "not joined",
            Self::Outdated => "the other end's close is not known",
            Self::NoReason => "no partner and no reason",
            Self::Unsettled => "not settled",
        })
    }
}
