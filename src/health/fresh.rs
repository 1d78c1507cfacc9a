//! Answers that all who ask within a second share, and that no more than one of them fetches.

use std::future::Future;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

/// How long an answer is as good as a new one.
pub(super) const FRESH: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Fresh<T>(Mutex<Option<(Instant, T)>>);

impl<T> Default for Fresh<T> {
    fn default() -> Self {
        Fresh(Mutex::new(None))
    }
}

impl<T: Clone> Fresh<T> {
    pub(super) async fn get<F: Future<Output = T>>(&self, fetch: impl FnOnce() -> F) -> T {
        let mut last = self.0.lock().await;
        if let Some((at, answer)) = &*last {
            if at.elapsed() < FRESH {
                return answer.clone();
            }
        }
        let answer = fetch().await;
        *last = Some((Instant::now(), answer.clone()));
        answer
    }
}
