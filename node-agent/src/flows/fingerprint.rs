//! What a first datagram says that no NAT changes: a hash of its telling bytes, and whether those can tell flows apart. Pure,
//! and without panic on any bytes.
//!
//! What the bytes are is decided by the bytes alone: the two ends may see different ports.

use weft_wire::DatagramSort;

/// Fewest bytes of any other datagram that can tell flows apart.
const DISTINCT_BYTES: usize = 12;
/// Fewest bits of estimated entropy with which they do.
const DISTINCT_BITS: f64 = 48.0;
/// What a character of text counts for beside a byte of its frequency: text follows rules that counting letters does not
/// see.
const TEXT_WEIGHT: f64 = 0.25;
/// Bytes of a DNS header.
const DNS_HEADER: usize = 12;
/// Most questions in a message that is taken for DNS.
const MAX_QUESTIONS: u16 = 8;
/// Longest name in a DNS message.
const MAX_NAME: usize = 255;
/// Longest connection id of the QUIC versions known (RFC 9000, 17.2).
const MAX_CONNECTION_ID: usize = 20;

/// One datagram's part of a fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Print {
    /// Which bytes were hashed.
    pub sort: DatagramSort,
    /// Their hash; never 0.
    pub hash: u64,
    /// Whether they can tell flows apart.
    pub distinct: bool,
}

/// The print of a datagram of `length` bytes that begins with `snap`.
pub fn print(length: u32, snap: &[u8]) -> Print {
    if let Some(ids) = quic_ids(length, snap) {
        return Print {
            sort: DatagramSort::Quic,
            hash: hash(DatagramSort::Quic, &[ids]),
            distinct: true,
        };
    }
    if let Some(question) = dns_question(snap) {
        return Print {
            sort: DatagramSort::Dns,
            hash: hash(DatagramSort::Dns, &[&snap[..2], question]),
            distinct: true,
        };
    }
    Print {
        sort: DatagramSort::Other,
        hash: hash(DatagramSort::Other, &[&length.to_le_bytes(), snap]),
        distinct: snap.len() >= DISTINCT_BYTES && entropy_bits(snap) >= DISTINCT_BITS,
    }
}

fn hash(sort: DatagramSort, parts: &[&[u8]]) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&[sort as u8]);
    for part in parts {
        hasher.update(part);
    }
    let mut first = [0; 8];
    first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    // 0 says that there was no datagram.
    u64::from_le_bytes(first).max(1)
}

/// Both connection ids, lengths included, of a QUIC long header (RFC 8999, 5.1). The ids of a handshake's packets are
/// those of its Initial, so a packet that overtook another gives the same.
fn quic_ids(length: u32, snap: &[u8]) -> Option<&[u8]> {
    let (&first, rest) = snap.split_first()?;
    let version = u32::from_be_bytes(rest.get(..4)?.try_into().ok()?);
    let destination = usize::from(*snap.get(5)?);
    let source_at = 6 + destination;
    let source = usize::from(*snap.get(source_at)?);
    let end = source_at + 1 + source;
    let fits = destination <= MAX_CONNECTION_ID && source <= MAX_CONNECTION_ID;
    let long = first & 0x80 != 0;
    let known = match version {
        // A server's list of versions: nothing else follows the ids, and all but the first bit may be anything.
        0 => {
            let list = (length as usize).checked_sub(end)?;
            list >= 4 && list % 4 == 0 && destination + source >= 8
        }
        _ => first & 0x40 != 0 && quic_version(version),
    };
    (long && fits && known).then(|| snap.get(5..end)).flatten()
}

/// Versions 1 and 2 (RFC 9000, RFC 9369), the drafts of both, and those reserved to be unknown (RFC 9000, 15).
fn quic_version(version: u32) -> bool {
    matches!(
        version,
        1 | 0x6b33_43cf | 0x709a_50c4 | 0xff00_0000..=0xff00_00ff
    ) || version & 0x0f0f_0f0f == 0x0a0a_0a0a
}

/// The question section of a DNS message that lies within `snap` as a whole.
fn dns_question(snap: &[u8]) -> Option<&[u8]> {
    let header = snap.get(..DNS_HEADER)?;
    let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    let opcode = word(2) >> 11 & 15;
    let reserved = word(2) & 0x0040 != 0;
    let questions = word(4);
    if !matches!(opcode, 0 | 2 | 4 | 5) || reserved || !(1..=MAX_QUESTIONS).contains(&questions) {
        return None;
    }
    let mut at = DNS_HEADER;
    for index in 0..questions {
        at = skip_name(snap, at, index > 0)?;
        let class = u16::from_be_bytes([*snap.get(at + 2)?, *snap.get(at + 3)?]);
        // The first bit asks for an answer to oneself alone (RFC 6762, 5.4).
        if !matches!(class & 0x7fff, 1 | 3 | 4 | 254 | 255) {
            return None;
        }
        at += 4;
    }
    snap.get(DNS_HEADER..at)
}

/// Where a name ends. Only a later question may point back.
fn skip_name(snap: &[u8], from: usize, may_point: bool) -> Option<usize> {
    let mut at = from;
    loop {
        match usize::from(*snap.get(at)?) {
            0 => return Some(at + 1),
            length @ 1..=63 => at += 1 + length,
            0xc0..=0xff if may_point => {
                snap.get(at + 1)?;
                return Some(at + 2);
            }
            _ => return None,
        }
        if at - from > MAX_NAME {
            return None;
        }
    }
}

/// How many bits of chance the bytes may hold: their frequencies' entropy, that of the steps between them where it is
/// less (a counting pattern), with Miller and Madow's correction for few bytes. Text counts for a fraction. An estimate
/// from one sample: what is the same in every datagram it cannot see; for that, see `Repeats`.
fn entropy_bits(bytes: &[u8]) -> f64 {
    let steps: Vec<u8> = bytes
        .windows(2)
        .map(|pair| pair[1].wrapping_sub(pair[0]))
        .collect();
    let bits = frequency_bits(bytes).min(frequency_bits(&steps) + 8.0);
    let printable = bytes
        .iter()
        .filter(|byte| matches!(byte, 9 | 10 | 13 | 32..=126))
        .count();
    if printable * 10 >= bytes.len() * 9 {
        bits * TEXT_WEIGHT
    } else {
        bits
    }
}

fn frequency_bits(bytes: &[u8]) -> f64 {
    if bytes.is_empty() {
        return 0.0;
    }
    let mut counts = [0_u32; 256];
    for byte in bytes {
        counts[usize::from(*byte)] += 1;
    }
    let all = bytes.len() as f64;
    let used = counts.iter().filter(|count| **count > 0);
    let distinct = used.clone().count() as f64;
    let plain: f64 = used
        .map(|count| {
            let share = f64::from(*count) / all;
            -share * share.log2()
        })
        .sum();
    // One value alone needs no correction.
    let correction = (distinct - 1.0) / (2.0 * all) * std::f64::consts::LOG2_E;
    (plain + correction).min(8.0) * all
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn query(id: u16, name: &str) -> Vec<u8> {
        let mut bytes = id.to_be_bytes().to_vec();
        bytes.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 1]);
        for label in name.split('.') {
            bytes.push(label.len() as u8);
            bytes.extend(label.bytes());
        }
        bytes.extend([0, 0, 1, 0, 1]);
        bytes
    }

    fn of(bytes: &[u8]) -> Print {
        print(bytes.len() as u32, &bytes[..bytes.len().min(128)])
    }

    fn initial(destination: &[u8], source: &[u8], first: u8, version: u32) -> Vec<u8> {
        let mut bytes = vec![first];
        bytes.extend(version.to_be_bytes());
        bytes.push(destination.len() as u8);
        bytes.extend(destination);
        bytes.push(source.len() as u8);
        bytes.extend(source);
        bytes.resize(1_200, 0xa5);
        bytes
    }

    #[test]
    fn dns_is_its_id_and_question() {
        let (plain, mut with_options) = (query(7, "db.example"), query(7, "db.example"));
        with_options.extend([0, 0, 41, 16, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(of(&plain).sort, DatagramSort::Dns);
        assert_eq!(of(&plain), of(&with_options));
        let mut answer = plain.clone();
        answer[2..4].copy_from_slice(&[0x81, 0x80]);
        assert_eq!(of(&plain), of(&answer));
        assert_ne!(of(&plain).hash, of(&query(8, "db.example")).hash);
        assert_ne!(of(&plain).hash, of(&query(7, "db.example2")).hash);
        assert!(of(&plain).distinct);
        // A question longer than what was taken of the datagram: the same bytes at both ends, as any other.
        let long = query(7, &vec!["a".repeat(60); 3].join("."));
        assert_eq!(of(&long).sort, DatagramSort::Other);
    }

    #[test]
    fn quic_is_its_connection_ids() {
        let (ours, theirs) = ([7; 8], [9; 12]);
        let one = of(&initial(&ours, &theirs, 0xc3, 1));
        assert_eq!((one.sort, one.distinct), (DatagramSort::Quic, true));
        // Packet numbers and tokens are not hashed.
        assert_eq!(one, of(&initial(&ours, &theirs, 0xc0, 1)));
        assert_ne!(one.hash, of(&initial(&theirs, &ours, 0xc3, 1)).hash);
        for (first, version, is) in [
            (0xd0, 0x6b33_43cf, true),
            (0xc0, 0xff00_001d, true),
            (0xc0, 0x1a2a_3a4a, true),
            (0xc0, 0x5130_3436, false),
            (0x40, 1, false),
            (0x80, 1, false),
        ] {
            let sort = of(&initial(&ours, &theirs, first, version)).sort;
            assert_eq!(sort == DatagramSort::Quic, is, "{first:x} {version:x}");
        }
        assert_eq!(
            of(&initial(&[1; 21], &theirs, 0xc0, 1)).sort,
            DatagramSort::Other
        );
        let mut versions = initial(&ours, &theirs, 0xff, 0);
        versions.truncate(7 + 20 + 8);
        assert_eq!(of(&versions).sort, DatagramSort::Quic);
    }

    #[test]
    fn what_a_fleet_sends_alike_is_not_distinct() {
        let counting: Vec<u8> = (0..64).collect();
        for same in [
            &b""[..],
            b"ping",
            b"PING 0001 from monitor",
            &[0; 128],
            &[0xff, 0, 0xff, 0, 0xff, 0, 0xff, 0, 0xff, 0, 0xff, 0],
            b"{\"type\":\"status\",\"seq\":1}",
            &counting,
            &[0x17, 0x00, 0x03, 0x2a, 0, 0, 0, 0],
        ] {
            assert!(!of(same).distinct, "{same:?}");
        }
    }

    #[test]
    fn chance_is_seen() {
        let mut state = 1_u64;
        let mut random = |length: usize| -> Vec<u8> {
            let mut byte = || {
                state = weft_wire::mix64(state.wrapping_add(0x9e37_79b9));
                state as u8
            };
            (0..length).map(|_| byte()).collect()
        };
        for length in [16, 20, 64, 128, 1_000] {
            for _ in 0..100 {
                assert!(of(&random(length)).distinct, "{length}");
            }
        }
        // A time request (RFC 5905): all zero but for eight bytes of chance.
        let mut ntp = vec![0; 48];
        ntp[0] = 0x23;
        ntp[40..].copy_from_slice(&random(8));
        assert!(of(&ntp).distinct);
    }

    proptest! {
        #[test]
        fn any_bytes_have_a_print(length in any::<u32>(), bytes in proptest::collection::vec(any::<u8>(), 0..=128)) {
            prop_assert_ne!(print(length, &bytes).hash, 0);
        }

        #[test]
        fn bytes_that_begin_like_dns_do_no_harm(tail in proptest::collection::vec(any::<u8>(), 0..=116)) {
            let mut bytes = vec![0, 1, 1, 0, 0, 2, 0, 0, 0, 0, 0, 0];
            bytes.extend(tail);
            let _ = of(&bytes);
        }

        #[test]
        fn bytes_that_begin_like_quic_do_no_harm(tail in proptest::collection::vec(any::<u8>(), 0..=123)) {
            let mut bytes = vec![0xc0, 0, 0, 0, 1];
            bytes.extend(tail);
            let _ = of(&bytes);
        }
    }
}
