//! What a run consists of.

use crate::breakage::Breakage;

/// Microseconds in a second.
pub const SECOND: i64 = 1_000_000;
/// Microseconds in a millisecond.
pub const MILLI: i64 = 1_000;

/// What a run consists of. All times in microseconds.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Its name.
    pub name: &'static str,
    /// Reproduces it.
    pub seed: u64,
    /// Federators.
    pub federators: usize,
    /// Agents, evenly spread over them.
    pub agents: usize,
    /// Connections that each agent opens, on average.
    pub connections: f64,
    /// How long connections are opened; what comes after is settling.
    pub load_us: i64,
    /// Between two federators, one way: least and most, by pair.
    pub link_us: (i64, i64),
    /// Added to each message, at most.
    pub jitter_us: i64,
    /// Of a million packets, so many are lost.
    pub loss_ppm: u64,
    /// Agents' clocks are off by so much at most.
    pub agent_skew_us: i64,
    /// Federators' are.
    pub federator_skew_us: i64,
    /// All clocks drift by so much at most.
    pub drift_ppm: i64,
    /// Of a hundred connections, so many reach another region.
    pub cross_percent: u64,
    /// Of a hundred, so many have no agent at one end.
    pub outside_percent: u64,
    /// How long connections last, on average.
    pub lifetime_us: i64,
    /// Of a hundred, so many stay open.
    pub lasting_percent: u64,
    /// Ports that a NAT or a host hands out before it uses one again.
    pub ports: u16,
    /// How long a journal takes to become durable.
    pub sync_us: i64,
    /// As configured for all federators.
    pub hold_us: i64,
    /// As configured for all federators.
    pub expiry_us: i64,
    /// Room for halves at each federator.
    pub max_open: usize,
    /// Federators that crash, in all.
    pub crashes: usize,
    /// Partitions of a random part from the rest, in all, and how long each.
    pub partitions: usize,
    /// How long each lasts, at most.
    pub partition_us: i64,
    /// One partition of this share, in percent, from a third of the load's time on, for `partition_us`: what the table shows.
    pub split_percent: usize,
    /// Single links that break for a while, in all.
    pub cuts: usize,
    /// Agents that lose their session for a while, in all.
    pub absences: usize,
    /// Federators find each other, and owners follow from that; else all own offers at all times.
    pub membership: bool,
    /// One federator goes for so long, from a third of the load's time on; 0: none.
    pub gone_us: i64,
    /// Federators say behind which addresses their endpoints are.
    pub summaries: bool,
    /// The mesh gets a new key in the middle of the load.
    pub rotation: Rotation,
    /// One of many small worlds, that its seed says everything of.
    pub small: bool,
    /// What is broken on purpose.
    pub breakage: Option<Breakage>,
}

/// How the mesh's key changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rotation {
    /// It does not.
    #[default]
    None,
    /// All have the new one in time, and the old one is given up at last.
    Together,
    /// Each third federator has the old one only, for as long as both are in use.
    Apart,
}

impl Scenario {
    /// Names that [`Self::named`] knows.
    pub const NAMES: [&'static str; 4] = ["calm", "change", "split", "chaos"];

    /// No faults but the usual loss and clocks that are off.
    pub fn calm(seed: u64, federators: usize, agents: usize) -> Self {
        Self {
            name: "calm",
            seed,
            federators: federators.max(1),
            agents: agents.max(1),
            connections: 10.0,
            load_us: 60 * SECOND,
            link_us: (5 * MILLI, 150 * MILLI),
            jitter_us: 2 * MILLI,
            loss_ppm: 100,
            agent_skew_us: 3600 * SECOND,
            federator_skew_us: 200 * MILLI,
            drift_ppm: 50,
            cross_percent: 40,
            outside_percent: 20,
            lifetime_us: 5 * SECOND,
            lasting_percent: 2,
            ports: 28_000,
            sync_us: 4 * MILLI,
            hold_us: 300 * MILLI,
            expiry_us: 120 * SECOND,
            max_open: 0,
            crashes: 0,
            partitions: 0,
            partition_us: 0,
            split_percent: 0,
            cuts: 0,
            absences: 0,
            membership: true,
            gone_us: 0,
            summaries: true,
            rotation: Rotation::None,
            small: false,
            breakage: None,
        }
    }

    /// One federator is down for half a minute.
    pub fn change(seed: u64, federators: usize, agents: usize) -> Self {
        Self {
            name: "change",
            gone_us: 30 * SECOND,
            // What comes from a store after a crash has its times as the agent told them.
            agent_skew_us: 300 * MILLI,
            ..Self::calm(seed, federators, agents)
        }
    }

    /// A small world of chaos; in some the mesh's key changes, federators say where their endpoints are, or all own offers at all
    /// times. Without membership that is quicker, and another thing that must work.
    pub fn small(seed: u64) -> Self {
        Self {
            membership: seed.is_multiple_of(2),
            summaries: (seed / 2).is_multiple_of(2),
            rotation: [
                Rotation::None,
                Rotation::Together,
                Rotation::None,
                Rotation::Apart,
            ][(seed / 4 % 4) as usize],
            small: true,
            ..Self::chaos(seed, 2 + (seed % 5) as usize, 20)
        }
    }

    /// A third of the federators is cut off for ten minutes.
    pub fn split(seed: u64, federators: usize, agents: usize) -> Self {
        Self {
            name: "split",
            connections: 5.0,
            load_us: 720 * SECOND,
            expiry_us: 720 * SECOND,
            partition_us: 600 * SECOND,
            split_percent: 33,
            ..Self::calm(seed, federators, agents)
        }
    }

    /// Everything at once.
    pub fn chaos(seed: u64, federators: usize, agents: usize) -> Self {
        Self {
            name: "chaos",
            connections: 30.0,
            load_us: 60 * SECOND,
            jitter_us: 50 * MILLI,
            loss_ppm: 20_000,
            agent_skew_us: 300 * MILLI,
            federator_skew_us: 400 * MILLI,
            drift_ppm: 200,
            ports: 4,
            expiry_us: 240 * SECOND,
            crashes: 1 + federators / 2,
            partitions: 2,
            partition_us: 30 * SECOND,
            cuts: federators,
            absences: 1 + agents / 10,
            ..Self::calm(seed, federators, agents)
        }
    }

    /// The scenario of that name.
    pub fn named(name: &str, seed: u64, federators: usize, agents: usize) -> Option<Self> {
        match name {
            "calm" => Some(Self::calm(seed, federators, agents)),
            "change" => Some(Self::change(seed, federators, agents)),
            "split" => Some(Self::split(seed, federators, agents)),
            "chaos" => Some(Self::chaos(seed, federators, agents)),
            _ => None,
        }
    }

    /// Whether journals and stores will be read again.
    pub(crate) fn is_durable(&self) -> bool {
        self.crashes > 0 || self.gone_us > 0
    }

    /// How to run it again.
    pub fn command(&self) -> String {
        let Self {
            name,
            seed,
            federators,
            agents,
            ..
        } = self;
        if self.small {
            return format!("cargo xtask simulate --seeds {seed}..{}", seed + 1);
        }
        format!(
            "cargo xtask simulate --scenario {name} --federators {federators} --agents {agents} --seed {seed}"
        )
    }

    /// Room for halves at each federator: given, or some times what each will have.
    pub(crate) fn room(&self) -> usize {
        if self.max_open > 0 {
            return self.max_open;
        }
        let halves = self.connections * 2.0 * self.agents as f64 / self.federators as f64;
        (halves as usize * 2).clamp(1_000, 4_000_000)
    }
}
