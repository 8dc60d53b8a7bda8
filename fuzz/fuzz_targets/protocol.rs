//! The first bytes of a connection, a stranger's: any of them are some protocol's or none's, and what names the server stands in
//! what the client sent.
#![no_main]

#[path = "../../node-agent/src/calls/protocol.rs"]
#[allow(dead_code)]
mod protocol;

use libfuzzer_sys::fuzz_target;
use weft_wire::{Application, MAX_NAME_BYTES, NameSource};

// The first byte says how many of the rest the client sent; what remains is the server's.
fuzz_target!(|data: &[u8]| {
    let Some((length, bytes)) = data.split_first() else {
        return;
    };
    let (client, server) = bytes.split_at(bytes.len().min(usize::from(*length)));
    let (application, named) = protocol::detect(client, server);
    if let Some(named) = named {
        let source = match application {
            Application::Tls => NameSource::Sni,
            Application::Http1 => NameSource::HttpHost,
            other => panic!("{other:?} names nobody"),
        };
        assert_eq!(named.source, source);
        let name = named.name.as_bytes();
        assert!((1..=MAX_NAME_BYTES).contains(&name.len()));
        let plain = |byte: &u8| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-._".contains(byte)
        };
        assert!(name.iter().all(plain));
        let stands = |window: &[u8]| window.eq_ignore_ascii_case(name);
        assert!(client.windows(name.len()).any(stands));
    }
});
