//! The tokio runtime of this process. A forked child gets its own; its parent's is leaked there, because threads do not survive a fork
//! and the descriptors are still the parent's.

use std::mem::ManuallyDrop;
use std::sync::{Mutex, PoisonError};

use tasker::threads;
use tokio::runtime::Runtime;

static RUNTIME: Mutex<Option<(u32, &'static Runtime)>> = Mutex::new(None);

/// The runtime of this process, started on first use.
pub(crate) fn runtime() -> std::io::Result<&'static Runtime> {
    let mut current = RUNTIME.lock().unwrap_or_else(PoisonError::into_inner);
    let pid = std::process::id();
    match *current {
        Some((owner, runtime)) if owner == pid => Ok(runtime),
        _ => {
            let runtime: &'static Runtime = Box::leak(Box::new(threads::runtime()?));
            *current = Some((pid, runtime));
            Ok(runtime)
        }
    }
}

/// A value that belongs to the process that made it: another process, forked from it, neither uses nor drops it.
pub(crate) struct Owned<T> {
    pid: u32,
    value: ManuallyDrop<T>,
}

impl<T> Owned<T> {
    pub(crate) fn new(value: T) -> Owned<T> {
        Owned {
            pid: std::process::id(),
            value: ManuallyDrop::new(value),
        }
    }

    /// None in a process forked from the owner.
    pub(crate) fn get(&self) -> Option<&T> {
        (self.pid == std::process::id()).then_some(&*self.value)
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        if self.pid == std::process::id() {
            // SAFETY: this is the only place that drops the value, and drop runs once.
            unsafe { ManuallyDrop::drop(&mut self.value) }
        }
    }
}
