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
    /// The journal forgets some batches.
    BatchNotJournaled,
    /// After a crash the halves that the store left to the journal are not taken from there.
    HeldNotRecovered,
    /// The store does not keep who the other ends' homes are.
    StoreLosesLinks,
    /// The first offers of each session are lost.
    FirstOffersLost,
    /// Some notices are lost.
    NoticesLost,
    /// Notices name each other's partners.
    NoticesMisdirected,
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
    /// The clocks of agents are believed.
    SkewIgnored,
}

impl Breakage {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::BatchAcknowledgedEarly,
        Self::CardAcknowledgedEarly,
        Self::CardNotJournaled,
        Self::RowsNotReplaced,
        Self::BatchNotJournaled,
        Self::HeldNotRecovered,
        Self::StoreLosesLinks,
        Self::FirstOffersLost,
        Self::NoticesLost,
        Self::NoticesMisdirected,
        Self::LastCardsLost,
        Self::CardsGarbled,
        Self::CardsMisdirected,
        Self::OffersMisdirected,
        Self::AcknowledgedTooMuch,
        Self::SkewIgnored,
    ];
}
