//! Waiting for something that nothing notifies of: ask again until a deadline.

use std::time::{Duration, Instant};

use anyhow::Result;

/// Pause between two questions.
const INTERVAL: Duration = Duration::from_millis(5);

/// Asks until the answer is `Some`, which it returns; `None` after the deadline. Asks at least once.
///
/// # Errors
///
/// The first error that asking meets.
pub fn until<T>(deadline: Duration, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<Option<T>> {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask()? {
            return Ok(Some(answer));
        }
        if start.elapsed() >= deadline {
            return Ok(None);
        }
        std::thread::sleep(INTERVAL);
    }
}
