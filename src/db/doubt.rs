//! Whether the server that connections lead to still is the primary.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// What pools see of the server that they lead to.
#[derive(Debug, Default)]
pub(super) struct Doubt {
    /// Why the last connection that could be made was refused by us; None: it was not.
    refusal: Mutex<Option<String>>,
    raised: Notify,
}

impl Doubt {
    /// Waits until it is raised.
    pub(super) async fn raised(&self) {
        self.raised.notified().await;
    }

    /// Somebody should look whether another server is the primary by now.
    pub(super) fn raise(&self) {
        self.raised.notify_one();
    }

    /// A connection was made, to a server that is not worked with for this reason, if there is one.
    pub(super) fn note(&self, refusal: &Option<String>) {
        self.refusal().clone_from(refusal);
        if refusal.is_some() {
            self.raise();
        }
    }

    pub(super) fn refusal(&self) -> MutexGuard<'_, Option<String>> {
        self.refusal.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
