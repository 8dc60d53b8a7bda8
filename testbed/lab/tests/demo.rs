//! The demo shows what it promises and agrees with the truth.

use std::process::{Command, Output};

fn demo() -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft-lab"));
    command
        .arg("demo")
        .output()
        .unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn answers_go_to_stdout_and_agree_with_the_truth() {
    let done = demo();
    let (answers, progress) = (
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr),
    );
    assert!(done.status.success(), "{answers}\n{progress}");
    for line in [
        "$ weft connections",
        "$ weft explain",
        "$ weft report cross-cloud",
        "$ weft report hairpins",
        "$ weft health",
    ] {
        assert!(answers.contains(line), "{line} is missing in\n{answers}");
    }
    for word in [
        "tcp-isn-pair",
        "cross-cloud",
        "hairpin",
        "SNAT, DNAT",
        "ok: 2 of 2 federators, 4 of 4 agents",
    ] {
        assert!(answers.contains(word), "{word} is missing in\n{answers}");
    }
    assert!(
        progress.contains("recall 100.00 %, precision 100.00 %"),
        "{progress}"
    );
}
