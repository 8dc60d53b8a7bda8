//! What became of the halves, as a caller would keep it.

use std::collections::BTreeMap;

use weft_stitching::*;

/// What became of a half in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Stitched(u32, Rule),
    Ambiguous,
    Alone,
}

/// Follows the outputs as a caller would.
#[derive(Default)]
pub struct Ledger {
    pub fates: BTreeMap<u32, Fate>,
    offered: BTreeMap<u32, u32>,
}

impl Ledger {
    /// Halves that were offered.
    #[allow(dead_code, reason = "not all tests ask")]
    pub fn offers(&self) -> impl Iterator<Item = u32> {
        self.offered.keys().copied()
    }

    pub fn drain(&mut self, stitcher: &mut Stitcher) {
        while let Some(output) = stitcher.poll() {
            match output {
                Output::Stitched {
                    client,
                    server,
                    rule,
                } => {
                    for (half, other) in [(client, server), (server, client)] {
                        let before = self.fates.insert(half.0, Fate::Stitched(other.0, rule));
                        assert!(
                            matches!(before, None | Some(Fate::Alone)) || client == server,
                            "{half:?} was {before:?}"
                        );
                    }
                }
                Output::Ambiguous { handle, .. } => {
                    let before = self.fates.insert(handle.0, Fate::Ambiguous);
                    assert_eq!(before, None, "{handle:?}");
                }
                Output::Contested { handle } => {
                    let Some(Fate::Stitched(other, _)) =
                        self.fates.insert(handle.0, Fate::Ambiguous)
                    else {
                        continue; // The other end of a pair that is undone already.
                    };
                    self.fates.insert(other, Fate::Ambiguous);
                }
                Output::Expired { handle, reason } => {
                    assert_ne!(reason, Reason::Full);
                    let before = self.fates.insert(handle.0, Fate::Alone);
                    assert_eq!(before, None, "{handle:?} expired");
                }
                Output::Offer(handle) => {
                    *self.offered.entry(handle.0).or_default() += 1;
                    assert_eq!(self.offered[&handle.0], 1, "{handle:?} offered twice");
                    assert!(
                        !self.fates.contains_key(&handle.0),
                        "{handle:?} offered though decided"
                    );
                }
            }
        }
    }
}
