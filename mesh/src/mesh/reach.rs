//! Who may have the other end of a half, and who of those can be reached.

use std::net::IpAddr;

use weft_stitching::HalfView;
use weft_wire::HalfId;
use weft_wire::control::{PeerMessage, Prefix, Recall, Summary};

use super::outbox::MAX_RECALLS;
use super::{CutOff, Mesh};
use crate::owner::HomeIndex;
use crate::summary::is_public;

impl Mesh {
    /// A half came so late that its other end may have expired: asks those to offer that again behind whose addresses its peer, at
    /// `remote`, may be; as far as they can be reached. How many.
    pub fn recall(&mut self, recall: Recall, remote: IpAddr) -> usize {
        let concerned: Vec<HomeIndex> = self.may_have(remote).collect();
        let reached = |index: &HomeIndex| self.peers[*index].session.is_some();
        let reached: Vec<HomeIndex> = concerned.into_iter().filter(reached).collect();
        for peer in &reached {
            self.queue_recall(*peer, recall);
        }
        reached.len()
    }

    /// The same, of one home that could not be reached before.
    pub fn recall_from(&mut self, peer: &str, recall: Recall, remote: IpAddr) {
        if let Some(peer) = self.config.members.index(peer)
            && self.peers[peer].session.is_some()
            && !self.others.exclude(peer, remote)
        {
            self.queue_recall(peer, recall);
        }
    }

    fn queue_recall(&mut self, to: HomeIndex, recall: Recall) {
        let peer = &mut self.peers[to];
        if peer.recalls.len() >= MAX_RECALLS {
            self.recalls_dropped += 1;
            return;
        }
        peer.recalls.push_back(recall);
        self.gather(to, true);
    }

    /// Other federators that may have endpoints behind an address.
    fn may_have(&self, remote: IpAddr) -> impl Iterator<Item = HomeIndex> {
        let others = (0..self.peers.len()).filter(|index| *index != self.name);
        others.filter(move |index| !self.others.exclude(*index, remote))
    }

    /// Whether there is a session of ours to every other federator that may have endpoints behind an address.
    pub fn reaches_all_behind(&self, remote: IpAddr) -> bool {
        self.may_have(remote)
            .all(|index| self.peers[index].session.is_some())
    }

    /// Who of those concerned with an offered half cannot be reached. Of one that was held back: anybody, who may have come to have
    /// its peer's address meanwhile.
    pub fn cut_off(&self, half: HalfId) -> CutOff {
        let away = |index: HomeIndex| index != self.name && self.peers[index].session.is_none();
        if self.home.is_held_back(half) {
            return CutOff {
                owner: false,
                partner: (0..self.peers.len()).any(away),
            };
        }
        let (owners, partner) = self.home.concerned(half);
        CutOff {
            owner: owners.into_iter().flatten().any(away),
            partner: partner.is_some_and(away),
        }
    }

    /// Whether nobody is asked about a half, because its peer's address is nobody's.
    pub fn is_held_back(&self, half: HalfId) -> bool {
        self.home.is_held_back(half)
    }

    /// Our endpoints appear behind these public addresses, and behind no others: those of hosts, NAT gateways and load balancers.
    /// Adds to what was said before.
    pub fn vouch(&mut self, prefixes: &[Prefix]) {
        let clock = self.now.saturating_add(self.slept_us);
        self.own.vouch(clock, prefixes);
        self.tell_where();
    }

    /// A peer's half has this address for one of our endpoints.
    pub(super) fn appears(&mut self, address: IpAddr) {
        let clock = self.now.saturating_add(self.slept_us);
        if self.own.learn(clock, address) {
            self.tell_where();
        }
    }

    /// A half of ours: its own address is an endpoint's.
    pub(super) fn see(&mut self, view: &HalfView) {
        self.appears(view.local.ip());
    }

    fn tell_where(&mut self) {
        for index in 0..self.peers.len() {
            if index != self.name && self.peers[index].session.is_some() {
                self.peers[index].summary_due = true;
                self.gather(index, false);
            }
        }
    }

    /// The peer's address of a half that nobody is to be asked about.
    pub(super) fn outside(&self, remote: IpAddr) -> Option<IpAddr> {
        let others = self.peers.len().saturating_sub(1);
        let all_have_said = others > 0 && self.others.known() == others;
        (all_have_said && is_public(remote) && !self.others.cover(remote)).then_some(remote)
    }

    /// A peer says where its endpoints are.
    pub(super) fn told_where(&mut self, index: HomeIndex, summary: &Summary) {
        if index != self.name && self.others.say(index, summary) {
            let others = &self.others;
            self.home.release(|address| others.cover(address));
        }
    }

    /// A peer says something: if it is not where its endpoints are, it does not say that at all, and may have any.
    pub(super) fn heard_of(&mut self, index: HomeIndex, message: &PeerMessage) {
        let first = !std::mem::replace(&mut self.peers[index].heard, true);
        if first && !matches!(message, PeerMessage::Summary(_)) && !self.others.has_said(index) {
            self.home.release(|_| true);
        }
    }
}
