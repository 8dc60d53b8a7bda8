//! The kernel side as the agent sees it: hooks that stay when the agent goes, and what they leave in the ring.
//!
//! Everything is pinned below `PIN_DIR/vN`: four maps and two links. A start that finds them whole takes them over where
//! the last agent left off; one that finds them broken, or made by another program or for another cgroup,
//! attaches anew and keeps the maps where it can.

pub mod btf;
pub mod datagrams;
pub mod hooks;
pub mod sys;

pub use datagrams::{DatagramPlan, Datagrams};
pub use hooks::{Hooks, Plan};
