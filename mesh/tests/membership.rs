//! Members that find each other, lose each other, come back and are relieved: afterwards all agree.

// Everything in this file is a test.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use weft_mesh::membership::{Effect, FLAPS_HALF_LIFE_US, Membership, Node};
use weft_wire::testing::Random;

const SECOND: i64 = 1_000_000;
/// Within this all know who is gone, or back.
const SOON: i64 = 60 * SECOND;

/// Members and the links between them.
struct Net {
    random: Random,
    now: i64,
    members: Vec<Option<Membership>>,
    runs: Vec<u64>,
    on_the_way: BTreeMap<(i64, u64), (usize, Vec<u8>)>,
    sent: u64,
    loss_percent: u64,
    parted: BTreeSet<usize>,
}

fn name(number: usize) -> String {
    format!("fed-{number:03}")
}

impl Net {
    fn new(members: usize, seed: u64) -> Self {
        let mut net = Self {
            random: Random::new(seed),
            now: 0,
            members: (0..members).map(|_| None).collect(),
            runs: vec![0; members],
            on_the_way: BTreeMap::new(),
            sent: 0,
            loss_percent: 1,
            parted: BTreeSet::new(),
        };
        (0..members).for_each(|number| net.start(number));
        net
    }

    fn start(&mut self, number: usize) {
        self.runs[number] += 1000;
        let region = ["east", "west"][number % 2];
        let own = Node::new(&name(number), region, "192.0.2.1:7443", self.runs[number]);
        self.members[number] = Some(Membership::new(own, self.random.bits()));
    }

    fn member(&mut self, number: usize) -> &mut Membership {
        self.members[number].as_mut().unwrap()
    }

    /// Time passes. Who sees nobody asks the first one, and that one the second.
    fn pass(&mut self, time: i64) {
        let end = self.now + time;
        while self.now < end {
            self.now += 50_000;
            while let Some(entry) = self
                .on_the_way
                .first_entry()
                .filter(|entry| entry.key().0 <= self.now)
            {
                let (to, bytes) = entry.remove();
                let now = self.now;
                if let Some(member) = &mut self.members[to] {
                    member.received(now, &bytes);
                }
                self.carry(to);
            }
            for number in 0..self.members.len() {
                let now = self.now;
                let Some(member) = &mut self.members[number] else {
                    continue;
                };
                if now % (5 * SECOND) == 0 && member.up().next().is_none() {
                    member.join(now, &name(usize::from(number == 0)), "192.0.2.1:7443");
                }
                member.advance(now);
                self.carry(number);
            }
        }
    }

    fn carry(&mut self, from: usize) {
        while let Some(effect) = self.members[from].as_mut().and_then(Membership::poll) {
            let Effect::Send { to, bytes } = effect else {
                continue;
            };
            let to: usize = to.name.trim_start_matches("fed-").parse().unwrap();
            let cut = self.parted.contains(&from) != self.parted.contains(&to);
            if !cut && self.random.below(100) >= self.loss_percent {
                self.sent += 1;
                let at = self.now + 10_000 + self.random.below(150_000) as i64;
                self.on_the_way.insert((at, self.sent), (to, bytes));
            }
        }
    }

    /// All that run see the same owners: these.
    fn assert_owners(&self, expected: &[usize]) {
        let expected: Vec<String> = expected.iter().map(|number| name(*number)).collect();
        for member in self.members.iter().flatten() {
            let owners: Vec<&String> = member.owners().iter().map(|(name, _)| name).collect();
            assert_eq!(
                owners,
                expected.iter().collect::<Vec<_>>(),
                "at {}",
                member.own().name
            );
        }
    }
}

#[test]
fn one_that_is_known_is_enough() {
    let mut net = Net::new(30, 1);
    net.pass(SOON);
    net.assert_owners(&(0..30).collect::<Vec<_>>());
}

#[test]
fn who_is_gone_is_missed_and_who_returns_is_back() {
    let mut net = Net::new(10, 2);
    net.pass(SOON);
    net.members[3] = None;
    net.pass(SOON);
    net.assert_owners(&[0, 1, 2, 4, 5, 6, 7, 8, 9]);
    net.start(3);
    net.pass(SOON);
    net.assert_owners(&(0..10).collect::<Vec<_>>());
    assert_eq!(net.member(0).counters().malformed, 0);
}

#[test]
fn a_third_that_was_cut_off_comes_back_by_itself() {
    let mut net = Net::new(9, 3);
    net.pass(SOON);
    net.parted = BTreeSet::from([1, 4, 7]);
    net.pass(10 * 60 * SECOND);
    let seen = |net: &Net, number: usize| net.members[number].as_ref().unwrap().owners().len();
    assert_eq!((seen(&net, 1), seen(&net, 0)), (3, 6));
    net.parted.clear();
    net.pass(SOON);
    net.assert_owners(&(0..9).collect::<Vec<_>>());
}

#[test]
fn one_that_drains_owns_nothing_and_is_there() {
    let mut net = Net::new(5, 4);
    net.pass(SOON);
    let now = net.now;
    net.member(2).drain(now, true);
    net.pass(SOON);
    net.assert_owners(&[0, 1, 3, 4]);
    assert!(
        net.member(0)
            .up()
            .any(|node| node.name == name(2) && node.draining)
    );
    let now = net.now;
    net.member(2).drain(now, false);
    net.member(4).weigh(now, 3);
    net.pass(SOON);
    net.assert_owners(&[0, 1, 2, 3, 4]);
    assert_eq!(net.member(0).owners()[4], (name(4), 3));
}

#[test]
fn one_that_leaves_is_gone_at_once() {
    let mut net = Net::new(5, 5);
    net.pass(SOON);
    let now = net.now;
    net.member(2).leave(now);
    net.pass(2 * SECOND);
    assert_eq!(net.member(0).owners().len(), 4);
}

#[test]
fn one_that_comes_and_goes_is_damped_for_a_while() {
    let mut net = Net::new(4, 6);
    net.pass(SOON);
    for _ in 0..4 {
        net.members[2] = None;
        net.pass(SOON / 2);
        net.start(2);
        net.pass(SOON / 2);
    }
    assert!(net.member(0).damped(&name(2)));
    assert!(net.member(0).up().any(|node| node.name == name(2)));
    assert_eq!(net.member(0).owners().len(), 3);
    net.pass(3 * FLAPS_HALF_LIFE_US);
    net.assert_owners(&[0, 1, 2, 3]);
}

#[test]
fn federators_of_a_region_share_its_agents() {
    let mut net = Net::new(8, 7);
    net.pass(SOON);
    let homes = |net: &Net, at: usize| -> Vec<String> {
        let member = net.members[at].as_ref().unwrap();
        let home = |agent| {
            member
                .home_of(&format!("node-{agent}"), "east")
                .unwrap()
                .name
                .clone()
        };
        (0..400).map(home).collect()
    };
    let before = homes(&net, 0);
    assert_eq!(before, homes(&net, 5), "all say the same");
    for number in [0, 2, 4, 6] {
        let share = before.iter().filter(|home| **home == name(number)).count();
        assert!((60..140).contains(&share), "{share} at {number}");
    }
    let now = net.now;
    net.member(4).drain(now, true);
    net.pass(SOON);
    for (before, after) in before.iter().zip(homes(&net, 0)) {
        assert!(
            *before == after || *before == name(4),
            "only its agents move"
        );
        assert_ne!(after, name(4));
    }
    let member = net.member(1);
    assert!(member.home_of("node-1", "nowhere").is_none());
}

#[test]
fn whatever_happens_all_agree_afterwards() {
    for seed in 0..6 {
        let mut net = Net::new(6, 100 + seed);
        net.loss_percent = 5;
        for _ in 0..12 {
            let number = net.random.below(6) as usize;
            match net.random.below(4) {
                0 => net.members[number] = None,
                1 if net.members[number].is_none() => net.start(number),
                2 => {
                    net.parted.insert(number);
                }
                _ => net.parted.clear(),
            }
            let time = net.random.below(40) as i64 * SECOND;
            net.pass(time);
        }
        net.parted.clear();
        for number in 0..6 {
            if net.members[number].is_none() {
                net.start(number);
            }
        }
        net.pass(SOON + 4 * FLAPS_HALF_LIFE_US);
        net.assert_owners(&(0..6).collect::<Vec<_>>());
    }
}

#[test]
fn bytes_that_say_nothing_change_nothing() {
    let mut net = Net::new(3, 8);
    net.pass(SOON);
    let before = net.member(0).owners().to_vec();
    for length in 0..300 {
        let bytes: Vec<u8> = (0..length).map(|_| net.random.bits() as u8).collect();
        let now = net.now;
        net.member(0).received(now, &bytes);
    }
    assert_eq!(net.member(0).counters().malformed, 300);
    assert_eq!(net.member(0).owners(), before);
}
