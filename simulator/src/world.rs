//! The whole of a run: what exists, what happens next, and what must hold at the end.

use weft_wire::testing::Random;

use crate::agents::{Agent, BatchParcel};
use crate::breakage::Breakage;
use crate::clock::Clock;
use crate::faults::Fault;
use crate::homes::Home;
use crate::links::Links;
use crate::members::{Datagram, Part};
use crate::outcome::{Outcome, Violation};
use crate::queue::{Event, Queue, Slab};
use crate::scenario::{SECOND, Scenario};
use crate::sessions::{Parcel, Session};
use crate::truth::{Active, Connection, Expect, NEVER, OUTSIDE, Source, Standing, closed, seconds};

/// What is expected to settle is given so long after the last fault, besides the expiry.
const SETTLE_US: i64 = 60 * SECOND;
/// Violations that are told in detail.
const NOTES: usize = 5;

/// A run.
pub struct World {
    pub(crate) scenario: Scenario,
    pub(crate) queue: Queue,
    pub(crate) random: Random,
    pub(crate) links: Links,
    pub(crate) agents: Vec<Agent>,
    pub(crate) homes: Vec<Home>,
    pub(crate) sessions: Vec<Session>,
    pub(crate) truth: Vec<Connection>,
    active: Slab<Active>,
    pub(crate) batches: Slab<BatchParcel>,
    pub(crate) parcels: Slab<Parcel>,
    pub(crate) faults: Vec<Fault>,
    pub(crate) parts: Vec<Part>,
    pub(crate) datagrams: Slab<Datagram>,
    source: Source,
    pub(crate) split_at: i64,
    pub(crate) heal_at: i64,
    pub(crate) outcome: Outcome,
}

/// Runs a scenario from its beginning to its end.
pub fn run(scenario: &Scenario) -> Outcome {
    let mut world = World::new(scenario);
    world.go();
    world.outcome
}

impl World {
    fn new(scenario: &Scenario) -> Self {
        let mut random = Random::new(scenario.seed);
        let mut clock = |most: i64| {
            let mut within = |most: i64| random.below(2 * most.max(0) as u64 + 1) as i64 - most;
            Clock {
                offset_us: within(most),
                drift_ppm: within(scenario.drift_ppm),
            }
        };
        let agents = (0..scenario.agents)
            .map(|_| Agent::new(clock(scenario.agent_skew_us)))
            .collect();
        let homes = (0..scenario.federators)
            .map(|number| Home::new(number, clock(scenario.federator_skew_us), scenario))
            .collect();
        let (links, source) = (random.bits(), random.bits());
        Self {
            queue: Queue::default(),
            links: Links::new(scenario, links),
            agents,
            homes,
            sessions: vec![Session::default(); scenario.federators * scenario.federators],
            truth: Vec::new(),
            active: Slab::default(),
            batches: Slab::default(),
            parcels: Slab::default(),
            faults: Vec::new(),
            parts: (0..scenario.federators).map(|_| Part::default()).collect(),
            datagrams: Slab::default(),
            source: Source::new(scenario, source),
            split_at: NEVER,
            heal_at: NEVER,
            outcome: Outcome::default(),
            scenario: scenario.clone(),
            random,
        }
    }

    fn go(&mut self) {
        (0..self.homes.len()).for_each(|home| self.start(home));
        self.plan();
        self.queue.after(self.begins(), Event::Opening);
        let load_end = self.scenario.load_us + self.begins();
        self.work(load_end);
        // What lasts stays open; the rest closes by itself. Then everything has its time.
        let settled = load_end + self.scenario.lifetime_us * 4 + SETTLE_US;
        self.work(settled);
        self.work(settled + self.scenario.expiry_us + SETTLE_US);
        (0..self.homes.len()).for_each(|home| self.store_all(home));
        let cores = self.homes.iter().filter_map(|home| home.core.as_ref());
        for mesh in cores.filter_map(|core| core.mesh_counters()) {
            self.outcome.reoffered += mesh.home.reoffered;
            self.outcome.offered += mesh.home.offered - mesh.home.released;
            self.outcome.held_back += mesh.home.held_back;
            self.outcome.released += mesh.home.released;
        }
        self.judge();
        self.outcome.events = self.queue.count();
        self.outcome.time_us = self.queue.now();
    }

    /// When connections begin to be opened: federators find each other before.
    fn begins(&self) -> i64 {
        if self.scenario.membership {
            30 * SECOND
        } else {
            3 * SECOND
        }
    }

    fn work(&mut self, end: i64) {
        while let Some(event) = self.queue.next(end) {
            self.happens(event);
        }
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::Opening => self.opening(),
            Event::Closing(place) => self.closing(place),
            Event::AgentFlush(agent) => self.agent_flush(agent),
            Event::AgentReturns { agent, run } => self.agent_returns(agent, run),
            Event::Batch(parcel) => self.batch_arrives(parcel),
            Event::BatchAcked { agent, seq } => self.batch_acked(agent, seq),
            Event::Sync { home, run } => self.synced(home.into(), run),
            Event::Tick { home, run, tick } => self.tick(home.into(), run, tick),
            Event::Flush { home, run } => self.flush(home.into(), run),
            Event::Commit { home, run } => self.commit(home.into(), run),
            Event::Dial { from, to, run } => self.dial(from.into(), to.into(), run),
            Event::Accepted { from, to, number } => self.accepted(from.into(), to.into(), number),
            Event::Established { from, to, number } => {
                self.established(from.into(), to.into(), number)
            }
            Event::Lost { from, to, number } => self.lost(from.into(), to.into(), number),
            Event::Message(parcel) => self.message_arrives(parcel),
            Event::Acked {
                from,
                to,
                number,
                seq,
            } => self.acked(from.into(), to.into(), number, seq),
            Event::MemberJoins { home, run } => self.member_joins(home.into(), run),
            Event::MemberDue { home, run } => self.member_due(home.into(), run),
            Event::Datagram(parcel) => self.datagram_arrives(parcel),
            Event::OwnersTold { home, run } => self.owners_told(home.into(), run),
            Event::Fault(number) => self.goes_wrong(number),
            Event::Repair(number) => self.goes_right(number),
        }
    }

    /// Exponentially distributed around a mean.
    fn exponential(&mut self, mean: f64) -> i64 {
        let share = (self.random.below(1 << 53) + 1) as f64 / (1u64 << 53) as f64;
        (-share.ln() * mean) as i64
    }

    fn opening(&mut self) {
        let now = self.queue.now();
        let Scenario {
            load_us,
            connections,
            agents,
            lifetime_us,
            lasting_percent,
            ..
        } = self.scenario;
        if now > load_us + self.begins() {
            return;
        }
        let gap = load_us as f64 / (connections * agents as f64);
        let gap = self.exponential(gap);
        self.queue.after(gap, Event::Opening);
        let World { agents, source, .. } = self;
        let (connection, halves) = source.open(now, |agent| agents[agent as usize].clock);
        let number = self.truth.len() as u32;
        self.truth.push(connection);
        self.outcome.connections += 1;
        for (half, end) in halves.iter().zip(connection.ends) {
            if let Some(half) = half {
                self.outcome.halves += 1;
                self.report(end.agent, *half);
            }
        }
        let refused = halves.iter().flatten().any(|half| half.state.finished());
        if !refused && self.random.below(100) >= lasting_percent {
            let place = self.active.put(Active {
                connection: number,
                halves,
            });
            let lasts = self.exponential(lifetime_us as f64).min(lifetime_us * 3);
            self.queue.after(lasts, Event::Closing(place));
        }
    }

    fn closing(&mut self, place: u32) {
        let now = self.queue.now();
        let Some(Active { connection, halves }) = self.active.take(place) else {
            return;
        };
        let ends = self.truth[connection as usize].ends;
        self.source.closed(u64::from(ends[0].agent), &halves);
        for (half, end) in halves.iter().zip(ends) {
            if let Some(half) = half {
                let at = self.agents[end.agent as usize].clock.reads(now);
                self.report(end.agent, closed(half, at));
            }
        }
    }

    /// What must hold at the end.
    fn judge(&mut self) {
        if !self.agents_idle() || self.active.len() > 0 {
            self.outcome.violated(Violation::Unsettled, 0, 0);
        }
        let truth = std::mem::take(&mut self.truth);
        for (number, connection) in truth.iter().enumerate() {
            let before = self.outcome.violated;
            self.judge_one(number, connection);
            if self.outcome.violated > before && self.outcome.notes.len() < NOTES {
                let around = number.saturating_sub(1)..=number + 1;
                for number in around {
                    let note = truth
                        .get(number)
                        .map(|connection| self.describe(number, connection));
                    self.outcome.notes.extend(note);
                }
            }
        }
        self.truth = truth;
        self.outcome.stitch_us.sort_unstable();
    }

    fn judge_one(&mut self, number: usize, connection: &Connection) {
        for (place, end) in connection
            .ends
            .iter()
            .enumerate()
            .filter(|(_, end)| end.agent != OUTSIDE)
        {
            let place = place as i64;
            match (end.rows, end.standing) {
                (0, _) if end.acknowledged => self.outcome.violated(Violation::Lost, number, place),
                (_, Standing::Pending) if end.closed => {
                    self.outcome.violated(Violation::NoReason, number, place)
                }
                _ => {}
            }
            let joined = end.standing == Standing::Joined;
            let must = match connection.expect {
                Expect::Joined => true,
                Expect::JoinedAtEnd => connection.ends.iter().all(|end| end.closed),
                Expect::Maybe | Expect::Alone => false,
            };
            if must && !joined {
                self.outcome.violated(Violation::NotJoined, number, place);
            }
            let all_closed = connection.ends.iter().all(|end| end.closed);
            if joined && all_closed && !end.other_closed {
                self.outcome.violated(Violation::Outdated, number, place);
            }
            if connection.expect == Expect::Alone && joined {
                self.outcome.violated(Violation::WrongMatch, number, place);
            }
        }
        self.measure(connection);
    }

    fn measure(&mut self, connection: &Connection) {
        let [client, server] = connection.ends;
        let both = client.agent != OUTSIDE && server.agent != OUTSIDE;
        if !both {
            return;
        }
        let joined = client.standing == Standing::Joined && server.standing == Standing::Joined;
        if connection.expect == Expect::Maybe {
            self.outcome.maybe.0 += u64::from(joined);
            self.outcome.maybe.1 += 1;
        }
        if self.home_of(client.agent) == self.home_of(server.agent) {
            return;
        }
        self.outcome.crossing += 2;
        let wrongly = connection.ends.iter().filter(|end| end.held_back).count();
        self.outcome.wrongly_held_back += wrongly as u64;
        self.outcome.joined += u64::from(joined);
        let (known, told) = (
            client.arrived_at.max(server.arrived_at),
            client.card_at.max(server.card_at),
        );
        if connection.expect != Expect::Joined || told == NEVER {
            return;
        }
        if connection.opened_at < self.split_at.saturating_sub(5 * SECOND) {
            self.outcome
                .stitch_us
                .push(u32::try_from(told.saturating_sub(known).max(0)).unwrap_or(u32::MAX));
        }
        if self.heal_at != NEVER && connection.opened_at < self.heal_at && told > self.heal_at {
            self.outcome.to_heal += 1;
            let took = told - self.heal_at;
            self.outcome.healed_us =
                Some(self.outcome.healed_us.map_or(took, |most| most.max(took)));
        }
    }

    fn describe(&self, number: usize, connection: &Connection) -> String {
        let mut text = format!(
            "{number}: {:?}, opened {:.3} s;",
            connection.kind,
            seconds(connection.opened_at)
        );
        for (name, end) in ["client", "server"].into_iter().zip(connection.ends) {
            if end.agent == OUTSIDE {
                continue;
            }
            text += &format!(
                " {name} at {}: {:?}, rows {}, closed {}, acknowledged {}, came {:.3}, card {:.3}, joined {:.3};",
                self.homes[self.home_of(end.agent)].name,
                end.standing,
                end.rows,
                end.closed,
                end.acknowledged,
                seconds(end.arrived_at),
                seconds(end.card_at),
                seconds(end.joined_at),
            );
        }
        text
    }

    /// What is broken on purpose.
    pub fn breakage(&self) -> Option<Breakage> {
        self.scenario.breakage
    }
}
