//! What is broken on purpose: each of these a run must notice. They stand outside the code that they break: between a federator and
//! what carries its words, its journal or its store.

/// A way to break a federation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Breakage {
    /// Batches are acknowledged before they are durable.
    BatchAcknowledgedEarly,
    /// Cards are acknowledged when they come, before they are durable.
    CardAcknowledgedEarly,
    /// The journal forgets cards.
    CardNotJournaled,
    /// The store does not delete the rows that are replaced.
    RowsNotReplaced,
    /// After a crash the store does not say which halves left memory.
    DepartedForgotten,
    /// After a crash batches are taken again that were applied before.
    SequencesForgotten,
    /// The first offers of each session are lost.
    FirstOffersLost,
    /// Notices are lost that a federator sends in the first place.
    NoticesLost,
    /// Cards of halves that are finished are lost.
    LastCardsLost,
    /// A card's half has another ISN than it had.
    CardsGarbled,
    /// Cards are told to the wrong half.
    CardsMisdirected,
    /// Offers go to the wrong owner.
    OffersMisdirected,
    /// Acknowledgements between federators say more than what came.
    AcknowledgedTooMuch,
    /// A session's messages come in the wrong order, each acknowledged as if it had been the last.
    StoreLosesLinks,
    /// The clocks of agents are believed.
    SkewIgnored,
}

impl Breakage {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::BatchAcknowledgedEarly,
        Self::CardAcknowledgedEarly,
        Self::CardNotJournaled,
        Self::RowsNotReplaced,
        Self::DepartedForgotten,
        Self::SequencesForgotten,
        Self::FirstOffersLost,
        Self::NoticesLost,
        Self::LastCardsLost,
        Self::CardsGarbled,
        Self::CardsMisdirected,
        Self::OffersMisdirected,
        Self::AcknowledgedTooMuch,
        Self::StoreLosesLinks,
        Self::SkewIgnored,
    ];
}
