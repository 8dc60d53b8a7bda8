//! What Kubernetes knows: whose pod a container of this node is, and what there is in the cluster.
//!
//! The deciding parts are pure, and come first: [`object`] (what is kept of API objects), [`owner`] (Deployment, CronJob
//! behind a pod), [`index`] (container or uid to pod), [`watch`] (when to list, watch, wait), [`stream`] (objects out of
//! bytes, one at a time), [`lease`] (which agent speaks for the cluster), [`cluster`] (what it tells).
//! Around them: [`api`] (requests), [`follow`] (drives a watch), [`files`] (pods without an API server), [`pods`] (what
//! the agent asks), [`speaker`] (tells of the cluster).
//!
//! Memory: one object at a time while a list or an event is read, and at most [`index::MAX_PODS`] pods. Absent from
//! here: certificates and tokens are left to the `kube` crate; nothing is ever written to the API but the lease.

pub mod object;
pub mod owner;
pub mod index;
pub mod watch;
pub mod stream;
pub mod lease;
pub mod cluster;
pub mod api;
pub mod follow;
pub mod files;
pub mod pods;
pub mod speaker;

pub use api::{Api, Settings};
pub use files::Files;
pub use index::PodIndex;
pub use pods::Pods;
