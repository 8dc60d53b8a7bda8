//! May these two halves be one connection, by which rule, and how sure is that.
//!
//! Everything here is a function of the two views alone, so that two homes that hold the same two ends come to the
//! same verdict. That is also why the tolerances are constants and no configuration.

use std::net::{IpAddr, SocketAddr};

use crate::view::{DatagramSort, Datagrams, Fingerprint, HalfView, Role};

/// How far apart two ends may report the same moment: a round trip, delayed closing and what is left of clock skew.
/// One that is smaller loses matches that lack a full fingerprint; a larger one lets more strangers look alike.
pub const TOLERANCE_US: i64 = 2_000_000;

/// The rules, best first. Each is named in the result as evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Rule {
    /// Both initial sequence numbers agree: 64 random bits.
    TcpIsnPair,
    /// Only the client's agrees, and times, bytes and endpoints fit: a SYN proxy is in the path.
    TcpClientIsn,
    /// The ISN is not known on at least one side; the addresses are exactly reversed in one network: no NAT.
    ReversedTuple,
    /// The connection ids of QUIC's first packets agree.
    QuicConnectionId,
    /// The first datagrams agree, and what else must, see [`fit`].
    UdpFirstDatagram,
}

impl Rule {
    /// The evidence code.
    pub fn evidence(self) -> &'static str {
        match self {
            Self::TcpIsnPair => "tcp-isn-pair",
            Self::TcpClientIsn => "tcp-client-isn",
            Self::ReversedTuple => "reversed-tuple",
            Self::QuicConnectionId => "quic-connection-id",
            Self::UdpFirstDatagram => "udp-first-datagram",
        }
    }
}

/// How sure a match is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Confidence {
    /// Rests on circumstances that others could share. No rule of today presents such a guess as a match.
    Low,
    /// Circumstances that others are unlikely to share.
    Medium,
    /// Chance or error is possible but improbable.
    High,
    /// 64 random bits agree.
    Exact,
}

/// Two halves are one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The best rule that says so.
    pub rule: Rule,
    /// How sure that is.
    pub confidence: Confidence,
}

impl Verdict {
    /// Rests on a part of the fingerprint, or on bytes that others send too, and on circumstances that are known only when
    /// both ends have closed.
    pub fn in_part(self) -> bool {
        match self.rule {
            Rule::TcpIsnPair | Rule::ReversedTuple => false,
            Rule::TcpClientIsn => true,
            Rule::QuicConnectionId | Rule::UdpFirstDatagram => self.confidence < Confidence::High,
        }
    }
}

/// What can be said of two halves now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// One connection, if no other half fits as well.
    Yes(Verdict),
    /// Nothing speaks against it; it can be said once both are closed.
    Later,
    /// Not one connection.
    No,
}

/// The verdict on two halves, `None` when they are not one connection or it is too early to say. Whether *another*
/// half would fit as well is not asked here: that is the [`Stitcher`](crate::Stitcher)'s and the owner's part.
pub fn judge(client: &HalfView, server: &HalfView) -> Option<Verdict> {
    match fit(client, server) {
        Fit::Yes(verdict) => Some(verdict),
        Fit::Later | Fit::No => None,
    }
}

/// As [`judge`], telling "not yet" from "no".
///
/// Of UDP flows the client's first datagram must agree, and the server's unless an end saw none. Then they are one if
/// - the addresses are exactly reversed in one network and both opened at about one time: no NAT ([`fit_in_place`]);
/// - or both ends saw both, both take the bytes for such that tell flows apart, and the server's end opened while the client's
///   was open (at about one time, where the bytes are neither of DNS nor of QUIC: those repeat themselves when one is lost);
/// - or both opened at about one time, address and port of one end are left as they were, and at the close bytes and
///   datagrams agree.
pub fn fit(client: &HalfView, server: &HalfView) -> Fit {
    if client.role != Role::Client || server.role != Role::Server {
        return Fit::No;
    }
    match (client.fingerprint, server.fingerprint) {
        (
            Fingerprint::TcpIsn {
                client: a,
                server: b,
            },
            Fingerprint::TcpIsn {
                client: c,
                server: d,
            },
        ) => match (a == c, b == d) {
            (true, true) => yes(Rule::TcpIsnPair, Confidence::Exact),
            (true, false) => fit_client_isn(client, server),
            (false, _) => Fit::No,
        },
        (Fingerprint::Datagrams(_), Fingerprint::Datagrams(_)) => {
            match fit_in_place(client, server) {
                Fit::No => fit_datagrams(client, server),
                fit => fit,
            }
        }
        (Fingerprint::Datagrams(_), Fingerprint::TcpIsn { .. })
        | (Fingerprint::TcpIsn { .. }, Fingerprint::Datagrams(_)) => Fit::No,
        _ => fit_tuple(client, server),
    }
}

fn yes(rule: Rule, confidence: Confidence) -> Fit {
    Fit::Yes(Verdict { rule, confidence })
}

/// A SYN proxy answers the client in the server's place, then opens to the server with the client's own ISN. What is
/// left of the evidence: 32 bits, the times of opening and closing, the bytes, and something of the addresses.
fn fit_client_isn(client: &HalfView, server: &HalfView) -> Fit {
    let same_tuple = same_tuple(client, server);
    if !near(client.opened_at, server.opened_at)
        || !(same_tuple || share_an_endpoint(client, server))
    {
        return Fit::No;
    }
    match closing(client, server) {
        Closing::Apart => Fit::No,
        Closing::Open => Fit::Later,
        Closing::Together if !bytes_agree(client, server) => Fit::No,
        Closing::Together if same_tuple => yes(Rule::TcpClientIsn, Confidence::High),
        // Many connections carry nothing; that two agree on it says nothing.
        Closing::Together if carried_nothing(client) => Fit::No,
        Closing::Together => yes(Rule::TcpClientIsn, Confidence::Medium),
    }
}

/// Two ends of a UDP flow that no NAT touched.
pub fn fit_in_place(client: &HalfView, server: &HalfView) -> Fit {
    match first_datagrams(client, server) {
        Some((rule, _))
            if same_tuple(client, server) && near(client.opened_at, server.opened_at) =>
        {
            yes(rule, Confidence::High)
        }
        _ => Fit::No,
    }
}

/// The rule, and whether the datagrams of both ways are known at both ends and tell flows apart. `None`: they do not agree.
fn first_datagrams(client: &HalfView, server: &HalfView) -> Option<(Rule, bool)> {
    let (Fingerprint::Datagrams(a), Fingerprint::Datagrams(b)) =
        (client.fingerprint, server.fingerprint)
    else {
        return None;
    };
    let agree = |a: Datagrams, b: Datagrams| {
        let answers = a.server == b.server || a.server == 0 || b.server == 0;
        a.sort == b.sort && a.client == b.client && answers
    };
    let roles = client.role == Role::Client && server.role == Role::Server;
    let rule = rule_of(Some(client.fingerprint));
    let whole = a.distinct && b.distinct && a.server == b.server && a.server != 0;
    (roles && agree(a, b)).then_some((rule, whole))
}

/// The rule for UDP flows that a fingerprint is for.
pub(crate) fn rule_of(fingerprint: Option<Fingerprint>) -> Rule {
    match fingerprint {
        Some(Fingerprint::Datagrams(first)) if first.sort == DatagramSort::Quic => {
            Rule::QuicConnectionId
        }
        _ => Rule::UdpFirstDatagram,
    }
}

fn fit_datagrams(client: &HalfView, server: &HalfView) -> Fit {
    let Some((rule, whole)) = first_datagrams(client, server) else {
        return Fit::No;
    };
    let together = near(client.opened_at, server.opened_at);
    if whole {
        let is = |sort| matches!(client.fingerprint, Fingerprint::Datagrams(first) if first.sort == sort);
        // The 16 bits of a query's id tell apart what asks for one name at one time, where little does. With nothing else in
        // common, a half whose own partner is not seen would soon find a stranger's.
        let sure = !is(DatagramSort::Dns) || share_a_socket(client, server);
        let repeats = sure && !is(DatagramSort::Other);
        return match together || repeats && opened_meanwhile(client, server) {
            true if sure => yes(rule, Confidence::High),
            true => yes(rule, Confidence::Medium),
            false => Fit::No,
        };
    }
    if !together || !share_a_socket(client, server) {
        return Fit::No;
    }
    match client.closed_at.is_some() && server.closed_at.is_some() {
        false => Fit::Later,
        true if bytes_agree(client, server) && datagrams_agree(client, server) => {
            yes(rule, Confidence::Medium)
        }
        true => Fit::No,
    }
}

/// The server's end opened while the client's was open.
fn opened_meanwhile(client: &HalfView, server: &HalfView) -> bool {
    let from = client.opened_at.saturating_sub(TOLERANCE_US);
    let to = client
        .closed_at
        .map_or(i64::MAX, |at| at.saturating_add(TOLERANCE_US));
    (from..=to).contains(&server.opened_at)
}

/// Datagrams sent at one end are datagrams received at the other, both ways.
fn datagrams_agree(client: &HalfView, server: &HalfView) -> bool {
    client.packets_sent == server.packets_received && server.packets_sent == client.packets_received
}

/// The same addresses seen from both ends in one network, and at one time.
fn fit_tuple(client: &HalfView, server: &HalfView) -> Fit {
    if !same_tuple(client, server) || !can_have_met(client, server) || !can_have_met(server, client)
    {
        return Fit::No;
    }
    let certain = match closing(client, server) {
        Closing::Apart => return Fit::No,
        Closing::Open => client.host == server.host,
        Closing::Together => bytes_agree(client, server),
    };
    yes(
        Rule::ReversedTuple,
        if certain {
            Confidence::High
        } else {
            Confidence::Medium
        },
    )
}

/// A half without fingerprint was found some time after its opening: its peer cannot have opened later than that, nor
/// have closed before.
fn can_have_met(found: &HalfView, peer: &HalfView) -> bool {
    let closed_before = peer
        .closed_at
        .is_some_and(|closed| closed.saturating_add(TOLERANCE_US) < found.opened_at);
    let opened_after = found.fingerprint == Fingerprint::Unknown
        && peer.fingerprint != Fingerprint::Unknown
        && peer.opened_at > found.opened_at.saturating_add(TOLERANCE_US);
    !closed_before && !opened_after
}

/// What the closing of two ends says.
enum Closing {
    /// Both closed, at about one time.
    Together,
    /// At least one is open, and not known to have been so long after the other closed.
    Open,
    /// Closed at different times, or one was seen open long after the other closed.
    Apart,
}

fn closing(a: &HalfView, b: &HalfView) -> Closing {
    match (a.closed_at, b.closed_at) {
        (Some(x), Some(y)) if near(x, y) => Closing::Together,
        (Some(_), Some(_)) => Closing::Apart,
        (Some(closed), None) if outlived(b, closed) => Closing::Apart,
        (None, Some(closed)) if outlived(a, closed) => Closing::Apart,
        _ => Closing::Open,
    }
}

fn outlived(open: &HalfView, closed_at: i64) -> bool {
    open.seen_at > closed_at.saturating_add(TOLERANCE_US)
}

fn near(a: i64, b: i64) -> bool {
    a.abs_diff(b) <= TOLERANCE_US.unsigned_abs()
}

/// Bytes sent at one end are bytes received at the other, both ways.
pub(crate) fn bytes_agree(client: &HalfView, server: &HalfView) -> bool {
    client.bytes_sent == server.bytes_received && server.bytes_sent == client.bytes_received
}

fn carried_nothing(half: &HalfView) -> bool {
    half.bytes_sent == 0 && half.bytes_received == 0
}

/// The addresses are exactly reversed, in one network.
fn same_tuple(client: &HalfView, server: &HalfView) -> bool {
    client.tuple_key() == server.tuple_key()
        && client.client_address() == server.client_address()
        && client.server_address() == server.server_address()
}

/// NAT left at least one of four words standing: an address or a port of either end.
fn share_an_endpoint(client: &HalfView, server: &HalfView) -> bool {
    let nat = crate::nat::nat(client, server);
    !(nat.source && nat.source_port && nat.destination && nat.destination_port)
}

/// NAT left address and port of one end standing, and they mean the same on both sides. A port alone says nothing here:
/// thousands may send one greeting to one port of different servers.
fn share_a_socket(client: &HalfView, server: &HalfView) -> bool {
    let same = |a: SocketAddr, b: SocketAddr| {
        a == b && (client.network == server.network || !is_private(a.ip()))
    };
    same(client.client_address(), server.client_address())
        || same(client.server_address(), server.server_address())
}

/// Addresses that other networks have too.
fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let shared = ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64;
            ip.is_private() || ip.is_loopback() || ip.is_link_local() || shared
        }
        IpAddr::V6(ip) => ip.is_unique_local() || ip.is_loopback() || ip.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::tests::half;

    const SECOND: i64 = 1_000_000;

    fn with_server_isn(half: HalfView, server: u32) -> HalfView {
        HalfView {
            fingerprint: Fingerprint::TcpIsn { client: 1, server },
            ..half
        }
    }

    fn closed(half: HalfView, at: i64, sent: u64, received: u64) -> HalfView {
        HalfView {
            closed_at: Some(at),
            seen_at: at,
            bytes_sent: sent,
            bytes_received: received,
            ..half
        }
    }

    #[test]
    fn both_isns_are_exact_whatever_the_addresses() {
        let client = half(Role::Client);
        let server = HalfView {
            local: "192.0.2.1:8443".parse().unwrap(),
            remote: "192.0.2.2:1".parse().unwrap(),
            ..half(Role::Server)
        };
        let verdict = judge(&client, &server).unwrap();
        assert_eq!(
            (verdict.rule, verdict.confidence),
            (Rule::TcpIsnPair, Confidence::Exact)
        );
        assert_eq!(
            judge(&server, &client),
            None,
            "roles are not interchangeable"
        );
        assert_eq!(judge(&client, &client), None);
        let other_client_isn = Fingerprint::TcpIsn {
            client: 3,
            server: 2,
        };
        assert_eq!(
            fit(
                &client,
                &HalfView {
                    fingerprint: other_client_isn,
                    ..server
                }
            ),
            Fit::No
        );
    }

    #[test]
    fn a_query_alone_makes_no_sure_match() {
        let first = |sort, half: HalfView| HalfView {
            fingerprint: Fingerprint::Datagrams(Datagrams {
                sort,
                client: 5,
                server: 6,
                distinct: true,
            }),
            ..half
        };
        let translated = HalfView {
            local: "192.0.2.1:53".parse().unwrap(),
            remote: "192.0.2.2:7".parse().unwrap(),
            ..half(Role::Server)
        };
        let server_kept = HalfView {
            local: half(Role::Client).remote,
            ..translated
        };
        let elsewhere = HalfView {
            network: 8,
            ..server_kept
        };
        let sure = |sort, server| {
            let client = closed(half(Role::Client), 30 * SECOND, 1, 2);
            let late = HalfView {
                opened_at: 10 * SECOND,
                ..server
            };
            [server, late].map(|server| {
                let verdict = judge(&first(sort, client), &first(sort, server));
                verdict.map(|verdict| verdict.confidence)
            })
        };
        let (high, medium) = (Some(Confidence::High), Some(Confidence::Medium));
        assert_eq!(sure(DatagramSort::Dns, server_kept), [high, high]);
        assert_eq!(sure(DatagramSort::Dns, translated), [medium, None]);
        assert_eq!(sure(DatagramSort::Dns, elsewhere), [medium, None]);
        assert_eq!(sure(DatagramSort::Quic, translated), [high, high]);
    }

    #[test]
    fn a_syn_proxy_is_recognised_at_close() {
        let client = half(Role::Client);
        let server = with_server_isn(half(Role::Server), 9);
        assert_eq!(fit(&client, &server), Fit::Later);
        let client = closed(client, 10 * SECOND, 100, 200);
        assert_eq!(fit(&client, &server), Fit::Later);
        let good = closed(server, 11 * SECOND, 200, 100);
        let high = Verdict {
            rule: Rule::TcpClientIsn,
            confidence: Confidence::High,
        };
        assert_eq!(fit(&client, &good), Fit::Yes(high));
        for wrong in [
            closed(server, 11 * SECOND, 200, 101),
            closed(server, 11 * SECOND, 201, 100),
            closed(server, 13 * SECOND, 200, 100),
            HalfView {
                opened_at: 3 * SECOND,
                ..good
            },
            HalfView {
                opened_at: -3 * SECOND,
                ..good
            },
            HalfView {
                seen_at: 13 * SECOND,
                ..server
            },
        ] {
            assert_eq!(fit(&client, &wrong), Fit::No, "{wrong:?}");
        }
    }

    #[test]
    fn a_syn_proxy_behind_nat_needs_bytes_and_something_in_common() {
        let client = closed(half(Role::Client), SECOND, 1, 2);
        let server = closed(with_server_isn(half(Role::Server), 9), SECOND, 2, 1);
        let port_kept = HalfView {
            local: "192.0.2.1:80".parse().unwrap(),
            remote: "192.0.2.2:7".parse().unwrap(),
            ..server
        };
        let medium = Verdict {
            rule: Rule::TcpClientIsn,
            confidence: Confidence::Medium,
        };
        assert_eq!(judge(&client, &port_kept), Some(medium));
        let nothing_kept = HalfView {
            local: "192.0.2.1:81".parse().unwrap(),
            ..port_kept
        };
        assert_eq!(judge(&client, &nothing_kept), None);
        let silent = HalfView {
            bytes_sent: 0,
            bytes_received: 0,
            ..client
        };
        assert_eq!(
            judge(
                &silent,
                &HalfView {
                    bytes_sent: 0,
                    bytes_received: 0,
                    ..port_kept
                }
            ),
            None
        );
        let silent_no_nat = HalfView {
            bytes_sent: 0,
            bytes_received: 0,
            ..server
        };
        assert!(judge(&silent, &silent_no_nat).is_some());
    }

    #[test]
    fn without_isn_the_tuple_must_be_reversed_in_one_network_at_one_time() {
        let client = HalfView {
            fingerprint: Fingerprint::Unknown,
            opened_at: 50 * SECOND,
            seen_at: 60 * SECOND,
            ..half(Role::Client)
        };
        let server = HalfView {
            seen_at: 60 * SECOND,
            ..half(Role::Server)
        };
        let rule = |c: &HalfView, s: &HalfView| judge(c, s).map(|v| (v.rule, v.confidence));
        assert_eq!(
            rule(&client, &server),
            Some((Rule::ReversedTuple, Confidence::Medium))
        );
        let one_host = HalfView {
            host: client.host,
            ..server
        };
        assert_eq!(
            rule(&client, &one_host),
            Some((Rule::ReversedTuple, Confidence::High))
        );
        let (c, s) = (
            closed(client, 70 * SECOND, 1, 2),
            closed(server, 71 * SECOND, 2, 1),
        );
        assert_eq!(rule(&c, &s), Some((Rule::ReversedTuple, Confidence::High)));
        assert_eq!(
            rule(&c, &closed(s, 71 * SECOND, 2, 9)),
            Some((Rule::ReversedTuple, Confidence::Medium))
        );
        for wrong in [
            HalfView {
                network: 8,
                ..server
            },
            HalfView {
                remote: "10.0.0.1:40001".parse().unwrap(),
                ..server
            },
            HalfView {
                opened_at: 53 * SECOND,
                ..server
            },
            closed(server, 40 * SECOND, 0, 0),
            closed(server, 57 * SECOND, 0, 0),
        ] {
            assert_eq!(rule(&client, &wrong), None, "{wrong:?}");
        }
        assert_eq!(rule(&c, &closed(s, 73 * SECOND, 2, 1)), None);
    }
}
