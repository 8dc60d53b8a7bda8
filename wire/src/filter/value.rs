//! Values and how they are written.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use super::field::{Kind, nearest};
use crate::model::Timestamp;

/// A value of a filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// For [`Kind::Text`], and, one of the words it lists, for [`Kind::Choice`].
    Text(String),
    /// For [`Kind::Number`], [`Kind::Size`] (bytes) and [`Kind::Duration`] (microseconds).
    Number(u64),
    /// For [`Kind::Time`].
    Time(Timestamp),
    /// For [`Kind::Address`].
    Network(Network),
}

/// Addresses that share their first bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Network {
    first: IpAddr,
    prefix: u8,
}

impl Network {
    /// The network that an address lies in; v4-mapped IPv6 is IPv4. `None` when the prefix is longer than the address.
    pub fn new(address: IpAddr, prefix: u8) -> Option<Self> {
        let (address, prefix) = match (address, address.to_canonical()) {
            (IpAddr::V6(_), IpAddr::V4(v4)) if prefix >= 96 => (IpAddr::V4(v4), prefix - 96),
            _ => (address, prefix),
        };
        let first = match address {
            IpAddr::V4(v4) if prefix <= 32 => {
                let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() & mask))
            }
            IpAddr::V6(v6) if prefix <= 128 => {
                let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask))
            }
            _ => return None,
        };
        Some(Self { first, prefix })
    }

    /// A network of one address; v4-mapped IPv6 is IPv4.
    pub fn host(address: IpAddr) -> Self {
        let first = address.to_canonical();
        Self {
            first,
            prefix: if first.is_ipv4() { 32 } else { 128 },
        }
    }

    /// Lowest address.
    pub fn first(&self) -> IpAddr {
        self.first
    }

    /// Highest address.
    pub fn last(&self) -> IpAddr {
        match self.first {
            IpAddr::V4(v4) => {
                let rest = u32::MAX.checked_shr(u32::from(self.prefix)).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() | rest))
            }
            IpAddr::V6(v6) => {
                let rest = u128::MAX.checked_shr(u32::from(self.prefix)).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() | rest))
            }
        }
    }

    /// Number of leading bits that are the same in all.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether it is one address.
    pub fn is_host(&self) -> bool {
        self.first == self.last()
    }

    /// Whether the address is one of them.
    pub fn contains(&self, address: IpAddr) -> bool {
        Self::new(address.to_canonical(), self.prefix) == Some(*self)
    }
}

impl FromStr for Network {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address
            .trim_start_matches('[')
            .trim_end_matches(']')
            .parse()
            .map_err(drop)?;
        match prefix {
            None => Ok(Self::host(address)),
            // `+8` and `08` parse as numbers, too.
            Some(digits) if digits.len() > 3 || !digits.bytes().all(|b| b.is_ascii_digit()) => {
                Err(())
            }
            Some(digits) => Self::new(address, digits.parse().map_err(drop)?).ok_or(()),
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_host() {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}/{}", self.first, self.prefix)
        }
    }
}

const SIZES: &[(&str, u64)] = &[
    ("", 1),
    ("b", 1),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
];
const DURATIONS: &[(&str, u64)] = &[
    ("us", 1),
    ("ms", 1_000),
    ("s", 1_000_000),
    ("m", 60_000_000),
    ("h", 3_600_000_000),
    ("d", 86_400_000_000),
];

/// Reads a value of a kind; the error is a hint.
pub(super) fn read(kind: Kind, text: &str) -> Result<Value, String> {
    match kind {
        Kind::Text => Ok(Value::Text(text.to_owned())),
        Kind::Choice(words) => choice(words, text),
        Kind::Address => text.parse().map(Value::Network).map_err(|()| {
            "an address or a network: 10.1.2.3, 10.0.0.0/8, 2001:db8::/32".to_owned()
        }),
        Kind::Number => digits(text)
            .map(Value::Number)
            .ok_or_else(|| "a whole number".to_owned()),
        Kind::Size => with_unit(text, SIZES)
            .map(Value::Number)
            .ok_or_else(|| "a size: 512, 10kb, 1.5mb, 2gib".to_owned()),
        Kind::Duration => with_unit(text, DURATIONS)
            .map(Value::Number)
            .ok_or_else(|| "a duration with its unit: 250us, 10ms, 1.5s, 2m, 1h, 7d".to_owned()),
        Kind::Time => time(text)
            .map(Value::Time)
            .ok_or_else(|| "a time in UTC: 2026-11-22T15:00:00Z".to_owned()),
        Kind::End => Err("is null, or is not null".to_owned()),
    }
}

fn choice(words: &[&str], text: &str) -> Result<Value, String> {
    if words.contains(&text) {
        return Ok(Value::Text(text.to_owned()));
    }
    match nearest(text, words.iter().map(|w| (*w).to_owned())) {
        Some(word) => Err(format!("{word}? One of {}", words.join(", "))),
        None => Err(format!("one of {}", words.join(", "))),
    }
}

fn digits(text: &str) -> Option<u64> {
    let all_digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if all_digits { text.parse().ok() } else { None }
}

/// A decimal number and a unit, exactly: `1.5kb` is 1500, `0.1us` is nothing.
fn with_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let split = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit = unit.to_ascii_lowercase();
    let factor = units.iter().find(|(name, _)| *name == unit)?.1;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if fraction.len() > 9 {
        return None;
    }
    let scale = 10_u64.pow(u32::try_from(fraction.len()).ok()?);
    let part = digits(fraction)?.checked_mul(factor)?;
    if !part.is_multiple_of(scale) {
        return None;
    }
    digits(whole)?
        .checked_mul(factor)?
        .checked_add(part / scale)
}

/// RFC 3339 in UTC; the time of day and its fraction may be left out.
fn time(text: &str) -> Option<Timestamp> {
    const WHOLE: &str = "0000-00-00T00:00:00.000000Z";
    let text = text.strip_suffix('Z').unwrap_or(text);
    if !text.is_ascii() || !matches!(text.len(), 10 | 16 | 19 | 21..=26) {
        return None;
    }
    Timestamp::parse(&format!("{text}{}", &WHOLE[text.len()..]))
}
