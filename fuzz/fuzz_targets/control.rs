//! Every kind of control message: what decodes encodes again, and decodes to the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weft_wire::codec::{self, Message};
use weft_wire::control::{Ack, AgentHello, AgentStatus, AgentWelcome, PeerHello};
use weft_wire::federation::{FederationAnswer, FederationRequest, Homes};
use weft_wire::frame::{Frame, HEADER_BYTES, Kind};
use weft_wire::identity::{IdentityAnswer, IdentityRequest};
use weft_wire::query::{Request, Response};

/// Compares bytes, not values: not-a-number is not equal to itself.
fn check<M: Message>(frame: &Frame) {
    let Ok(message) = codec::decode::<M>(frame) else {
        return;
    };
    let mut bytes = Vec::new();
    // Longer than what came it cannot be, but for integers that came longer than they need; shorter is fine.
    codec::append(&mut bytes, &message).expect("what decodes encodes");
    let frame = Frame {
        kind: frame.kind,
        payload: bytes[HEADER_BYTES..].to_vec(),
    };
    let again = codec::decode::<M>(&frame).expect("what was encoded decodes");
    let mut same = Vec::new();
    codec::append(&mut same, &again).expect("what decodes encodes");
    assert_eq!(bytes, same);
}

fn check_peer(frame: &Frame) {
    let Ok((seq, message)) = codec::decode_peer(frame) else {
        return;
    };
    let mut bytes = Vec::new();
    codec::append_peer(&mut bytes, seq, &message).expect("what decodes encodes");
    let frame = Frame {
        kind: frame.kind,
        payload: bytes[HEADER_BYTES..].to_vec(),
    };
    assert_eq!(codec::decode_peer(&frame), Ok((seq, message)));
}

fn check_cluster(frame: &Frame) {
    let Ok((seq, batch)) = codec::decode_cluster(frame) else {
        return;
    };
    let mut bytes = Vec::new();
    codec::append_cluster(&mut bytes, seq, &batch).expect("what decodes encodes");
    let frame = Frame {
        kind: frame.kind,
        payload: bytes[HEADER_BYTES..].to_vec(),
    };
    assert_eq!(codec::decode_cluster(&frame), Ok((seq, batch)));
}

fuzz_target!(|data: &[u8]| {
    let Some((kind, payload)) = data.split_first() else {
        return;
    };
    let kind = Kind::ALL[usize::from(*kind) % Kind::ALL.len()];
    if payload.len() > kind.limit() {
        return;
    }
    let frame = Frame {
        kind,
        payload: payload.to_vec(),
    };
    match kind {
        Kind::AgentHello => check::<AgentHello>(&frame),
        Kind::AgentWelcome => check::<AgentWelcome>(&frame),
        Kind::AgentStatus => check::<AgentStatus>(&frame),
        Kind::HalfBatch => drop(codec::split_batch(&frame).map(|(_, batch)| batch.len())),
        Kind::LookupBatch => drop(codec::split_lookups(&frame).map(|(_, batch)| batch.len())),
        Kind::Ack => check::<Ack>(&frame),
        Kind::PeerHello => check::<PeerHello>(&frame),
        Kind::PeerMessages => check_peer(&frame),
        Kind::Request => check::<Request>(&frame),
        Kind::Response => check::<Response>(&frame),
        Kind::ClusterObjects => check_cluster(&frame),
        Kind::IdentityRequest => check::<IdentityRequest>(&frame),
        Kind::IdentityAnswer => check::<IdentityAnswer>(&frame),
        Kind::FederationRequest => check::<FederationRequest>(&frame),
        Kind::FederationAnswer => check::<FederationAnswer>(&frame),
        Kind::Homes => check::<Homes>(&frame),
        // Bytes of the membership, which has a codec of its own.
        Kind::Member => {}
    }
});
