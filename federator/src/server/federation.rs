//! What is asked about the federators themselves, and what agents are told of them.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use weft_transport::{FrameSender, Session, TransportError};
use weft_wire::federation::{FederationAnswer, FederationRequest, FederatorState, Homes, Presence};
use weft_wire::query::QueryError;

use super::{SEND_TIMEOUT, Server};
use crate::membership::View;
use crate::peers::{PeerLink, Peers};
use crate::query::failure;

/// Longest wait for another federator's word on itself.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);

/// What one agent is to be told, as it changes.
pub(super) struct HomesOf {
    view: Option<watch::Receiver<Arc<View>>>,
    own: String,
    agent: String,
    told: Homes,
}

impl HomesOf {
    /// Nothing is told to programs of releases that know no such message, nor where there is no membership.
    pub(super) fn new(peers: &Peers, session: &Session) -> Self {
        let members = peers.members().filter(|_| session.takes_datagrams());
        let view = members.map(|members| {
            let mut view = members.view();
            view.mark_changed();
            view
        });
        Self {
            view,
            own: peers.hello().name,
            agent: session.peer().name().to_owned(),
            told: Homes::default(),
        }
    }

    /// Waits for something else than was told.
    pub(super) async fn changed(&mut self) -> Homes {
        let Some(view) = &mut self.view else {
            return std::future::pending().await;
        };
        while view.changed().await.is_ok() {
            let homes = view.borrow_and_update().homes_of(&self.agent);
            // Where there is no other there is nothing to tell.
            let alone = homes.homes.iter().all(|home| home.name == self.own);
            if homes != self.told && !(alone && self.told.homes.is_empty()) {
                self.told = homes.clone();
                return homes;
            }
        }
        std::future::pending().await
    }
}

impl Server {
    pub(super) async fn answer_federation(
        &self,
        mut sender: FrameSender,
        request: FederationRequest,
    ) -> Result<(), TransportError> {
        let answer = match request {
            FederationRequest::Own => FederationAnswer::Federators(vec![self.own_state()]),
            FederationRequest::Federators => FederationAnswer::Federators(self.federators().await),
            FederationRequest::Drain {
                federator,
                draining,
            } => match self.drain(&federator, draining).await {
                Ok(()) => FederationAnswer::Done {
                    agents: self.agents.connected(),
                },
                Err(error) => FederationAnswer::Error(error),
            },
        };
        sender.send(&answer, SEND_TIMEOUT).await?;
        sender.finish();
        Ok(())
    }

    fn own_state(&self) -> FederatorState {
        let agents = self.agents.connected();
        match self.peers.members() {
            Some(members) => members.view().borrow().own_state(agents, self.started),
            None => {
                let hello = self.peers.hello();
                FederatorState {
                    name: hello.name,
                    region: hello.region,
                    address: String::new(),
                    asked: true,
                    state: Presence::Up,
                    for_s: self.started.elapsed().as_secs(),
                    weight: 1,
                    agents: Some(agents),
                    rtt_us: None,
                    error: None,
                }
            }
        }
    }

    /// This federator, and the others as it sees them; those that can be reached are asked for what only they know.
    async fn federators(&self) -> Vec<FederatorState> {
        let mut states = match self.peers.members() {
            Some(members) => members.view().borrow().states(&self.peers, self.started),
            None => Vec::new(),
        };
        let mut asked = JoinSet::new();
        for link in self.peers.all() {
            asked.spawn(async move {
                let told = timeout(ASK_TIMEOUT, ask(&link)).await;
                (link.name.clone(), told.ok().flatten())
            });
        }
        while let Some(answered) = asked.join_next().await {
            let Ok((name, Some(told))) = answered else {
                continue;
            };
            if let Some(state) = states.iter_mut().find(|state| state.name == name) {
                state.agents = told.agents;
                if state.state == Presence::Up && told.state == Presence::Draining {
                    state.state = Presence::Draining;
                }
            }
        }
        states.push(self.own_state());
        states.sort_by(|a, b| (&a.region, &a.name).cmp(&(&b.region, &b.name)));
        states
    }

    async fn drain(&self, federator: &str, draining: bool) -> Result<(), QueryError> {
        let not_drained =
            |cause: &str, hint: &str| failure("E-DRAIN", "nothing was changed", cause, hint);
        let Some(members) = self.peers.members() else {
            return Err(not_drained(
                "this federator takes part in no mesh: there is no other to take its agents",
                "set mesh.advertise or mesh.seeds (docs/federator.toml)",
            ));
        };
        if federator != self.name {
            let cause = format!("this is {:?}, not {federator:?}", self.name);
            return Err(not_drained(&cause, "weft federators"));
        }
        let drained = members.drain(draining).await;
        drained.map_err(|error| not_drained(&format!("{error:#}"), "weft health"))
    }
}

/// What another federator says of itself; nothing, where it does not know the question.
async fn ask(link: &PeerLink) -> Option<FederatorState> {
    let session = link.session().filter(Session::takes_datagrams)?;
    let (mut sender, mut receiver) = session.open_bi().await.ok()?;
    let sent = sender.send(&FederationRequest::Own, ASK_TIMEOUT).await;
    sent.ok()?;
    sender.finish();
    match receiver.expect(ASK_TIMEOUT).await.ok()? {
        FederationAnswer::Federators(own) => own.into_iter().find(|own| own.name == link.name),
        FederationAnswer::Done { .. } | FederationAnswer::Error(_) => None,
    }
}
