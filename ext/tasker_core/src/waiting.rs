//! Waiting without the GVL. Modelled on the bridge of Temporal's Ruby SDK: work runs on tokio threads, its result crosses on a channel, and
//! the waiting Ruby thread can be interrupted (Ctrl-C, Thread#kill, Timeout).

use std::ffi::c_void;
use std::future::Future;
use std::ptr;

use magnus::{Error, Ruby};

use crate::raise;
use crate::runtime::runtime;

/// Runs `work` without the GVL. `unblock` is called, from another thread, when Ruby wants this one back. None: Ruby wanted it back
/// before `work` could begin.
pub(crate) fn without_gvl<F, R>(work: F, unblock: Option<&(dyn Fn() + Sync)>) -> Option<R>
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

/// Waits on a channel without the GVL; Err is the Ruby exception that interrupted the wait. None: the channel is closed, or `timeout` passed.
pub(crate) fn receive<T: Send>(
    ruby: &Ruby,
    channel: &flume::Receiver<T>,
    timeout: Option<std::time::Duration>,
) -> Result<Option<T>, Error> {
    // What is there already costs no hand-over of the GVL.
    if let Ok(found) = channel.try_recv() {
        return Ok(Some(found));
    }
    let (wake, woken) = flume::bounded::<()>(1);
    let unblock = move || {
        wake.try_send(()).ok();
    };
    loop {
        enum Got<T> {
            Value(T),
            End,
            Interrupt,
        }
        let wait = || {
            let selector = flume::Selector::new()
                .recv(channel, |value| value.map_or(Got::End, Got::Value))
                .recv(&woken, |_| Got::Interrupt);
            match timeout {
                Some(timeout) => selector.wait_timeout(timeout).unwrap_or(Got::End),
                None => selector.wait(),
            }
        };
        match without_gvl(wait, Some(&unblock)) {
            Some(Got::Value(value)) => return Ok(Some(value)),
            Some(Got::End) => return Ok(None),
            Some(Got::Interrupt) | None => check_interrupts(ruby)?,
        }
    }
}

/// Runs a future of the core on this process's runtime and waits for it; its errors become Ruby exceptions. An interrupted wait abandons the
/// future, which still runs to its end.
pub(crate) fn block_on<T, F>(ruby: &Ruby, future: F) -> Result<T, Error>
where
    F: Future<Output = tasker::Result<T>> + Send + 'static,
    T: Send + 'static,
{
    let runtime = runtime().map_err(|error| raise::with_class(ruby, "Error", format!("cannot start threads: {error}")))?;
    let (sender, receiver) = flume::bounded(1);
    runtime.spawn(async move {
        sender.send(future.await).ok();
    });
    match receive(ruby, &receiver, None)? {
        Some(done) => done.map_err(|error| raise::error(ruby, &error)),
        None => Err(raise::with_class(
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
