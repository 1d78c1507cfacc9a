//! The threads on which everything of a process runs, but handlers of other languages.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use tokio::runtime::{Builder, Runtime};

const THREADS: usize = 2;

/// Starts them. Errors: the system has no room for them.
pub fn runtime() -> io::Result<Runtime> {
    try_threads()?;
    Builder::new_multi_thread()
        .worker_threads(THREADS)
        .thread_name("tasker")
        .enable_all()
        .build()
}

/// Where one of several cannot be started, tokio waits for the others for ever: so many are started before, all at the same time.
fn try_threads() -> io::Result<()> {
    let gate = Arc::new(Mutex::new(()));
    let closed = gate.lock().unwrap_or_else(PoisonError::into_inner);
    let start = |_| {
        let gate = gate.clone();
        thread::Builder::new().spawn(move || drop(gate.lock()))
    };
    let threads = (0..THREADS).map(start).collect::<io::Result<Vec<_>>>()?;
    drop(closed);
    threads.into_iter().for_each(|thread| drop(thread.join()));
    Ok(())
}
