//! When to dial, what may be on its way, and when to give up.

use std::collections::VecDeque;
use std::time::Duration;

/// First wait after a failure; doubles with each further one.
pub const FIRST_WAIT: Duration = Duration::from_millis(250);
/// Longest wait between attempts.
pub const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// A session that lasted so long, or in which something was acknowledged, counts as a success.
pub const SUCCESS_AFTER: Duration = Duration::from_secs(10);
/// Most batches on their way. More wait in the spool.
pub const WINDOW_BATCHES: usize = 64;
/// Most bytes on their way; one batch may pass it.
pub const WINDOW_BYTES: usize = 8 << 20;
/// Without an acknowledgement for so long while batches are on their way, the session is given up.
pub const ACK_TIMEOUT: Duration = Duration::from_secs(60);

/// A batch that was refused so often while nothing else was on its way is skipped.
pub const REFUSALS: u32 = 2;

/// The uplink's decisions. Time is the time since the start.
///
/// The driver asks [`Machine::step`] while there is no session, does what it says, and tells [`Machine::connected`] or
/// [`Machine::ended`]. During a session it sends while [`Machine::may_send`], telling [`Machine::sent`] each time, tells
/// [`Machine::acknowledged`], and ends the session when [`Machine::stalled`].
#[derive(Debug)]
pub struct Machine {
    random: u64,
    failures: u32,
    dial_at: Duration,
    session: Option<Session>,
    /// A batch up to this one was refused: batches go one at a time until it is past.
    careful_until: u64,
    /// The batch that was refused alone, and how often.
    suspect: (u64, u32),
}

#[derive(Debug)]
struct Session {
    since: Duration,
    progress: Duration,
    acknowledged: u64,
    highest_sent: u64,
    /// Number and bytes of each batch on its way.
    in_flight: VecDeque<(u64, usize)>,
    bytes: usize,
    succeeded: bool,
}

/// What to do without a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Dial now.
    Dial,
    /// Ask again after this time.
    Wait(Duration),
}

/// What the federator did wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misbehaviour {
    /// It acknowledged what was never sent.
    NeverSent,
}

impl Machine {
    /// Without a session, and about to dial.
    pub fn new(seed: u64) -> Self {
        Self {
            random: seed,
            failures: 0,
            dial_at: Duration::ZERO,
            session: None,
            careful_until: 0,
            suspect: (0, 0),
        }
    }

    /// What to do now.
    pub fn step(&self, now: Duration) -> Step {
        if now >= self.dial_at {
            Step::Dial
        } else {
            Step::Wait(self.dial_at - now)
        }
    }

    /// A session stands; the federator has everything up to `durable_seq`.
    pub fn connected(&mut self, now: Duration, durable_seq: u64) {
        self.session = Some(Session {
            since: now,
            progress: now,
            acknowledged: durable_seq,
            highest_sent: durable_seq,
            in_flight: VecDeque::new(),
            bytes: 0,
            succeeded: false,
        });
    }

    /// The attempt or the session is over. What was on its way will be sent again.
    pub fn ended(&mut self, now: Duration) {
        let success = |session: Session| {
            session.succeeded || now.saturating_sub(session.since) >= SUCCESS_AFTER
        };
        self.failures = if self.session.take().is_some_and(success) {
            0
        } else {
            self.failures.saturating_add(1)
        };
        self.dial_at = now + self.wait();
    }

    /// Whether the window has room. Without a session it has none.
    pub fn may_send(&self) -> bool {
        let room = |session: &Session| {
            if session.acknowledged < self.careful_until {
                return session.in_flight.is_empty();
            }
            session.in_flight.len() < WINDOW_BATCHES && session.bytes < WINDOW_BYTES
        };
        self.session.as_ref().is_some_and(room)
    }

    /// Whether a batch that may be refused is on its way: nothing else is to be sent, so that it is known what was refused.
    pub fn probing(&self) -> bool {
        let probing = |session: &Session| {
            session.acknowledged < self.careful_until && !session.in_flight.is_empty()
        };
        self.session.as_ref().is_some_and(probing)
    }

    /// Whether batches go one at a time, because one was refused.
    pub fn careful(&self) -> bool {
        let careful = |session: &Session| session.acknowledged < self.careful_until;
        self.session.as_ref().is_some_and(careful)
    }

    /// The federator ended the session because it does not understand what it was sent; to be told before
    /// [`Machine::ended`]. Returns the batch that is to be skipped: the one that was refused [`REFUSALS`] times while nothing
    /// else was on its way, or once where its version was (`version`).
    pub fn refused(&mut self, version: bool) -> Option<u64> {
        let probing = self.probing();
        let session = self.session.as_mut()?;
        let (first, _) = *session.in_flight.front()?;
        if !probing {
            self.careful_until = self.careful_until.max(session.highest_sent);
            return None;
        }
        let (suspect, times) = self.suspect;
        let times = if suspect == first { times + 1 } else { 1 };
        self.suspect = (first, times);
        let skipped = version || times >= REFUSALS;
        // With the next one it goes on: no reason to wait.
        session.succeeded |= skipped;
        skipped.then_some(first)
    }

    /// A batch is on its way.
    pub fn sent(&mut self, now: Duration, seq: u64, bytes: usize) {
        if let Some(session) = &mut self.session {
            if session.in_flight.is_empty() {
                session.progress = now;
            }
            session.in_flight.push_back((seq, bytes));
            session.bytes += bytes;
            session.highest_sent = session.highest_sent.max(seq);
        }
    }

    /// Everything up to `seq` is durable. Again, or late, is no mistake.
    pub fn acknowledged(&mut self, now: Duration, seq: u64) -> Result<(), Misbehaviour> {
        let Some(session) = &mut self.session else {
            return Ok(());
        };
        if seq > session.highest_sent {
            return Err(Misbehaviour::NeverSent);
        }
        if seq > session.acknowledged {
            session.acknowledged = seq;
            session.progress = now;
            session.succeeded = true;
        }
        while session
            .in_flight
            .front()
            .is_some_and(|(sent, _)| *sent <= seq)
        {
            let (_, bytes) = session.in_flight.pop_front().unwrap_or_default();
            session.bytes -= bytes;
        }
        Ok(())
    }

    /// Whether nothing is on its way.
    pub fn idle(&self) -> bool {
        let idle = |session: &Session| session.in_flight.is_empty();
        self.session.as_ref().is_none_or(idle)
    }

    /// Whether the federator has been silent about batches for too long.
    pub fn stalled(&self, now: Duration) -> bool {
        let stalled = |session: &Session| {
            !session.in_flight.is_empty() && now.saturating_sub(session.progress) >= ACK_TIMEOUT
        };
        self.session.as_ref().is_some_and(stalled)
    }

    /// Between half of the doubled wait and the whole: agents that lost the same federator do not come back at once.
    fn wait(&mut self) -> Duration {
        let doubled = FIRST_WAIT
            .saturating_mul(1 << self.failures.min(16))
            .min(LONGEST_WAIT);
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let jitter = (weft_wire::mix64(self.random) >> 40) as f64 / f64::from(1 << 24);
        doubled.mul_f64(0.5 + 0.5 * jitter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn waits_double_up_to_a_limit_and_differ_by_host() {
        let waits = |seed| {
            let mut machine = Machine::new(seed);
            let mut now = Duration::ZERO;
            let mut waits = Vec::new();
            for _ in 0..12 {
                assert_eq!(machine.step(now), Step::Dial);
                machine.ended(now);
                let Step::Wait(wait) = machine.step(now) else {
                    panic!("no wait")
                };
                waits.push(wait);
                now += wait;
            }
            waits
        };
        let (one, two) = (waits(1), waits(2));
        for (failures, wait) in one.iter().enumerate() {
            let doubled = FIRST_WAIT.saturating_mul(2 << failures).min(LONGEST_WAIT);
            assert!(
                (doubled / 2..=doubled).contains(wait),
                "{failures}: {wait:?}"
            );
        }
        assert_ne!(one, two);
        assert_eq!(one, waits(1));
    }

    #[test]
    fn what_is_refused_twice_alone_is_skipped() {
        let mut machine = Machine::new(7);
        let session = |machine: &mut Machine, durable, seqs: &[u64]| {
            machine.connected(S, durable);
            for seq in seqs {
                assert!(machine.may_send());
                machine.sent(S, *seq, 10);
            }
        };
        session(&mut machine, 5, &[6, 7, 8]);
        assert_eq!(machine.refused(false), None, "which one is not known");
        machine.ended(S);
        session(&mut machine, 5, &[6]);
        assert!(!machine.may_send() && machine.probing());
        machine.acknowledged(S, 6).unwrap();
        assert!(machine.may_send() && !machine.probing());
        assert_eq!(machine.refused(false), None, "nothing is on its way");
        machine.sent(S, 7, 10);
        assert_eq!(machine.refused(false), None, "once");
        machine.ended(S);
        session(&mut machine, 6, &[7]);
        assert_eq!(machine.refused(false), Some(7));
        machine.ended(S);
        session(&mut machine, 6, &[8]);
        machine.acknowledged(S, 8).unwrap();
        machine.sent(S, 9, 10);
        assert!(machine.may_send(), "all that was refused is past");
        machine.ended(S);
        session(&mut machine, 8, &[9]);
        assert_eq!(machine.refused(true), None);
        machine.ended(S);
        session(&mut machine, 8, &[9]);
        assert_eq!(machine.refused(true), Some(9), "another version stays so");
    }

    #[test]
    fn a_session_that_achieved_something_starts_the_waits_anew() {
        let mut machine = Machine::new(7);
        for _ in 0..10 {
            machine.ended(Duration::ZERO);
        }
        machine.connected(S, 5);
        machine.sent(S, 6, 10);
        machine.acknowledged(S, 6).unwrap();
        machine.ended(S);
        let Step::Wait(wait) = machine.step(S) else {
            panic!("no wait")
        };
        assert!(wait <= FIRST_WAIT, "{wait:?}");
    }

    #[test]
    fn a_session_closed_at_once_is_a_failure() {
        let mut machine = Machine::new(7);
        for _ in 0..10 {
            machine.connected(S, 0);
            machine.ended(S);
        }
        let Step::Wait(wait) = machine.step(S) else {
            panic!("no wait")
        };
        assert!(wait >= LONGEST_WAIT / 2, "{wait:?}");
    }

    #[test]
    fn the_window_fills_and_empties() {
        let mut machine = Machine::new(7);
        assert!(!machine.may_send());
        machine.connected(S, 100);
        let mut seq = 100;
        while machine.may_send() {
            seq += 1;
            machine.sent(S, seq, 1);
        }
        assert_eq!(seq - 100, WINDOW_BATCHES as u64);
        machine.acknowledged(S, 100).unwrap();
        assert!(!machine.may_send(), "nothing new was acknowledged");
        machine.acknowledged(S, 102).unwrap();
        machine.acknowledged(S, 102).unwrap();
        machine.acknowledged(S, 101).unwrap();
        machine.sent(S, seq + 1, WINDOW_BYTES);
        assert!(!machine.may_send(), "bytes count too");
        assert_eq!(
            machine.acknowledged(S, seq + 2),
            Err(Misbehaviour::NeverSent)
        );
    }

    #[test]
    fn silence_is_a_stall_only_while_something_is_on_its_way() {
        let mut machine = Machine::new(7);
        machine.connected(S, 0);
        assert!(!machine.stalled(S + ACK_TIMEOUT * 2));
        machine.sent(S + ACK_TIMEOUT * 2, 1, 1);
        assert!(!machine.stalled(S + ACK_TIMEOUT * 2));
        assert!(machine.stalled(S + ACK_TIMEOUT * 3));
        machine.acknowledged(S + ACK_TIMEOUT * 3, 1).unwrap();
        assert!(!machine.stalled(S + ACK_TIMEOUT * 9));
    }
}
