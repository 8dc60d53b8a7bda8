//! The core's side of the mesh: halves without partner are offered, and other homes' cards become the other ends.

use weft_mesh::{Card, Config, Effect, KeepHome, Link, Members, Mesh, Records, Withdrawn};
use weft_stitching::{HalfView, Verdict};
use weft_wire::control::{EndpointCard, PeerMessage, Prefix};
use weft_wire::query::Unmatched;
use weft_wire::{AgentInfo, Half, HalfId, Timestamp};

use super::names::{Agents, Owners, PeerNames};
use super::slots::{Slot, SlotNumber, Slots};
use super::{Core, CoreConfig, confidence};
use crate::record::{AgentRecord, Joined, is_client};

/// How long an owner waits for full agreement before it pairs offers that agree only in part.
const PARTIAL_DELAY_US: i64 = 5_000_000;
/// How long words for one peer wait for company: with a thousand federators each would be a message else.
const GATHER_US: i64 = 20_000;
/// An owner keeps offers of everyone: some times what one home may have open.
const OFFERS_PER_OPEN: usize = 2;

/// Joined halves of one flush whose delay is taken.
pub const NAMED_OF_A_FLUSH: usize = 1024;

/// What peers have to be told.
#[derive(Clone, Debug, PartialEq)]
pub enum Told {
    /// Send this on our session to the peer.
    Send {
        /// Its name.
        peer: String,
        /// Number within the session.
        seq: u64,
        /// What.
        message: PeerMessage,
    },
    /// Our session to the peer is dead: dial again.
    Redial {
        /// Its name.
        peer: String,
    },
}

/// What happens between two federators and does not outlive a process.
#[derive(Clone, Debug, PartialEq)]
pub enum Contact {
    /// Our session to a peer begins.
    Up {
        /// Its name.
        peer: String,
        /// Which run of its program.
        instance: u64,
    },
    /// Our session to a peer ended.
    Down {
        /// Its name.
        peer: String,
    },
    /// A peer's session to us begins.
    PeerUp {
        /// Its name.
        peer: String,
        /// Which run of its program.
        instance: u64,
    },
    /// A peer acknowledged what we said.
    Acked {
        /// Its name.
        peer: String,
        /// Up to this number of the present session.
        seq: u64,
    },
    /// Federators have come or gone: who owns offers now, with their weights.
    Owners(Vec<(String, u8)>),
    /// A peer offered, or took back.
    Said {
        /// Its name.
        peer: String,
        /// What.
        message: PeerMessage,
    },
}

/// The mesh's state machine; `None` for a federator alone.
pub(super) fn mesh(config: &CoreConfig) -> Option<Mesh> {
    let (peers, key) = config.mesh.clone()?;
    let members = Members::new(peers.into_iter().chain([config.name.clone()]));
    let max_offers = config.max_open.saturating_mul(OFFERS_PER_OPEN);
    Mesh::new(Config {
        name: config.name.clone(),
        members,
        key,
        expiry_us: config.expiry_us,
        partial_delay_us: PARTIAL_DELAY_US,
        gather_us: GATHER_US,
        stitched_at_home: true,
        max_offers,
        max_offers_per_home: config.max_open,
        max_halves: config.max_open,
    })
}

/// Our halves as the mesh may see them.
struct Ours<'a> {
    slots: &'a Slots,
    owners: &'a Owners,
    names: &'a PeerNames,
    agents: &'a Agents,
}

impl Records for Ours<'_> {
    fn view(&self, half: HalfId) -> Option<HalfView> {
        Some(self.slots[self.slots.of_id(half)?].view())
    }

    fn card(&self, half: HalfId) -> Option<Card> {
        let slot = &self.slots[self.slots.of_id(half)?];
        let agent = self.agents.find(slot.agent)?;
        let shift = |at: Timestamp| Timestamp(at.0.saturating_sub(slot.skew_us));
        let half = Half {
            opened_at: shift(slot.half.opened_at),
            closed_at: slot.half.closed_at.map(shift),
            seen_at: shift(slot.half.seen_at),
            owner: 0,
            name: 0,
            ..slot.half
        };
        let owner = self.owners.find(slot.half.owner)?;
        Some(Card {
            half,
            owner: weft_wire::Owner::clone(owner),
            name: self
                .names
                .find(slot.half.name)
                .map(|name| weft_wire::PeerName::clone(name)),
            agent: agent.record.info.name.clone(),
            site: agent.record.info.site.clone(),
        })
    }
}

impl Core {
    /// Takes what happened between us and a peer.
    pub fn contact(&mut self, contact: &Contact) {
        let now = self.now;
        match (&mut self.mesh, contact) {
            (None, _) => {}
            (
                Some(_),
                Contact::Said {
                    message: PeerMessage::Recall(recalls),
                    ..
                },
            ) => self.recalled(recalls),
            (Some(_), Contact::Said { peer, message }) => self.heard(peer, message),
            (Some(mesh), Contact::Up { peer, instance }) => {
                mesh.session_up(peer, *instance);
                self.returned(peer);
            }
            (Some(mesh), Contact::Owners(owners)) => drop(mesh.owners_changed(owners)),
            (Some(mesh), Contact::Down { peer }) => mesh.session_down(peer),
            (Some(mesh), Contact::PeerUp { peer, instance }) => {
                mesh.peer_session_up(peer, *instance)
            }
            (Some(mesh), Contact::Acked { peer, seq }) => mesh.acked(now, peer, *seq),
        }
        self.converse();
    }

    /// Our endpoints appear to others behind these public addresses and no others; adds to what was said before.
    pub fn vouch(&mut self, prefixes: &[Prefix]) {
        if let Some(mesh) = &mut self.mesh {
            mesh.vouch(prefixes);
        }
        self.converse();
    }

    /// What is told to no other home; to be said before any session.
    pub fn keep_home(&mut self, what: KeepHome) {
        if let Some(mesh) = &mut self.mesh {
            mesh.keep_home(what);
        }
    }

    /// Whether nobody is asked about this half, because its peer's address is nobody's.
    pub fn is_held_back(&self, half: HalfId) -> bool {
        let mesh = self.mesh.as_ref();
        mesh.is_some_and(|mesh| mesh.is_held_back(half))
    }

    /// What a peer has to be told next.
    pub fn poll_told(&mut self) -> Option<Told> {
        self.told.pop_front()
    }

    /// Totals of the mesh.
    pub fn mesh_counters(&self) -> Option<weft_mesh::Counters> {
        self.mesh.as_ref().map(Mesh::counters)
    }

    /// Items that wait for a peer.
    pub fn queued(&self, peer: &str) -> usize {
        self.mesh.as_ref().map_or(0, |mesh| mesh.queued(peer))
    }

    pub(super) fn heard(&mut self, peer: &str, message: &PeerMessage) {
        let Some(mesh) = &mut self.mesh else { return };
        let ours = Ours {
            slots: &self.slots,
            owners: &self.owners,
            names: &self.names,
            agents: &self.agents,
        };
        if mesh.received(self.now, peer, message, &ours).is_err() {
            self.counters.peer_misbehaved += 1;
        }
        self.converse();
    }

    /// Lets the mesh decide, and acts on it.
    pub(super) fn converse(&mut self) {
        let Some(mesh) = &mut self.mesh else { return };
        let ours = Ours {
            slots: &self.slots,
            owners: &self.owners,
            names: &self.names,
            agents: &self.agents,
        };
        mesh.advance(self.now, &ours);
        while let Some(effect) = self.mesh.as_mut().and_then(Mesh::poll) {
            match effect {
                Effect::Send { peer, seq, message } => {
                    self.told.push_back(Told::Send { peer, seq, message })
                }
                Effect::Redial { peer } => self.told.push_back(Told::Redial { peer }),
                Effect::Join {
                    half,
                    card,
                    verdict,
                    named_at,
                } => self.join(half, &card, verdict, named_at),
                Effect::Undo { half } => self.undo(half),
                Effect::Done { half } => self.done(half),
            }
        }
    }

    pub(super) fn offer(&mut self, number: SlotNumber) {
        let Some(slot) = self.slots.find(number).filter(|slot| !slot.matched()) else {
            return;
        };
        let (id, view) = (slot.half.id, slot.view());
        if !std::mem::replace(&mut self.slots[number].past_hold, true) {
            self.past_hold += 1;
        }
        self.seek_if_late(number, &view);
        let Some(mesh) = &mut self.mesh else { return };
        let taken = mesh.offer(id, &view);
        self.slots[number].offered = taken;
        self.counters.not_offered += u64::from(!taken);
    }

    pub(super) fn withdraw(&mut self, number: SlotNumber, why: Withdrawn) {
        let Some(slot) = self
            .slots
            .find(number)
            .filter(|slot| slot.offered && !slot.remote)
        else {
            return;
        };
        if let Some(mesh) = &mut self.mesh {
            mesh.withdraw(self.now, slot.half.id, why);
        }
        // One that expired may still be joined by a card that is on its way.
        if why != Withdrawn::Expired {
            self.slots[number].offered = false;
        }
    }

    /// After a restart: the mesh learns what it knew of this half.
    pub(super) fn restore_link(&mut self, number: SlotNumber, link: Option<&Link>) {
        let slot = &self.slots[number];
        let Some(mesh) = &mut self.mesh else { return };
        let taken = match link {
            Some(link) => {
                mesh.restore(slot.half.id, &slot.view(), link);
                true
            }
            None => {
                !slot.matched()
                    && slot.unmatched != Unmatched::Ambiguous
                    && mesh.offer(slot.half.id, &slot.view())
            }
        };
        self.slots[number].offered = taken;
        self.slots[number].link_stored = link.is_some();
    }

    /// What the store has to know of a half's link.
    pub(super) fn write_link(
        &mut self,
        number: SlotNumber,
        links: &mut Vec<(HalfId, Link)>,
        changed: &mut Vec<HalfId>,
    ) {
        let partner = self.slots[number].partner;
        for number in [number, partner] {
            let Some(slot) = self.slots.find(number).filter(|slot| !slot.remote) else {
                continue;
            };
            let id = slot.half.id;
            let link = self
                .mesh
                .as_ref()
                .filter(|_| slot.offered)
                .and_then(|mesh| mesh.link(id));
            // A half without card due is done, or was never joined: the first need not be kept, the second must.
            let link = link.filter(|link| slot.card_due || !link.joined);
            if slot.link_stored {
                changed.push(id);
            }
            self.slots[number].link_stored = link.is_some();
            links.extend(link.map(|link| (id, link)));
            if partner == number {
                break;
            }
        }
    }

    /// A half of ours and a card's are one connection, or the card has news of it.
    pub(super) fn join(
        &mut self,
        id: HalfId,
        card: &EndpointCard,
        verdict: Verdict,
        named_at: i64,
    ) {
        let Some(number) = self.slots.of_id(id) else {
            return;
        };
        let agent = self.agents.number(AgentRecord {
            key: None,
            federator: card.federator.clone(),
            info: AgentInfo {
                name: card.agent.clone(),
                site: card.site.clone(),
                ..AgentInfo::default()
            },
            pods: false,
        });
        let name = card.name.as_ref().filter(|_| is_client(&card.half));
        let half = Half {
            owner: self.owners.number(&card.owner),
            name: name.map_or(0, |name| self.name_number(name)),
            ..card.half
        };
        let partner = self.slots[number].partner;
        match self.slots.find(partner).map(|slot| slot.remote) {
            Some(false) => return,
            Some(true) => {
                self.hold(&half);
                let before = self.slots[partner].half;
                self.release(&before);
                // While both still have the times of the row in the store: it is looked for from there on.
                self.unstore(number);
                self.unstore(partner);
                self.slots[partner].half = half;
                self.slots[partner].agent = agent;
            }
            None => {
                self.hold(&half);
                let mut slot = Slot::new(half, agent, 0, 0, 0);
                slot.remote = true;
                let partner = self.slots.add(slot);
                let joined = Joined {
                    evidence: verdict.rule.evidence(),
                    confidence: confidence(verdict.confidence),
                };
                let (client, server) = if is_client(&half) {
                    (partner, number)
                } else {
                    (number, partner)
                };
                self.link(client, server, joined);
                let candidate = self.slots[number].candidate(number);
                if self.slots[number].waiting {
                    self.stitcher.settle(&candidate);
                }
                self.slots[number].card_due = true;
                self.counters.joined += 1;
                if self.named.len() < NAMED_OF_A_FLUSH {
                    let at = named_at.saturating_add(self.down_us);
                    self.named.push(Timestamp(at));
                }
                self.counters.matched_halves += 1;
            }
        }
        self.touch(number);
    }

    fn undo(&mut self, id: HalfId) {
        let Some(number) = self.slots.of_id(id) else {
            return;
        };
        self.counters.contested += 1;
        self.slots[number].offered = false;
        let partner = self.slots[number].partner;
        match self.slots.find(partner).map(|slot| slot.remote) {
            Some(true) => self.part(number),
            Some(false) => {}
            None => {
                self.slots[number].unmatched = Unmatched::Ambiguous;
                self.touch(number);
            }
        }
    }

    pub(super) fn done(&mut self, id: HalfId) {
        let Some(number) = self.slots.of_id(id) else {
            return;
        };
        self.slots[number].card_due = false;
        self.touch(number);
    }
}
