//! A stream of bytes into frames: cut differently it gives the same frames, and what it gives encodes to what it took.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weft_wire::frame::{Decoder, Frame, FrameError, append};

fn decode(bytes: &[u8], chunk: usize) -> (Vec<Frame>, Option<FrameError>) {
    let (mut decoder, mut frames) = (Decoder::new(), Vec::new());
    for piece in bytes.chunks(chunk) {
        decoder.push(piece);
        loop {
            match decoder.poll() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            }
        }
    }
    (frames, None)
}

fuzz_target!(|data: &[u8]| {
    let Some((chunk, bytes)) = data.split_first() else {
        return;
    };
    let whole = decode(bytes, usize::MAX);
    assert_eq!(whole, decode(bytes, usize::from(*chunk) + 1));
    let mut again = Vec::new();
    for frame in &whole.0 {
        append(&mut again, frame.kind, &[&frame.payload])
            .expect("what was accepted is within the limit");
    }
    assert!(bytes.starts_with(&again));
});
