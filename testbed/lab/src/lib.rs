//! Clouds on one machine: hosts are network namespaces with a cgroup each, routers do real NAT in the kernel, the
//! workloads are real programs, and the truth comes from their logs and the routers' connection tracking, never from Weft.

pub mod error;
pub mod lab;
pub mod host;
pub mod net;
pub mod topology;
pub mod workload;
pub mod udp;
pub mod names;
pub mod conntrack;
pub mod truth;
pub mod traffic;
pub mod wait;
pub mod weft;
pub mod answer;
pub mod score;
pub mod demo;

mod command;

pub use error::{LabError, Result};
pub use host::{Host, Process, Site};
pub use lab::Lab;
pub use topology::Topology;
