//! The kernel's BTF: any bytes are indexed or refused, and looking a member up ends.
#![no_main]

#[path = "../../node-agent/src/kernel/btf.rs"]
#[allow(dead_code)]
mod btf;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some(btf) = btf::Btf::parse(data) else {
        return;
    };
    // One that is found in the corpus, one in an anonymous struct, and none.
    for member in ["a", "c", "nowhere"] {
        let _ = btf.offset("outer", member);
    }
});
