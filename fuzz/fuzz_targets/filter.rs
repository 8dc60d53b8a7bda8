//! A filter expression or a term: what parses prints to something that parses to the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weft_wire::filter::{End, Expr, FilterError, MAX_LENGTH, parse, term};

fn check(parsed: Result<Expr, FilterError>, characters: usize) {
    match parsed {
        Ok(expr) => {
            let text = expr.to_string();
            // Printing adds quotes and parentheses.
            if text.len() <= MAX_LENGTH {
                assert_eq!(parse(&text).as_ref(), Ok(&expr), "{text}");
            }
        }
        Err(error) => assert!(error.at <= characters, "{error}"),
    }
}

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let characters = text.chars().count();
    check(parse(text), characters);
    check(term(End::Client, text), characters);
    check(term(End::Server, text), characters);
});
