//! Whether work ever waits while nobody works: many short runs of a Ruby worker behind a proxy that delays what it carries, and drops and reorders
//! notifications.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{json, Value};
use tasker::engine::submit::{NewTask, Submitter};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::site::{Language, Site};
use crate::throughput::Shape;

pub(crate) const COLUMNS: [&str; 5] = ["runs", "seconds p50", "seconds max", "gap max, ms", "gaps over 1 s"];

/// Each way; a round trip has two.
const DELAY: Duration = Duration::from_micros(2_500);

/// What is done to notifications.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Notifications {
    Pass,
    /// Every second one never arrives.
    Drop,
    /// Each arrives after what came behind it, up to a tenth of a second late.
    Reorder,
}

pub(crate) const CASES: [(&str, Notifications); 3] = [
    ("5 ms of round trip", Notifications::Pass),
    ("the same, half of the notifications dropped", Notifications::Drop),
    ("the same, notifications late and reordered", Notifications::Reorder),
];

/// So many runs of so many linear-4 tasks. A gap is a time between two steps' ends, while there is work.
pub(crate) async fn measure(site: &Site, notifications: Notifications, runs: usize, tasks: usize) -> Vec<Value> {
    let (mut seconds, mut gaps) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        let place = site.place(&[Shape::Linear4.template()]).await;
        let proxy = proxy(place.address(), notifications).await;
        let crew = place.work_through(Language::Ruby { threads: 2 }, 1, Some(proxy)).await;
        let submitter = Submitter::new(place.db.clone());
        let some = vec![NewTask::default(); 1_000];
        for _ in 0..tasks / some.len() {
            submitter.submit("flow", None, &some).await.expect("submits");
        }
        seconds.push(place.drained().await);
        gaps.push(place.longest_gap().await);
        crew.stop().await;
        place.leave().await;
    }
    seconds.sort_by(f64::total_cmp);
    gaps.sort_by(f64::total_cmp);
    let most = |of: &[f64]| of.last().copied().unwrap_or_default();
    vec![
        json!(runs),
        json!(seconds[seconds.len() / 2]),
        json!(most(&seconds)),
        json!(1_000.0 * most(&gaps)),
        json!(gaps.iter().filter(|gap| **gap > 1.0).count()),
    ]
}

/// The port of a proxy to this address, which lives as long as the benchmark.
async fn proxy(to: (String, u16), notifications: Notifications) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("its address").port();
    let seen = Arc::new(AtomicUsize::new(0));
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let (to, seen) = (to.clone(), seen.clone());
            tokio::spawn(async move {
                let Ok(far) = TcpStream::connect(to).await else { return };
                near.set_nodelay(true).ok();
                far.set_nodelay(true).ok();
                let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
                tokio::select! {
                    () = carry(near_in, far_out) => {}
                    () = carry_messages(far_in, near_out, notifications, seen) => {}
                }
            });
        }
    });
    port
}

/// Delivers what was sent into it when its time has come, in the order of these times.
async fn deliver(mut parts: mpsc::UnboundedReceiver<(Instant, Vec<u8>)>, mut to: OwnedWriteHalf) {
    let mut waiting: Vec<(Instant, Vec<u8>)> = Vec::new();
    loop {
        waiting.sort_by_key(|(at, _)| *at);
        let next = waiting.first().map(|(at, _)| *at);
        tokio::select! {
            part = parts.recv() => match part {
                Some(part) => waiting.push(part),
                None => return,
            },
            () = async { tokio::time::sleep_until(next.unwrap_or_else(Instant::now)).await }, if next.is_some() => {
                let (_, bytes) = waiting.remove(0);
                if to.write_all(&bytes).await.is_err() {
                    return;
                }
            }
        }
    }
}

async fn carry(mut from: OwnedReadHalf, to: OwnedWriteHalf) {
    let (parts, delayed) = mpsc::unbounded_channel();
    let reading = async {
        let mut bytes = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = from.read(&mut bytes).await {
            parts.send((Instant::now() + DELAY, bytes[..count].to_vec())).ok();
        }
    };
    tokio::select! { () = reading => {}, () = deliver(delayed, to) => {} }
}

/// The server's side, message by message (PostgreSQL's protocol 3: a type, and a length that counts itself).
async fn carry_messages(mut from: OwnedReadHalf, to: OwnedWriteHalf, notifications: Notifications, seen: Arc<AtomicUsize>) {
    let (parts, delayed) = mpsc::unbounded_channel();
    let reading = async {
        let mut head = [0; 5];
        while from.read_exact(&mut head).await.is_ok() {
            let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
            let mut message = head.to_vec();
            message.resize(1 + length, 0);
            if from.read_exact(&mut message[5..]).await.is_err() {
                return;
            }
            let mut at = Instant::now() + DELAY;
            if head[0] == b'A' {
                let odd = seen.fetch_add(1, Ordering::Relaxed) % 2 == 1;
                match notifications {
                    Notifications::Drop if odd => continue,
                    Notifications::Reorder => at += Duration::from_millis(fastrand::u64(0..100)),
                    _ => {}
                }
            }
            parts.send((at, message)).ok();
        }
    };
    tokio::select! { () = reading => {}, () = deliver(delayed, to) => {} }
}
