//! The records that the kernel programs and the agent share.
