//! How long a loop waits after a cycle that failed.

use std::time::Duration;

/// The delay before a cycle that failed is tried again: doubles up to 10 s, with jitter; back to the start on success.
#[derive(Debug, Default)]
pub(crate) struct Backoff(u32);

impl Backoff {
    pub(crate) fn reset(&mut self) {
        self.0 = 0;
    }

    pub(crate) fn next_delay(&mut self) -> Duration {
        let delay = Duration::from_millis(100) * 2u32.pow(self.0.min(7));
        self.0 += 1;
        delay.min(Duration::from_secs(10)).mul_f64(0.5 + 0.5 * fastrand::f64())
    }
}
