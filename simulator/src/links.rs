//! Links between federators: each pair has its delay; packets are late or lost; sometimes no packet gets through.

use weft_wire::model::mix64;
use weft_wire::testing::Random;

use crate::scenario::{MILLI, Scenario};

/// The least time after which a lost packet is sent again.
const RETRANSMISSION_US: i64 = 50 * MILLI;

/// The network between federators.
pub struct Links {
    least_us: i64,
    range_us: u64,
    jitter_us: u64,
    loss_ppm: u64,
    seed: u64,
    random: Random,
    /// Which side of each of the partitions that are in force a federator is on.
    side: Vec<u32>,
    /// Until when each single link is broken.
    cuts: Vec<(usize, usize, i64)>,
    /// When the partitions in force end.
    ends: Vec<(u32, i64)>,
}

impl Links {
    /// The links of a scenario.
    pub fn new(scenario: &Scenario, seed: u64) -> Self {
        let (least, most) = scenario.link_us;
        Self {
            least_us: least,
            range_us: (most - least).max(0) as u64 + 1,
            jitter_us: scenario.jitter_us.max(0) as u64 + 1,
            loss_ppm: scenario.loss_ppm,
            seed,
            random: Random::new(seed),
            side: vec![0; scenario.federators],
            cuts: Vec::new(),
            ends: Vec::new(),
        }
    }

    /// One way between two federators, without jitter.
    pub fn delay_us(&self, one: usize, other: usize) -> i64 {
        let (low, high) = (one.min(other) as u64, one.max(other) as u64);
        let spread = mix64(self.seed ^ mix64(low << 32 | high)) % self.range_us;
        self.least_us + spread as i64
    }

    /// How long a message takes that is sent again until it gets through.
    pub fn takes_us(&mut self, from: usize, to: usize) -> i64 {
        let delay = self.delay_us(from, to);
        let mut takes = delay + self.random.below(self.jitter_us) as i64;
        while self.random.below(1_000_000) < self.loss_ppm {
            takes += 2 * delay + RETRANSMISSION_US;
        }
        takes
    }

    /// When the two can reach each other; `now` if they can.
    pub fn open_at(&self, now: i64, from: usize, to: usize) -> i64 {
        let apart = self.side[from] ^ self.side[to];
        let partitions = self.ends.iter().filter(|(bit, _)| apart & bit != 0);
        let cuts = self
            .cuts
            .iter()
            .filter(|(a, b, _)| (*a, *b) == (from, to) || (*b, *a) == (from, to));
        partitions
            .map(|(_, at)| *at)
            .chain(cuts.map(|(_, _, at)| *at))
            .fold(now, i64::max)
    }

    /// Parts these from the rest.
    pub fn part(&mut self, members: &[usize], until: i64) {
        let Some(bit) = (0..32)
            .map(|n| 1 << n)
            .find(|bit| self.ends.iter().all(|(used, _)| used != bit))
        else {
            return;
        };
        members.iter().for_each(|member| self.side[*member] |= bit);
        self.ends.push((bit, until));
    }

    /// Breaks one link.
    pub fn cut(&mut self, one: usize, other: usize, until: i64) {
        self.cuts.push((one, other, until));
    }

    /// Forgets what has ended.
    pub fn mend(&mut self, now: i64) {
        self.cuts.retain(|(_, _, at)| *at > now);
        for (bit, _) in self.ends.iter().filter(|(_, at)| *at <= now) {
            self.side.iter_mut().for_each(|side| *side &= !bit);
        }
        self.ends.retain(|(_, at)| *at > now);
    }
}
