//! Which names are ours: configured suffixes, and names that the public DNS cannot have; all others by Mozilla's public suffix
//! list, which also says what somebody can register (`amazonaws.com`, `bbc.co.uk`).

use crate::name;

/// Suffixes reserved for names that no public server answers: RFC 6761, 6762, 8375, 9476, and `internal` (ICANN, 2024).
const RESERVED: &[&str] = &[
    "local",
    "localhost",
    "internal",
    "home.arpa",
    "alt",
    "test",
    "invalid",
    "onion",
    "cluster.local",
];
/// Reverse names of private addresses (RFC 6303, RFC 1918, RFC 6598 and their kin).
const PRIVATE_REVERSE: &[&str] = &[
    "10.in-addr.arpa",
    "168.192.in-addr.arpa",
    "254.169.in-addr.arpa",
    "127.in-addr.arpa",
    "d.f.ip6.arpa",
    "c.f.ip6.arpa",
    "8.e.f.ip6.arpa",
    "9.e.f.ip6.arpa",
    "a.e.f.ip6.arpa",
    "b.e.f.ip6.arpa",
];

/// On which side a name is, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Below a suffix that the configuration calls internal.
    Configured,
    /// One label: only a search path or a local server knows it. `app` and `dev` are also names that registries sell below, but
    /// what asks for them alone means a neighbour.
    SingleLabel,
    /// Reserved for names that no public server answers.
    Reserved,
    /// Its last label is on no public list: nobody can have registered it.
    Unlisted,
    /// All others.
    External,
}

impl Kind {
    /// Internal, else external.
    pub fn internal(self) -> bool {
        self != Self::External
    }

    /// As reports write it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Configured => "configured",
            Self::SingleLabel => "single-label",
            Self::Reserved => "reserved",
            Self::Unlisted => "unlisted",
            Self::External => "external",
        }
    }
}

/// What the configuration calls internal.
#[derive(Clone, Debug, Default)]
pub struct Domains {
    internal: Vec<String>,
}

impl Domains {
    /// With suffixes as they were written, and those that could not be read.
    pub fn new<'a>(internal: impl IntoIterator<Item = &'a str>) -> (Self, Vec<&'a str>) {
        let mut domains = Self::default();
        let mut refused = Vec::new();
        for written in internal {
            match name::normalise(written) {
                Some(suffix) => domains.internal.push(suffix),
                None => refused.push(written),
            }
        }
        (domains, refused)
    }

    /// On which side a name is.
    pub fn kind(&self, name: &str) -> Kind {
        let below = |list: &[&str]| list.iter().any(|suffix| name::within(name, suffix));
        if self
            .internal
            .iter()
            .any(|suffix| name::within(name, suffix))
        {
            Kind::Configured
        } else if below(RESERVED) || below(PRIVATE_REVERSE) || split_reverse(name) {
            Kind::Reserved
        } else if name::labels(name) == 1 {
            Kind::SingleLabel
        } else if name.is_empty() || public(name) {
            // Servers ask for the root; it is nobody's own.
            Kind::External
        } else {
            Kind::Unlisted
        }
    }
}

/// The part of a name that somebody registered: `s3.eu-west-1.amazonaws.com` is `amazonaws.com`'s. The whole name where
/// there is no such part. Only what registries sell counts, not the list's private part, in which `s3.amazonaws.com`
/// would be a suffix of its own.
pub fn registered(name: &str) -> &str {
    let mut below = name;
    // Suffixes of the private part are below a registry's: walk up until one is a registry's.
    let sold = loop {
        let Some(suffix) = psl::suffix(below.as_bytes()) else {
            return name;
        };
        let text = &name[name.len() - suffix.as_bytes().len()..];
        if suffix.typ() != Some(psl::Type::Private) {
            break text;
        }
        match name::suffixes(text).nth(1) {
            Some(parent) => below = parent,
            None => break text,
        }
    };
    let own = name::before(name, sold).and_then(|front| name::suffixes(front).last());
    own.map_or(name, |own| &name[name.len() - sold.len() - 1 - own.len()..])
}

/// Whether the last label is one that the public list knows.
fn public(name: &str) -> bool {
    psl::suffix(name.as_bytes()).is_some_and(|suffix| suffix.is_known())
}

/// Reverse names of the private ranges that do not end between labels: 172.16.0.0/12 and 100.64.0.0/10.
fn split_reverse(name: &str) -> bool {
    [
        ("172.in-addr.arpa", 16_u8..=31),
        ("100.in-addr.arpa", 64..=127),
    ]
    .into_iter()
    .any(|(first, seconds)| {
        let second = name::before(name, first).and_then(|front| name::suffixes(front).last());
        second
            .and_then(|label| label.parse().ok())
            .is_some_and(|second| seconds.contains(&second))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_a_side_and_a_reason() {
        let (domains, refused) =
            Domains::new(["svc.cluster.local", ".corp.Example.com", "no such"]);
        assert_eq!(refused, ["no such"]);
        for (name, kind) in [
            ("db.shop.svc.cluster.local", Kind::Configured),
            ("git.corp.example.com", Kind::Configured),
            ("corp.example.com", Kind::Configured),
            ("notcorp.example.com", Kind::External),
            ("printer.local", Kind::Reserved),
            ("ip-10-0-0-1.ec2.internal", Kind::Reserved),
            ("4.3.2.10.in-addr.arpa", Kind::Reserved),
            ("1.0.20.172.in-addr.arpa", Kind::Reserved),
            ("1.0.32.172.in-addr.arpa", Kind::External),
            ("1.0.64.100.in-addr.arpa", Kind::Reserved),
            ("1.0.128.100.in-addr.arpa", Kind::External),
            ("100.in-addr.arpa", Kind::External),
            ("8.8.8.8.in-addr.arpa", Kind::External),
            ("db", Kind::SingleLabel),
            ("app", Kind::SingleLabel),
            ("my.app", Kind::External),
            ("db.corp", Kind::Unlisted),
            ("s3.amazonaws.com", Kind::External),
            ("com", Kind::SingleLabel),
            ("", Kind::External),
        ] {
            assert_eq!(domains.kind(name), kind, "{name}");
            assert_eq!(kind.internal(), kind.word() != "external");
        }
    }

    #[test]
    fn the_registered_part() {
        for (name, part) in [
            ("s3.eu-west-1.amazonaws.com", "amazonaws.com"),
            ("bucket.s3.amazonaws.com", "amazonaws.com"),
            ("www.bbc.co.uk", "bbc.co.uk"),
            ("someone.github.io", "github.io"),
            ("a.b.weird.ck", "b.weird.ck"),
            ("com", "com"),
            ("db", "db"),
            ("", ""),
        ] {
            assert_eq!(registered(name), part, "{name}");
        }
    }
}
