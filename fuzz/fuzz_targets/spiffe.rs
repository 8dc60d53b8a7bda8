//! A name out of a certificate: what parses prints as it was.
#![no_main]

#[path = "../../transport/src/spiffe.rs"]
#[allow(dead_code)]
mod spiffe;

use libfuzzer_sys::fuzz_target;
use spiffe::{MAX_PART_BYTES, SpiffeId};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let Ok(id) = text.parse::<SpiffeId>() else {
        return;
    };
    assert_eq!(id.to_string(), text);
    let parts = [id.domain(), id.region(), id.name()];
    assert!(parts.iter().all(|part| part.len() <= MAX_PART_BYTES));
    assert_eq!(
        SpiffeId::new(id.domain(), id.region(), id.role(), id.name()).as_ref(),
        Ok(&id)
    );
});
