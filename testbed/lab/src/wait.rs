//! Waiting for a condition, with a bound that only a defect reaches.

use std::thread;
use std::time::{Duration, Instant};

use crate::error::{LabError, Result};

/// Time between two looks.
const PAUSE: Duration = Duration::from_millis(150);

/// Looks until `probe` gives `Ok(Ok(value))`. `Ok(Err(state))` says what is still missing; an error ends it.
pub fn until<T>(
    what: &str,
    bound: Duration,
    mut probe: impl FnMut() -> Result<std::result::Result<T, String>>,
) -> Result<T> {
    let end = Instant::now() + bound;
    loop {
        match probe()? {
            Ok(value) => return Ok(value),
            Err(last) if Instant::now() >= end => {
                return Err(LabError::InVain {
                    what: what.to_owned(),
                    last,
                });
            }
            Err(_) => thread::sleep(PAUSE),
        }
    }
}
