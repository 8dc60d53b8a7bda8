//! Embeds the kernel programs, which `cargo xtask ebpf` builds for a target of their own.

use std::path::{Path, PathBuf};
use std::{env, fs, process};

/// The call hooks.
const CALLS: &str = "weft-calls.bpf.o";

fn main() {
    println!("cargo:rerun-if-env-changed=WEFT_EBPF_OBJECT");
    let Some(object) = env::var_os("WEFT_EBPF_OBJECT").map(PathBuf::from) else {
        fail(
            "WEFT_EBPF_OBJECT is not set",
            "build inside the workspace, whose .cargo/config.toml sets it",
        );
    };
    let Some(out) = env::var_os("OUT_DIR") else {
        fail("OUT_DIR is not set", "cargo sets it");
    };
    // The call hooks' object stands beside the socket hooks'.
    for (object, name) in [
        (object.clone(), "weft.bpf.o"),
        (object.with_file_name(CALLS), CALLS),
    ] {
        embed(&object, &Path::new(&out).join(name));
    }
}

fn embed(object: &Path, to: &Path) {
    println!("cargo:rerun-if-changed={}", object.display());
    match fs::read(object) {
        Ok(bytes) if bytes.starts_with(b"\x7fELF") => {
            if let Err(error) = fs::write(to, bytes) {
                fail(&error.to_string(), "is the target directory writable?");
            }
        }
        Ok(_) => fail(
            &format!("{} is no ELF object", object.display()),
            "cargo xtask ebpf",
        ),
        Err(error) => fail(
            &format!("{}: {error}", object.display()),
            "cargo xtask ebpf",
        ),
    }
}

fn fail(cause: &str, hint: &str) -> ! {
    eprintln!("error: the kernel programs cannot be embedded\ncause: {cause}\nhint:  {hint}");
    process::exit(1);
}
