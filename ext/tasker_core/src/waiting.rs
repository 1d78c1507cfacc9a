//! Waiting without the GVL. Modelled on the bridge of Temporal's Ruby SDK: work runs on tokio threads, its result crosses to the Ruby thread, which
//! waits for it and can be interrupted (Ctrl-C, Thread#kill, Timeout).

use std::ffi::c_void;
use std::future::Future;
use std::ptr;
use std::time::Duration;

use magnus::{Error, Ruby};
use tokio::runtime::Runtime;
use tokio::sync::{Mutex, Notify};
use tokio::time::Instant;

use crate::raise;
use crate::runtime::runtime;

/// Runs `work` without the GVL. `unblock` is called, from another thread, when Ruby wants this one back. None: Ruby wanted it back
/// before `work` could begin.
fn without_gvl<F, R>(work: F, unblock: Option<&(dyn Fn() + Sync)>) -> Option<R>
where
    F: FnOnce() -> R,
{
    struct Call<F, R> {
        work: Option<F>,
        result: Option<std::thread::Result<R>>,
    }
    unsafe extern "C" fn run<F: FnOnce() -> R, R>(call: *mut c_void) -> *mut c_void {
        // SAFETY: `call` is the Call below, which outlives this call.
        let call = unsafe { &mut *call.cast::<Call<F, R>>() };
        if let Some(work) = call.work.take() {
            // A panic must not unwind through Ruby's frames: it is carried over them.
            call.result = Some(std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)));
        }
        ptr::null_mut()
    }
    unsafe extern "C" fn interrupt(unblock: *mut c_void) {
        // SAFETY: `unblock` is the reference below, or this function is not passed.
        unsafe { (*unblock.cast::<&(dyn Fn() + Sync)>())() }
    }

    let mut call = Call {
        work: Some(work),
        result: None,
    };
    let mut unblock = unblock;
    let (function, argument): (rb_sys::rb_unblock_function_t, *mut c_void) = match &mut unblock {
        Some(unblock) => (Some(interrupt), ptr::from_mut(unblock).cast()),
        None => (None, ptr::null_mut()),
    };
    // SAFETY: both arguments outlive the call. The variant 2 does not raise pending interrupts, so no Rust frame is jumped over.
    unsafe { rb_sys::rb_thread_call_without_gvl2(Some(run::<F, R>), ptr::from_mut(&mut call).cast(), function, argument) };
    match call.result? {
        Ok(result) => Some(result),
        // magnus turns it into a Ruby exception at the boundary.
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Runs `work` without the GVL, to its end. Err is the Ruby exception that was on its way before it could begin.
pub(crate) fn run_without_gvl<R>(ruby: &Ruby, work: impl FnOnce() -> R) -> Result<R, Error> {
    let mut work = Some(work);
    loop {
        // It is taken when it begins.
        if let Some(Some(result)) = without_gvl(|| work.take().map(|work| work()), None) {
            return Ok(result);
        }
        check_interrupts(ruby)?;
    }
}

/// Waits for what `make` makes, on this process's runtime and without the GVL; Err is the Ruby exception that interrupted the wait. None: `timeout`
/// passed. After an interrupt that raised nothing it is made again: it must lose nothing when it is dropped.
///
/// A future, not a selection among channels: flume's, which this was, forgets a thread that was woken for what another took before it came.
pub(crate) fn wait<F: Future + Send>(
    ruby: &Ruby,
    timeout: Option<Duration>,
    mut make: impl FnMut() -> F + Send,
) -> Result<Option<F::Output>, Error>
where
    F::Output: Send,
{
    enum Got<T> {
        Value(T),
        End,
        Interrupt,
    }
    let runtime = start(ruby)?;
    let interrupt = Notify::new();
    let unblock = || interrupt.notify_one();
    let until = timeout.map(|timeout| Instant::now() + timeout);
    loop {
        let time_is_over = async {
            match until {
                Some(until) => tokio::time::sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        let work = || {
            runtime.block_on(async {
                tokio::select! {
                    biased;
                    value = make() => Got::Value(value),
                    () = interrupt.notified() => Got::Interrupt,
                    () = time_is_over => Got::End,
                }
            })
        };
        match without_gvl(work, Some(&unblock)) {
            Some(Got::Value(value)) => return Ok(Some(value)),
            Some(Got::End) => return Ok(None),
            Some(Got::Interrupt) | None => check_interrupts(ruby)?,
        }
    }
}

fn start(ruby: &Ruby) -> Result<&'static Runtime, Error> {
    runtime().map_err(|error| raise::with_class(ruby, "Error", format!("cannot start threads: {error}")))
}

/// Runs a future of the core on this process's runtime and waits for it; its errors become Ruby exceptions. An interrupted wait abandons the
/// future, which still runs to its end.
pub(crate) fn block_on<T, F>(ruby: &Ruby, future: F) -> Result<T, Error>
where
    F: Future<Output = tasker::Result<T>> + Send + 'static,
    T: Send + 'static,
{
    let running = Mutex::new(start(ruby)?.spawn(future));
    let done = wait(ruby, None, || async {
        // Nobody else has it.
        (&mut *running.lock().await).await
    })?;
    match done {
        Some(Ok(done)) => done.map_err(|error| raise::error(ruby, &error)),
        Some(Err(_)) | None => Err(raise::with_class(
            ruby,
            "Error",
            "the operation failed unexpectedly; its panic is on standard error".into(),
        )),
    }
}

fn check_interrupts(ruby: &Ruby) -> Result<(), Error> {
    let nil = ruby.qnil();
    magnus::rb_sys::protect(|| {
        // SAFETY: called with the GVL; protect catches what it raises.
        unsafe { rb_sys::rb_thread_check_ints() };
        magnus::rb_sys::AsRawValue::as_raw(nil)
    })
    .map(drop)
}
