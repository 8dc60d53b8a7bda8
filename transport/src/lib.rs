//! mTLS QUIC between agents, federators and operators.
