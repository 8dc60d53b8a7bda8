//! Who is shut out, shared by everything that judges a certificate: handshakes and sessions that stand.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::watch;
use weft_wire::identity::{Revocation, Subject};

use crate::spiffe::SpiffeId;

/// Most subjects; beyond it a new one is not taken, and whoever said it is told. About 400 bytes of memory each at most.
pub const MAX_REVOCATIONS: usize = 16_384;

/// All that was said, the last word on each subject. Cheap to clone; clones are the same list.
#[derive(Clone, Debug)]
pub struct Revocations {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    by_subject: RwLock<HashMap<Subject, Revocation>>,
    changes: watch::Sender<u64>,
}

impl Default for Revocations {
    fn default() -> Self {
        let inner = Inner {
            by_subject: RwLock::default(),
            changes: watch::Sender::new(0),
        };
        Self {
            inner: Arc::new(inner),
        }
    }
}

/// There is no room for another subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{MAX_REVOCATIONS} subjects are revoked, and there is no room for more")]
pub struct NoRoom;

impl Revocations {
    /// Takes what is news and gives that back. Sessions of whom it shuts out end.
    pub fn learn(&self, said: &[Revocation]) -> Result<Vec<Revocation>, NoRoom> {
        let mut news = Vec::new();
        let mut full = false;
        {
            let mut known = self
                .inner
                .by_subject
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            for word in said {
                let newer = known
                    .get(&word.subject)
                    .is_none_or(|old| word.supersedes(old));
                if !newer {
                    continue;
                }
                if !known.contains_key(&word.subject) && known.len() >= MAX_REVOCATIONS {
                    full = true;
                    continue;
                }
                known.insert(word.subject.clone(), word.clone());
                news.push(word.clone());
            }
        }
        if !news.is_empty() {
            self.inner.changes.send_modify(|version| *version += 1);
        }
        if full && news.is_empty() {
            return Err(NoRoom);
        }
        Ok(news)
    }

    /// Everything, the newest word first.
    pub fn all(&self) -> Vec<Revocation> {
        let known = self
            .inner
            .by_subject
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = known.values().cloned().collect();
        all.sort_by(|a, b| (b.at, &a.subject).cmp(&(a.at, &b.subject)));
        all
    }

    /// Told of every change.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }

    /// Whether this name, or one of these certificates, is shut out.
    pub fn hit(&self, id: &SpiffeId, serials: &[&str]) -> bool {
        self.said(&Subject::Name(id.to_string()))
            || serials.iter().any(|serial| self.hit_serial(serial))
    }

    pub(crate) fn hit_serial(&self, serial: &str) -> bool {
        self.said(&Subject::Serial(serial.to_owned()))
    }

    fn said(&self, subject: &Subject) -> bool {
        let known = self
            .inner
            .by_subject
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        known.get(subject).is_some_and(|word| word.revoked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PeerRole;
    use weft_wire::Timestamp;

    fn word(name: &SpiffeId, at: i64, revoked: bool) -> Revocation {
        Revocation {
            subject: Subject::Name(name.to_string()),
            revoked,
            at: Timestamp(at),
            by: "spiffe://d.test/region/r/admin/alice".into(),
        }
    }

    #[test]
    fn the_last_word_counts_in_whatever_order_it_comes() {
        let name = SpiffeId::new("d.test", "r", PeerRole::Agent, "n").unwrap();
        let (shut, open) = (word(&name, 1, true), word(&name, 2, false));
        for order in [[&shut, &open], [&open, &shut]] {
            let list = Revocations::default();
            for said in order {
                list.learn(std::slice::from_ref(said)).unwrap();
            }
            assert!(!list.hit(&name, &[]));
            assert_eq!(list.learn(&[shut.clone(), open.clone()]), Ok(Vec::new()));
        }
        let list = Revocations::default();
        let changes = list.changes();
        assert_eq!(list.learn(std::slice::from_ref(&shut)).unwrap(), [shut]);
        assert!(list.hit(&name, &[]) && changes.has_changed().unwrap());
    }

    #[test]
    fn a_certificate_is_shut_out_by_its_number() {
        let name = SpiffeId::new("d.test", "r", PeerRole::Agent, "n").unwrap();
        let list = Revocations::default();
        let subject = Subject::Serial("1a2b".into());
        let said = Revocation {
            subject,
            ..word(&name, 1, true)
        };
        list.learn(&[said]).unwrap();
        assert!(list.hit(&name, &["00", "1a2b"]) && !list.hit(&name, &["1a2c"]));
    }

    #[test]
    fn there_is_a_limit_and_what_is_known_can_still_change() {
        let list = Revocations::default();
        let many: Vec<_> = (0..=MAX_REVOCATIONS as i64)
            .map(|number| Revocation {
                subject: Subject::Serial(format!("{number:x}")),
                revoked: true,
                at: Timestamp(number),
                by: String::new(),
            })
            .collect();
        assert_eq!(list.learn(&many).unwrap().len(), MAX_REVOCATIONS);
        assert_eq!(list.learn(&many[MAX_REVOCATIONS..]), Err(NoRoom));
        let lifted = Revocation {
            revoked: false,
            at: Timestamp(i64::MAX),
            ..many[0].clone()
        };
        assert_eq!(list.learn(&[lifted]).unwrap().len(), 1);
    }
}
