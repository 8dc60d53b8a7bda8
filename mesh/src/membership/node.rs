//! What a federator says of itself, and how that is written on the wire of the membership.

use std::convert::Infallible;

use bytes::{Buf, BufMut};
use foca::{Codec, Header, Identity, Member, Message, State};
use weft_wire::model::mix64;

use crate::members::{MAX_WEIGHT, Members};

/// Longest name, region or address.
const MAX_TEXT: usize = 255;

/// A federator, as members know each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its region.
    pub region: String,
    /// Where it is reached.
    pub address: String,
    /// Grows with each start of its program and with each change below; the highest is right.
    pub run: u64,
    /// How large a share of offers it owns, at most [`MAX_WEIGHT`].
    pub weight: u8,
    /// It is to be relieved of its agents and offers.
    pub draining: bool,
    /// A hash of the name.
    key: u64,
}

impl Node {
    /// A federator of weight one. `run` is greater than in any run before: the time at its start, for example.
    pub fn new(name: &str, region: &str, address: &str, run: u64) -> Self {
        let cut = |text: &str| {
            let end = (0..=text.len().min(MAX_TEXT)).rev();
            let mut end = end.filter(|end| text.is_char_boundary(*end));
            text[..end.next().unwrap_or(0)].to_owned()
        };
        Self {
            name: cut(name),
            region: cut(region),
            address: cut(address),
            run,
            weight: 1,
            draining: false,
            key: key_of(&cut(name)),
        }
    }
}

pub(super) fn key_of(name: &str) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&blake3::hash(name.as_bytes()).as_bytes()[..8]);
    u64::from_le_bytes(first)
}

/// Who says that a message is its own; whether it is, the shell knows by the session.
pub fn sender_of(mut message: &[u8]) -> Result<Node, Malformed> {
    node(&mut message)
}

/// Federators of one region in the order in which an agent of this name prefers them: by rendezvous hashing, so that each agent of
/// one that goes has its own next.
pub fn in_order_for<'a>(agent: &str, mut names: Vec<&'a str>) -> Vec<&'a str> {
    let mut order = Vec::with_capacity(names.len());
    while !names.is_empty() {
        let members = Members::new(names.iter().copied());
        let best = members.name(members.rendezvous(key_of(agent)));
        let (first, rest) = names.into_iter().partition(|name| *name == best);
        let first: Vec<&str> = first;
        order.extend(first.first());
        names = rest;
    }
    order
}

impl Identity for Node {
    type Addr = u64;

    fn renew(&self) -> Option<Self> {
        let run = self.run + 1;
        Some(Self {
            run,
            ..self.clone()
        })
    }

    fn addr(&self) -> u64 {
        self.key
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.run > adversary.run
    }
}

/// Randomness from a seed that is given.
pub(super) struct Lots(pub(super) u64);

impl rand_core::TryRng for Lots {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        self.try_next_u64().map(|word| (word >> 32) as u32)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        Ok(mix64(self.0))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        for chunk in bytes.chunks_mut(8) {
            let word = self.try_next_u64()?.to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
        Ok(())
    }
}

/// Why bytes are no message of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// They end too early, or there is no room for what is to be written.
    #[error("too short")]
    Short,
    /// A word that means nothing.
    #[error("an unknown kind of message or state")]
    Unknown,
    /// A text that is none.
    #[error("text is not UTF-8")]
    Text,
}

/// How members write.
pub(super) struct Plain;

impl Codec<Node> for Plain {
    type Error = Malformed;

    fn encode_header(
        &mut self,
        header: &Header<Node>,
        mut buf: impl BufMut,
    ) -> Result<(), Malformed> {
        put_node(&header.src, &mut buf)?;
        put(&header.src_incarnation.to_le_bytes(), &mut buf)?;
        put_node(&header.dst, &mut buf)?;
        let (kind, number, node) = match &header.message {
            Message::Ping(number) => (0, Some(*number), None),
            Message::Ack(number) => (1, Some(*number), None),
            Message::PingReq {
                target,
                probe_number,
            } => (2, Some(*probe_number), Some(target)),
            Message::IndirectPing {
                origin,
                probe_number,
            } => (3, Some(*probe_number), Some(origin)),
            Message::IndirectAck {
                target,
                probe_number,
            } => (4, Some(*probe_number), Some(target)),
            Message::ForwardedAck {
                origin,
                probe_number,
            } => (5, Some(*probe_number), Some(origin)),
            Message::Announce => (6, None, None),
            Message::Feed => (7, None, None),
            Message::Gossip => (8, None, None),
            Message::Broadcast => (9, None, None),
            Message::TurnUndead => (10, None, None),
        };
        put(&[kind], &mut buf)?;
        if let Some(number) = number {
            put(&number.to_le_bytes(), &mut buf)?;
        }
        node.map_or(Ok(()), |node| put_node(node, &mut buf))
    }

    fn decode_header(&mut self, mut buf: impl Buf) -> Result<Header<Node>, Malformed> {
        let buf = &mut buf;
        let src = node(buf)?;
        let src_incarnation = u16::from_le_bytes(take(buf)?);
        let dst = node(buf)?;
        let [kind] = take(buf)?;
        let number = |buf: &mut _| take(buf).map(u8::from_le_bytes);
        let message = match kind {
            0 => Message::Ping(number(buf)?),
            1 => Message::Ack(number(buf)?),
            2 => {
                let probe_number = number(buf)?;
                Message::PingReq {
                    target: node(buf)?,
                    probe_number,
                }
            }
            3 => {
                let probe_number = number(buf)?;
                Message::IndirectPing {
                    origin: node(buf)?,
                    probe_number,
                }
            }
            4 => {
                let probe_number = number(buf)?;
                Message::IndirectAck {
                    target: node(buf)?,
                    probe_number,
                }
            }
            5 => {
                let probe_number = number(buf)?;
                Message::ForwardedAck {
                    origin: node(buf)?,
                    probe_number,
                }
            }
            6 => Message::Announce,
            7 => Message::Feed,
            8 => Message::Gossip,
            9 => Message::Broadcast,
            10 => Message::TurnUndead,
            _ => return Err(Malformed::Unknown),
        };
        Ok(Header {
            src,
            src_incarnation,
            dst,
            message,
        })
    }

    fn encode_member(
        &mut self,
        member: &Member<Node>,
        mut buf: impl BufMut,
    ) -> Result<(), Malformed> {
        if buf.remaining_mut() < node_bytes(member.id()) + 3 {
            return Err(Malformed::Short);
        }
        put_node(member.id(), &mut buf)?;
        put(&member.incarnation().to_le_bytes(), &mut buf)?;
        let state = match member.state() {
            State::Alive => 0,
            State::Suspect => 1,
            State::Down => 2,
        };
        put(&[state], &mut buf)
    }

    fn decode_member(&mut self, mut buf: impl Buf) -> Result<Member<Node>, Malformed> {
        let id = node(&mut buf)?;
        let incarnation = u16::from_le_bytes(take(&mut buf)?);
        let state = match take(&mut buf)? {
            [0] => State::Alive,
            [1] => State::Suspect,
            [2] => State::Down,
            _ => return Err(Malformed::Unknown),
        };
        Ok(Member::new(id, incarnation, state))
    }
}

fn node_bytes(node: &Node) -> usize {
    3 + node.name.len() + node.region.len() + node.address.len() + 8 + 2
}

fn put(bytes: &[u8], buf: &mut impl BufMut) -> Result<(), Malformed> {
    if buf.remaining_mut() < bytes.len() {
        return Err(Malformed::Short);
    }
    buf.put_slice(bytes);
    Ok(())
}

fn put_node(node: &Node, buf: &mut impl BufMut) -> Result<(), Malformed> {
    for text in [&node.name, &node.region, &node.address] {
        put(&[text.len().min(MAX_TEXT) as u8], buf)?;
        put(&text.as_bytes()[..text.len().min(MAX_TEXT)], buf)?;
    }
    put(&node.run.to_le_bytes(), buf)?;
    put(&[node.weight, u8::from(node.draining)], buf)
}

fn take<const N: usize>(buf: &mut impl Buf) -> Result<[u8; N], Malformed> {
    if buf.remaining() < N {
        return Err(Malformed::Short);
    }
    let mut bytes = [0; N];
    buf.copy_to_slice(&mut bytes);
    Ok(bytes)
}

fn text(buf: &mut impl Buf) -> Result<String, Malformed> {
    let [length] = take(buf)?;
    if buf.remaining() < usize::from(length) {
        return Err(Malformed::Short);
    }
    let mut bytes = vec![0; usize::from(length)];
    buf.copy_to_slice(&mut bytes);
    String::from_utf8(bytes).map_err(|_| Malformed::Text)
}

fn node(buf: &mut impl Buf) -> Result<Node, Malformed> {
    let (name, region, address) = (text(buf)?, text(buf)?, text(buf)?);
    let run = u64::from_le_bytes(take(buf)?);
    let [weight, draining] = take(buf)?;
    let node = Node::new(&name, &region, &address, run);
    Ok(Node {
        weight: weight.min(MAX_WEIGHT),
        draining: draining != 0,
        ..node
    })
}
