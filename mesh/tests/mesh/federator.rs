//! A federator with its halves, and what such halves look like.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use weft_mesh::{Card, Config, Effect, Members, Mesh, MeshKey, Records, card_view};
use weft_stitching::HalfView;
use weft_wire::control::{EndpointCard, Handle, PeerMessage};
use weft_wire::{Fingerprint, Half, HalfId, HalfState, Owner, Protocol, Role, Site, Timestamp};

pub(crate) const SECOND: i64 = 1_000_000;
pub(crate) const EXPIRY: i64 = 120 * SECOND;

/// The same on all federators.
pub(crate) fn key() -> MeshKey {
    MeshKey::new([9; 32])
}

/// One of these members, with room for so many offers and halves.
pub(crate) fn config(name: &str, members: &[&str], room: usize) -> Config {
    Config {
        name: name.into(),
        members: Members::new(members.iter().copied()),
        key: key(),
        expiry_us: EXPIRY,
        partial_delay_us: 5 * SECOND,
        gather_us: 0,
        stitched_at_home: false,
        max_offers: room,
        max_offers_per_home: room,
        max_halves: room,
    }
}

/// Client's and server's end of connections that no NAT touched.
pub(crate) fn ends() -> [SocketAddr; 2] {
    [([10, 0, 0, 1], 1000).into(), ([10, 0, 0, 2], 80).into()]
}

/// An open half between two ends, client's first.
pub(crate) fn half(id: u64, role: Role, fingerprint: Fingerprint, ends: [SocketAddr; 2]) -> Half {
    let [client, server] = ends;
    let (local, remote) = match role {
        Role::Client => (client, server),
        Role::Server => (server, client),
    };
    Half {
        id: HalfId(id),
        cookie: id,
        protocol: match fingerprint {
            Fingerprint::Datagrams(_) => Protocol::Udp,
            _ => Protocol::Tcp,
        },
        role,
        state: HalfState::Open,
        fingerprint,
        local,
        remote,
        ..Half::default()
    }
}

/// The half at this time closed.
pub(crate) fn closed(half: Half, at: i64) -> Half {
    Half {
        state: HalfState::Closed,
        closed_at: Some(Timestamp(at)),
        ..half
    }
}

pub(crate) fn card(half: Half, site: Site) -> Card {
    Card {
        half,
        owner: Owner::default(),
        name: None,
        agent: "node".into(),
        site,
    }
}

/// Through the same conversion as a peer's card, so that both homes see one thing.
pub(crate) fn view(federator: &str, half: Half, site: Site) -> HalfView {
    let Card {
        half,
        owner,
        name,
        agent,
        site,
    } = card(half, site);
    card_view(&EndpointCard {
        yours: Handle(0),
        theirs: Handle(0),
        partial: false,
        half,
        owner,
        name,
        agent,
        federator: federator.into(),
        site,
    })
}

/// The halves of one federator, all of one network.
pub(crate) struct Book {
    federator: String,
    halves: BTreeMap<u64, Half>,
}

impl Book {
    fn site() -> Site {
        Site {
            network: "one".into(),
            ..Site::default()
        }
    }

    fn view_of(&self, half: Half) -> HalfView {
        view(&self.federator, half, Self::site())
    }
}

impl Records for Book {
    fn view(&self, half: HalfId) -> Option<HalfView> {
        Some(self.view_of(*self.halves.get(&half.0)?))
    }

    fn card(&self, half: HalfId) -> Option<Card> {
        Some(card(*self.halves.get(&half.0)?, Self::site()))
    }
}

/// A federator and its records.
pub(crate) struct Federator {
    pub(crate) name: String,
    pub(crate) mesh: Mesh,
    book: Book,
}

impl Federator {
    pub(crate) fn new(config: Config) -> Self {
        let name = config.name.clone();
        let book = Book {
            federator: name.clone(),
            halves: BTreeMap::new(),
        };
        let mesh = Mesh::new(config).unwrap();
        Self { name, mesh, book }
    }

    pub(crate) fn offer(&mut self, half: Half) {
        assert!(self.mesh.offer(half.id, &self.book.view_of(half)));
        self.book.halves.insert(half.id.0, half);
    }

    /// There is news of a half.
    pub(crate) fn updated(&mut self, half: Half) {
        self.mesh.updated(half.id, &self.book.view_of(half));
        self.book.halves.insert(half.id.0, half);
    }

    pub(crate) fn received(&mut self, now: i64, peer: &str, message: &PeerMessage) {
        self.mesh.received(now, peer, message, &self.book).unwrap();
    }

    pub(crate) fn advance(&mut self, now: i64) -> Vec<Effect> {
        self.mesh.advance(now, &self.book);
        std::iter::from_fn(|| self.mesh.poll()).collect()
    }
}
