//! Names that somebody warns of: lists in the format of a hosts file or of one domain a line.

use crate::name;

/// Most names of one list; those beyond are left out and counted.
pub const MAX_NAMES: usize = 2_000_000;
/// Names that hosts files give to the machine itself.
const OWN: &[&str] = &[
    "localhost",
    "localhost.localdomain",
    "local",
    "broadcasthost",
    "ip6-localhost",
    "ip6-loopback",
    "ip6-localnet",
    "ip6-mcastprefix",
    "ip6-allnodes",
    "ip6-allrouters",
    "ip6-allhosts",
];

/// A list, to look names up in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ThreatList {
    /// Sorted, and none is below another.
    names: Vec<Box<str>>,
    /// Entries that are no names, or were too many.
    pub skipped: usize,
}

impl ThreatList {
    /// Reads a file. In a line that begins with an address the names follow it (hosts file); any other line is one domain, or is
    /// skipped: a word of a zone file or of prose, taken for a domain, would warn of everything below `in`.
    /// What is behind `#` is a comment, and so are lines that begin with `!` or `;`.
    pub fn parse(text: &str) -> Self {
        let mut list = Self::default();
        let mut names = Vec::new();
        for line in text.lines() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() || line.starts_with(['!', ';']) {
                continue;
            }
            let mut words = line.split_whitespace();
            let hosts = words
                .clone()
                .next()
                .is_some_and(|word| word.parse::<std::net::IpAddr>().is_ok());
            if hosts {
                words.next();
            } else if words.clone().nth(1).is_some() {
                list.skipped += 1;
                continue;
            }
            for word in words {
                // `0.0.0.0 0.0.0.0` is a custom of such files, and no name.
                if OWN.contains(&word) || word.parse::<std::net::IpAddr>().is_ok() {
                    continue;
                }
                match name::normalise(word).filter(|_| names.len() < MAX_NAMES) {
                    Some(name) => names.push(name.into_boxed_str()),
                    None => list.skipped += 1,
                }
            }
        }
        names.sort_unstable();
        names.dedup();
        list.names = names;
        list
    }

    /// The entry that a name is, or is below.
    pub fn find(&self, name: &str) -> Option<&str> {
        name::suffixes(name).find_map(|suffix| {
            let at = self
                .names
                .binary_search_by(|entry| entry.as_ref().cmp(suffix))
                .ok()?;
            Some(self.names[at].as_ref())
        })
    }

    /// How many names it has.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn both_formats_and_their_customs() {
        let list = ThreatList::parse(
            "# hosts\n127.0.0.1 localhost\n0.0.0.0 0.0.0.0\n0.0.0.0 Bad.Example # why\n::1 one.example two.example\r\n\
             ! list\n*.wild.example\n.dotted.example\nplain.example.\nno such name\n\n||adblock.example^\n\
             zone.example 3600 IN A 127.0.0.1\n",
        );
        assert_eq!(list.len(), 6);
        assert_eq!(list.skipped, 3);
        assert_eq!(list.find("bbc.in"), None);
        assert_eq!(list.find("bad.example"), Some("bad.example"));
        assert_eq!(list.find("a.b.wild.example"), Some("wild.example"));
        assert_eq!(list.find("x.plain.example"), Some("plain.example"));
        assert_eq!(list.find("example"), None);
        assert_eq!(list.find("notbad.example"), None);
        assert_eq!(list.find(""), None);
    }

    proptest! {
        #[test]
        fn as_comparing_with_every_entry(
            entries in proptest::collection::vec("[ab]{1,2}(\\.[ab]{1,2}){0,2}", 0..12),
            asked in "[ab]{1,2}(\\.[ab]{1,2}){0,4}",
        ) {
            let list = ThreatList::parse(&entries.join("\n"));
            let expected = entries.iter().any(|entry| asked == *entry || asked.ends_with(&format!(".{entry}")));
            prop_assert_eq!(list.find(&asked).is_some(), expected);
        }
    }
}
