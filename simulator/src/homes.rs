//! Federators: the real core, between a journal and a store that are simulated.

use std::collections::VecDeque;
use std::rc::Rc;

use weft_mesh::MeshKey;
use weft_wire::control::PeerMessage;
use weft_wire::{AgentKey, HalfBatch, Timestamp};

use crate::Breakage;
use crate::agents::Agent;
use crate::clock::{Clock, EPOCH_US};
use crate::core::{Contact, Core, CoreConfig, Input, Told};
use crate::queue::Event;
use crate::record::Flush;
use crate::scenario::{MILLI, Rotation, SECOND, Scenario};
use crate::store::Stored;
use crate::truth::{addresses_of, of_cookie};
use crate::world::World;

/// Time is told to a core when it has something to do, and not more often than this, as its thread does.
const TICK_US: i64 = 10 * MILLI;
/// At least so often.
const IDLE_TICK_US: i64 = SECOND;
/// How often the store is given what changed.
const FLUSH_US: i64 = 500 * MILLI;
/// How long it takes.
const COMMIT_US: i64 = 60 * MILLI;

/// What has reached a federator and is not durable yet.
pub(crate) enum Incoming {
    Hello(u32),
    Batch {
        agent: u32,
        seq: u64,
        skew_us: i64,
        batch: Rc<HalfBatch>,
    },
    Peer {
        from: u16,
        number: u32,
        seq: u64,
        message: PeerMessage,
    },
    /// With the number of our own session that it is about.
    Contact(Contact, u16, u32),
}

/// A federator.
pub(crate) struct Home {
    pub(crate) name: String,
    pub(crate) clock: Clock,
    /// Counts starts and crashes: what was to happen to another run does not.
    pub(crate) run: u32,
    pub(crate) core: Option<Box<Core>>,
    inbox: Vec<Incoming>,
    syncing: bool,
    position: u64,
    journal: VecDeque<(u64, Timestamp, Input)>,
    pub(crate) stored: Stored,
    committing: Option<Flush>,
    /// When time is told to the core next; counts those that are to come, of which only the last does.
    tick: (i64, u32),
}

impl Home {
    pub(crate) fn new(number: usize, clock: Clock, scenario: &Scenario) -> Self {
        let mut home = Self {
            name: name_of(number),
            clock,
            run: 1,
            core: None,
            inbox: Vec::new(),
            syncing: false,
            position: 0,
            journal: VecDeque::new(),
            stored: Stored::new(scenario.is_durable()),
            committing: None,
            tick: (0, 0),
        };
        let mut core = Core::new(config(number, scenario), home.stored.load(None));
        if scenario.summaries {
            core.vouch(&addresses_of(number));
        }
        home.core = Some(Box::new(core));
        home
    }

    pub(crate) fn is_up(&self) -> bool {
        self.core.is_some()
    }

    /// The last batch of an agent that is durable.
    pub(crate) fn durable_seq(&self, agent: u32) -> u64 {
        let sequences = self.core.as_ref().map(|core| core.sequences());
        let key = AgentKey(u64::from(agent) + 1);
        sequences
            .and_then(|sequences| sequences.get(&key).copied())
            .unwrap_or(0)
    }
}

/// A federator's name; numbers sort as names do.
pub(crate) fn name_of(number: usize) -> String {
    format!("fed-{number:05}")
}

/// The inverse of [`name_of`].
pub(crate) fn number_of(name: &str) -> usize {
    name.trim_start_matches("fed-").parse().unwrap_or(0)
}

fn config(number: usize, scenario: &Scenario) -> CoreConfig {
    let peers = (0..scenario.federators)
        .filter(|peer| *peer != number)
        .map(name_of)
        .collect();
    CoreConfig {
        name: name_of(number),
        hold_us: scenario.hold_us,
        expiry_us: scenario.expiry_us,
        max_open: scenario.room(),
        seed: scenario.seed,
        mesh: Some((peers, key(number, scenario))),
    }
}

/// The mesh's key as a federator has it.
fn key(number: usize, scenario: &Scenario) -> MeshKey {
    let first = (i64::MIN, [9; 32]);
    let second = (EPOCH_US + scenario.load_us / 2, [10; 32]);
    let (keys, overlap_us) = match scenario.rotation {
        Rotation::Together => (vec![first, second], scenario.expiry_us + 60 * SECOND),
        Rotation::Apart if number % 3 != 2 => (vec![first, second], i64::MAX),
        Rotation::None | Rotation::Apart => (vec![first], 0),
    };
    MeshKey::rotating(keys, overlap_us).unwrap_or_else(|| MeshKey::new([9; 32]))
}

impl World {
    /// Something reaches a federator.
    pub(crate) fn take_in(&mut self, number: usize, incoming: Incoming) {
        let home = &mut self.homes[number];
        if !home.is_up() {
            return;
        }
        home.inbox.push(incoming);
        if !std::mem::replace(&mut home.syncing, true) {
            let event = Event::Sync {
                home: number as u16,
                run: home.run,
            };
            self.queue.after(self.scenario.sync_us, event);
        }
    }

    pub(crate) fn synced(&mut self, number: usize, run: u32) {
        let home = &mut self.homes[number];
        if home.run != run {
            return;
        }
        home.syncing = false;
        let inbox = std::mem::take(&mut home.inbox);
        let at = home.clock.reads(self.queue.now());
        if let Some(core) = &mut home.core {
            core.advance(at);
        }
        // The last message of each session: one acknowledgement is enough.
        let mut heard: Vec<(u16, u32, u64)> = Vec::new();
        for incoming in inbox {
            match incoming {
                Incoming::Hello(agent) => {
                    let info = Agent::info(agent as usize, number);
                    let key = AgentKey(u64::from(agent) + 1);
                    self.apply(number, Input::Agent { key, info });
                }
                Incoming::Batch {
                    agent,
                    seq,
                    skew_us,
                    batch,
                } => {
                    self.acknowledge_batch(agent, seq, &batch);
                    let batch = HalfBatch::clone(&batch);
                    let key = AgentKey(u64::from(agent) + 1);
                    self.apply(
                        number,
                        Input::Batch {
                            agent: key,
                            seq,
                            skew_us,
                            batch,
                        },
                    );
                }
                Incoming::Peer {
                    from,
                    number: session,
                    seq,
                    message,
                } => {
                    match heard
                        .iter_mut()
                        .find(|(peer, known, _)| (*peer, *known) == (from, session))
                    {
                        Some((_, _, last)) => *last = seq,
                        None => heard.push((from, session, seq)),
                    }
                    self.heard(number, from as usize, message);
                }
                Incoming::Contact(contact, to, session) => {
                    if matches!(contact, Contact::Up { .. }) {
                        self.session_known(number, to as usize, session);
                    }
                    if let Some(core) = &mut self.homes[number].core {
                        core.contact(&contact);
                    }
                }
            }
            self.speak(number);
        }
        for (peer, session, seq) in heard {
            self.acknowledge(number, peer as usize, session, seq);
        }
        self.tick_when_due(number);
    }

    /// Lets time be told to a core when it has something to do, if that is sooner than it would be.
    fn tick_when_due(&mut self, number: usize) {
        let now = self.queue.now();
        let home = &mut self.homes[number];
        let Some(core) = &home.core else { return };
        let due = core.next_timer().map_or(i64::MAX, |at| at.0);
        let pause = due.saturating_sub(home.clock.reads(now).0);
        let at = now + pause.clamp(TICK_US, IDLE_TICK_US);
        let (planned, tick) = home.tick;
        if planned <= now || at < planned {
            home.tick = (at, tick + 1);
            let (number, run) = (number as u16, home.run);
            let event = Event::Tick {
                home: number,
                run,
                tick: tick + 1,
            };
            self.queue.at(at, event);
        }
    }

    fn heard(&mut self, number: usize, from: usize, message: PeerMessage) {
        if let PeerMessage::Cards(cards) = &message {
            let now = self.queue.now();
            for card in cards {
                let (connection, end) = crate::truth::of_cookie(card.half.cookie);
                if let Some(connection) = self.truth.get_mut(connection) {
                    let end = &mut connection.ends[1 - end];
                    end.card_at = end.card_at.min(now);
                }
            }
        }
        let peer = name_of(from);
        match message {
            PeerMessage::Offers(_) | PeerMessage::Withdraw(_) | PeerMessage::Summary(_) => {
                if let Some(core) = &mut self.homes[number].core {
                    core.contact(&Contact::Said { peer, message });
                }
            }
            message => self.apply(number, Input::Peer { peer, message }),
        }
    }

    fn apply(&mut self, number: usize, input: Input) {
        let (now, journalled) = (self.queue.now(), self.scenario.is_durable());
        let lost = matches!(
            &input,
            Input::Peer {
                message: PeerMessage::Cards(_),
                ..
            }
        ) && self.broken(Breakage::CardNotJournaled);
        let torn = matches!(&input, Input::Batch { seq, .. } if seq % 4 == 0)
            && self.broken(Breakage::BatchNotJournaled);
        let home = &mut self.homes[number];
        home.position += 1;
        let at = home.clock.reads(now);
        if journalled && !lost && !torn {
            home.journal.push_back((home.position, at, input.clone()));
        }
        if let Some(core) = &mut home.core {
            core.apply(home.position, at, input);
        }
    }

    pub(crate) fn tick(&mut self, number: usize, run: u32, tick: u32) {
        let now = self.queue.now();
        let home = &mut self.homes[number];
        if home.run != run || home.tick.1 != tick {
            return;
        }
        let at = home.clock.reads(now);
        let Some(core) = &mut home.core else { return };
        core.advance(at);
        self.outcome
            .saw(core.in_memory(), core.waiting(), core.mesh_counters());
        self.speak(number);
        self.tick_when_due(number);
    }

    pub(crate) fn flush(&mut self, number: usize, run: u32) {
        let now = self.queue.now();
        let home = &mut self.homes[number];
        if home.run != run {
            return;
        }
        self.queue.after(
            FLUSH_US,
            Event::Flush {
                home: number as u16,
                run,
            },
        );
        let Some(core) = &mut home.core else { return };
        if home.committing.is_none() && core.changed() {
            core.advance(home.clock.reads(now));
            home.committing = Some(core.flush_all_but_waiting());
            self.queue.after(
                COMMIT_US,
                Event::Commit {
                    home: number as u16,
                    run,
                },
            );
            self.speak(number);
        }
    }

    pub(crate) fn commit(&mut self, number: usize, run: u32) {
        let home = &mut self.homes[number];
        if home.run != run {
            return;
        }
        if let Some(flush) = home.committing.take() {
            self.store(number, flush);
        }
    }

    /// Everything that a federator knows is stored, now.
    pub(crate) fn store_all(&mut self, number: usize) {
        let now = self.queue.now();
        let home = &mut self.homes[number];
        if let Some(flush) = home.committing.take() {
            self.store(number, flush);
        }
        let home = &mut self.homes[number];
        let at = home.clock.reads(now);
        let flush = home.core.as_mut().map(|core| {
            core.advance(at);
            core.flush()
        });
        if let Some(flush) = flush {
            self.store(number, flush);
        }
    }

    fn store(&mut self, number: usize, flush: Flush) {
        let keep_above = flush.position.min(flush.held_from);
        self.note_held_back(number, &flush);
        let now = self.queue.now();
        let World {
            homes,
            truth,
            outcome,
            scenario,
            ..
        } = self;
        let federators = homes.len();
        let home = &mut homes[number];
        home.stored.commit(
            &flush,
            now,
            scenario.breakage,
            |agent| agent as usize % federators == number,
            truth,
            outcome,
        );
        while home
            .journal
            .front()
            .is_some_and(|(position, ..)| *position <= keep_above)
        {
            home.journal.pop_front();
        }
        if let Some(core) = &mut home.core {
            core.reuse(flush.rows);
        }
    }

    fn note_held_back(&mut self, number: usize, flush: &Flush) {
        let World { homes, truth, .. } = self;
        let Some(core) = homes[number].core.as_ref() else {
            return;
        };
        let alone = flush.rows.iter().filter(|row| row.joined.is_none());
        for side in alone.flat_map(|row| row.sides()) {
            let (connection, end) = of_cookie(side.half.cookie);
            truth[connection].ends[end].held_back |= core.is_held_back(side.half.id);
        }
    }

    /// Carries what a core has to say.
    fn speak(&mut self, number: usize) {
        while let Some(told) = self.homes[number]
            .core
            .as_mut()
            .and_then(|core| core.poll_told())
        {
            match told {
                Told::Send { peer, seq, message } => {
                    self.send(number, number_of(&peer), seq, message)
                }
                Told::Redial { peer } => self.redial(number, number_of(&peer)),
            }
        }
    }

    /// Takes all memory from a federator; what is stored and what is in the journal stays.
    pub(crate) fn crash(&mut self, number: usize, until: i64) {
        let home = &mut self.homes[number];
        home.run += 1;
        home.core = None;
        home.inbox.clear();
        home.syncing = false;
        home.committing = None;
        self.parts[number] = crate::members::Part::default();
        self.outcome.crashes += 1;
        for agent in (number..self.agents.len()).step_by(self.homes.len()) {
            self.agent_lost(agent as u32, until);
        }
        self.sessions_crash(number);
    }

    /// A federator starts again.
    pub(crate) fn restart(&mut self, number: usize) {
        let now = self.queue.now();
        let breakage = self.scenario.breakage;
        let home = &mut self.homes[number];
        if home.is_up() {
            return;
        }
        home.run += 1;
        let loaded = home.stored.load(breakage);
        let (covered, from) = (loaded.position, loaded.held_from.min(loaded.position));
        let mut core = Core::new(config(number, &self.scenario), loaded);
        let mut last = None;
        for (position, at, input) in home
            .journal
            .iter()
            .filter(|(position, ..)| *position > from)
        {
            last = Some(*at);
            if *position <= covered && breakage == Some(Breakage::HeldNotRecovered) {
                continue;
            }
            if *position <= covered {
                core.recover(*position, *at, input.clone());
            } else {
                core.apply(*position, *at, input.clone());
            }
        }
        let at = home.clock.reads(now);
        let down_us = last
            .map_or(0, |last: Timestamp| at.0.saturating_sub(last.0))
            .max(0);
        home.position += 1;
        home.journal
            .push_back((home.position, at, Input::Start { down_us }));
        core.apply(home.position, at, Input::Start { down_us });
        core.advance(at);
        core.forget_delays();
        if self.scenario.summaries {
            core.vouch(&addresses_of(number));
        }
        while core.poll_told().is_some() {}
        home.core = Some(Box::new(core));
        self.start(number);
    }

    /// Lets a federator's clockwork run, and dial.
    pub(crate) fn start(&mut self, number: usize) {
        let (home, run) = (number as u16, self.homes[number].run);
        self.member_starts(number);
        let phase = self.random.below(TICK_US as u64) as i64;
        self.homes[number].tick.0 = 0;
        self.tick_when_due(number);
        self.queue
            .after(FLUSH_US / 2 + phase, Event::Flush { home, run });
        self.dial_all(number);
    }
}
