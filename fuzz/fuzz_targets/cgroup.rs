//! Texts of `/proc`: cgroup paths name no more than what stands in them, and command lines stay within their limit.
#![no_main]

#[path = "../../node-agent/src/attribution/cgroup.rs"]
#[allow(dead_code)]
mod cgroup;
#[path = "../../node-agent/src/attribution/secrets.rs"]
#[allow(dead_code)]
mod secrets;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let line = secrets::Sieve::default().line(data);
    assert!(line.len() <= secrets::MAX_ARGS_BYTES);
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    for place in [cgroup::place(text), cgroup::of_process(text)] {
        assert!(place.containers.len() <= cgroup::MAX_NESTED);
        assert!(
            place
                .containers
                .iter()
                .all(|container| text.contains(&container.id))
        );
        assert!(place.unit.is_none_or(|unit| text.contains(&unit)));
    }
});
