//! Agents: they gather what they see, send it in batches, and keep what is not acknowledged.

use std::collections::VecDeque;
use std::rc::Rc;

use weft_wire::{AgentInfo, Half, HalfBatch, Owner, Process, Site, Timestamp};

use crate::clock::Clock;
use crate::homes::Incoming;
use crate::queue::Event;
use crate::scenario::{MILLI, SECOND};
use crate::world::World;

/// How long an agent gathers.
const FLUSH_US: i64 = 200 * MILLI;
/// Between an agent and its federator, one way, at most.
const REACH_US: u64 = 3 * MILLI as u64;
/// After a lost session an agent returns within this.
const RETURN_US: u64 = 2 * SECOND as u64;

/// An agent.
pub(crate) struct Agent {
    pub(crate) clock: Clock,
    seq: u64,
    gathered: Vec<Half>,
    flushing: bool,
    spool: VecDeque<(u64, Rc<HalfBatch>)>,
    connected: bool,
    /// Counts lost sessions.
    run: u32,
    /// The run of its federator that knows it.
    greeted: u32,
}

/// A batch on its way.
pub(crate) struct BatchParcel {
    agent: u32,
    seq: u64,
    batch: Rc<HalfBatch>,
    sent: Timestamp,
    run: u32,
}

impl Agent {
    pub(crate) fn new(clock: Clock) -> Self {
        Self {
            clock,
            seq: 0,
            gathered: Vec::new(),
            flushing: false,
            spool: VecDeque::new(),
            connected: true,
            run: 0,
            greeted: 0,
        }
    }

    /// What it says of itself.
    pub(crate) fn info(number: usize, home: usize) -> AgentInfo {
        let site = Site {
            cloud: "sim".into(),
            account: format!("{home}"),
            region: format!("region-{home}"),
            zone: "a".into(),
            network: format!("vpc-{home}"),
            cluster: "main".into(),
            namespace: String::new(),
        };
        let name = format!("node-{number}");
        AgentInfo {
            host: name.clone(),
            name,
            version: "1.0.0".into(),
            site,
            kernel: "6.12.0".into(),
        }
    }

    fn owner(number: usize) -> Owner {
        let process = Process {
            pid: 1000 + (number % 50) as u32,
            name: "worker".into(),
            exe: Some("/usr/bin/worker".into()),
            uid: 1000,
            ..Process::default()
        };
        Owner {
            process: Some(process),
            cgroup: "/system.slice/worker.service".into(),
            workload: format!("worker-{}", number % 50),
            unit: Some("worker.service".into()),
            ..Owner::default()
        }
    }
}

impl World {
    /// The federator that an agent reports to.
    pub(crate) fn home_of(&self, agent: u32) -> usize {
        agent as usize % self.homes.len()
    }

    /// An agent sees a half, or news of it.
    pub(crate) fn report(&mut self, number: u32, half: Half) {
        let agent = &mut self.agents[number as usize];
        match agent
            .gathered
            .iter_mut()
            .find(|known| known.cookie == half.cookie)
        {
            Some(known) => *known = half,
            None => agent.gathered.push(half),
        }
        if !std::mem::replace(&mut agent.flushing, true) {
            self.queue.after(FLUSH_US, Event::AgentFlush(number));
        }
    }

    pub(crate) fn agent_flush(&mut self, number: u32) {
        let agent = &mut self.agents[number as usize];
        agent.flushing = false;
        agent.seq += 1;
        let batch = Rc::new(HalfBatch {
            boot: 7,
            owners: vec![Agent::owner(number as usize)],
            halves: std::mem::take(&mut agent.gathered),
            ..HalfBatch::default()
        });
        agent.spool.push_back((agent.seq, batch.clone()));
        let (seq, connected) = (agent.seq, agent.connected);
        if connected {
            self.send_batch(number, seq, batch);
        }
    }

    fn send_batch(&mut self, number: u32, seq: u64, batch: Rc<HalfBatch>) {
        let agent = &self.agents[number as usize];
        let (sent, run) = (agent.clock.reads(self.queue.now()), agent.run);
        let parcel = self.batches.put(BatchParcel {
            agent: number,
            seq,
            batch,
            sent,
            run,
        });
        let delay = 1 + number as i64 % REACH_US as i64;
        self.queue.after(delay, Event::Batch(parcel));
    }

    pub(crate) fn batch_arrives(&mut self, parcel: u32) {
        let Some(BatchParcel {
            agent: number,
            seq,
            batch,
            sent,
            run,
        }) = self.batches.take(parcel)
        else {
            return;
        };
        let (now, home) = (self.queue.now(), self.home_of(number));
        let believed = self.broken(crate::Breakage::SkewIgnored);
        let agent = &mut self.agents[number as usize];
        if agent.run != run || !self.homes[home].is_up() {
            return;
        }
        let skew_us = if believed {
            0
        } else {
            sent.0 - self.homes[home].clock.reads(now).0
        };
        let (first, running) = (agent.greeted, self.homes[home].run);
        agent.greeted = running;
        if first != running {
            self.take_in(home, Incoming::Hello(number));
        }
        for half in &batch.halves {
            let (connection, end) = crate::truth::of_cookie(half.cookie);
            let end = &mut self.truth[connection].ends[end];
            end.arrived_at = end.arrived_at.min(now);
        }
        if self.broken(crate::Breakage::BatchAcknowledgedEarly) {
            self.acknowledge_batch(number, seq, &batch);
        }
        self.take_in(
            home,
            Incoming::Batch {
                agent: number,
                seq,
                skew_us,
                batch,
            },
        );
    }

    /// Promises an agent that a batch is durable.
    pub(crate) fn acknowledge_batch(&mut self, number: u32, seq: u64, batch: &HalfBatch) {
        for half in &batch.halves {
            let (connection, end) = crate::truth::of_cookie(half.cookie);
            self.truth[connection].ends[end].acknowledged = true;
        }
        let delay = 1 + number as i64 % REACH_US as i64;
        self.queue
            .after(delay, Event::BatchAcked { agent: number, seq });
    }

    pub(crate) fn batch_acked(&mut self, number: u32, seq: u64) {
        let spool = &mut self.agents[number as usize].spool;
        while spool.front().is_some_and(|(first, _)| *first <= seq) {
            spool.pop_front();
        }
    }

    /// An agent loses its session, and returns when its federator is up and the time has come.
    pub(crate) fn agent_lost(&mut self, number: u32, until: i64) {
        let agent = &mut self.agents[number as usize];
        agent.connected = false;
        agent.run += 1;
        let run = agent.run;
        let pause = self.random.below(RETURN_US) as i64;
        self.queue.at(
            until.saturating_add(pause),
            Event::AgentReturns { agent: number, run },
        );
    }

    pub(crate) fn agent_returns(&mut self, number: u32, run: u32) {
        let home = self.home_of(number);
        let up = self.homes[home].is_up();
        let agent = &mut self.agents[number as usize];
        if agent.run != run || agent.connected {
            return;
        }
        if !up {
            self.queue
                .after(SECOND, Event::AgentReturns { agent: number, run });
            return;
        }
        agent.connected = true;
        agent.greeted = 0;
        let durable = self.homes[home].durable_seq(number);
        self.batch_acked(number, durable);
        let again: Vec<_> = self.agents[number as usize].spool.iter().cloned().collect();
        for (seq, batch) in again {
            self.send_batch(number, seq, batch);
        }
    }

    /// Nothing waits at any agent.
    pub(crate) fn agents_idle(&self) -> bool {
        self.agents
            .iter()
            .all(|agent| agent.gathered.is_empty() && agent.spool.is_empty())
    }
}
