//! What federators decide together: owners, offers, cards. Pure.
