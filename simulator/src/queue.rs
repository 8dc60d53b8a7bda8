//! Virtual time: what happens next.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// Everything that can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A connection is opened.
    Opening,
    /// The connection in this place of the active ones is closed.
    Closing(u32),
    /// An agent sends what it has gathered.
    AgentFlush(u32),
    /// An agent's connection to its federator stands (again).
    AgentReturns { agent: u32, run: u32 },
    /// A batch reaches its federator.
    Batch(u32),
    /// An acknowledgement reaches an agent.
    BatchAcked { agent: u32, seq: u64 },
    /// A federator's journal is durable: what came since is applied.
    Sync { home: u16, run: u32 },
    /// Time passes for a federator.
    Tick { home: u16, run: u32, tick: u32 },
    /// A federator gives its store what changed.
    Flush { home: u16, run: u32 },
    /// The store has it.
    Commit { home: u16, run: u32 },
    /// A federator dials a peer.
    Dial { from: u16, to: u16, run: u32 },
    /// The peer takes the session.
    Accepted { from: u16, to: u16, number: u32 },
    /// The dialler knows.
    Established { from: u16, to: u16, number: u32 },
    /// The dialler notices that its session is dead.
    Lost { from: u16, to: u16, number: u32 },
    /// A message reaches a peer.
    Message(u32),
    /// An acknowledgement reaches its federator.
    Acked {
        from: u16,
        to: u16,
        number: u32,
        seq: u64,
    },
    /// A federator without company looks for some.
    MemberJoins { home: u16, run: u32 },
    /// A timer of a federator's membership is due.
    MemberDue { home: u16, run: u32 },
    /// A message of a membership arrives.
    Datagram(u32),
    /// A core hears who may own offers.
    OwnersTold { home: u16, run: u32 },
    /// A fault begins.
    Fault(u32),
    /// It ends.
    Repair(u32),
}

struct Due {
    at: i64,
    order: u64,
    event: Event,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    /// The earliest is the greatest; of one time, what was asked for first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

/// Events in the order of their time.
#[derive(Default)]
pub struct Queue {
    heap: BinaryHeap<Due>,
    order: u64,
    now: i64,
}

impl Queue {
    /// Now, in microseconds since the beginning.
    pub fn now(&self) -> i64 {
        self.now
    }

    /// Lets it happen after so long.
    pub(crate) fn after(&mut self, delay_us: i64, event: Event) {
        self.at(self.now.saturating_add(delay_us.max(0)), event);
    }

    /// Lets it happen at that time.
    pub(crate) fn at(&mut self, at: i64, event: Event) {
        self.order += 1;
        let (at, order) = (at.max(self.now), self.order);
        self.heap.push(Due { at, order, event });
    }

    /// What happens next, if that is before `end`; time goes on to it.
    pub(crate) fn next(&mut self, end: i64) -> Option<Event> {
        if self.heap.peek()?.at >= end {
            return None;
        }
        let due = self.heap.pop()?;
        self.now = due.at;
        Some(due.event)
    }

    /// Events so far.
    pub fn count(&self) -> u64 {
        self.order
    }
}

/// Things on their way, by number; a number is free again when its thing has come.
pub(crate) struct Slab<T> {
    list: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        let (list, free) = (Vec::new(), Vec::new());
        Self { list, free }
    }
}

impl<T> Slab<T> {
    pub(crate) fn put(&mut self, thing: T) -> u32 {
        if let Some(place) = self.free.pop() {
            self.list[place as usize] = Some(thing);
            return place;
        }
        self.list.push(Some(thing));
        (self.list.len() - 1) as u32
    }

    pub(crate) fn take(&mut self, place: u32) -> Option<T> {
        let thing = self.list.get_mut(place as usize)?.take();
        if thing.is_some() {
            self.free.push(place);
        }
        thing
    }

    pub(crate) fn len(&self) -> usize {
        self.list.len() - self.free.len()
    }
}
