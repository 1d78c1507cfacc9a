//! What a network costs that lies between the processes and PostgreSQL: all of them behind a proxy that delays what it carries.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{json, Value};

use crate::latency::{percentiles, rounds_at};
use crate::site::{Language, Place, Site};
use crate::throughput::{drain_once, Shape};

pub(crate) const COLUMNS: [&str; 3] = ["steps/s", "submit → begins, p50 ms", "round trips in it"];

/// Round trips, the shortest first, in ms.
pub(crate) const ROUND_TRIPS: [u64; 3] = [0, 1, 5];

async fn place(site: &Site, shape: Shape, round_trip: u64) -> Place {
    let place = site.place(&[shape.template()]).await;
    let port = proxy(place.address(), Duration::from_micros(round_trip * 500));
    place.by(port, false).await
}

/// The port of a proxy to this address that delays what it carries, each way so long; it lives as long as the benchmark. Of threads: an asynchronous timer has a
/// millisecond for its least.
fn proxy(to: (String, u16), delay: Duration) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("its address").port();
    thread::spawn(move || {
        for near in listener.incoming().flatten() {
            let Ok(far) = TcpStream::connect(&to) else { continue };
            near.set_nodelay(true).ok();
            far.set_nodelay(true).ok();
            for (from, to) in [(&near, &far), (&far, &near)] {
                carry(
                    from.try_clone().expect("a descriptor"),
                    to.try_clone().expect("a descriptor"),
                    delay,
                );
            }
        }
    });
    port
}

/// One way. Ends with the connection.
fn carry(mut from: TcpStream, mut to: TcpStream, delay: Duration) {
    let (parts, delayed) = mpsc::channel::<(Instant, Vec<u8>)>();
    thread::spawn(move || {
        let mut bytes = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = from.read(&mut bytes) {
            if parts.send((Instant::now() + delay, bytes[..count].to_vec())).is_err() {
                return;
            }
        }
    });
    thread::spawn(move || {
        for (at, part) in delayed {
            thread::sleep(at.saturating_duration_since(Instant::now()));
            if to.write_all(&part).is_err() {
                break;
            }
        }
        to.shutdown(std::net::Shutdown::Both).ok();
    });
}

/// Steps a second of linear-4.
pub(crate) async fn rate(site: &Site, language: Language, steps: usize, round_trip: u64) -> f64 {
    let place = place(site, Shape::Linear4, round_trip).await;
    4.0 * drain_once(place, language, steps / 4).await
}

/// How many ms an idle system takes until the handler begins, and how many of the round trips lie in that; `nearest` is the same with the shortest.
pub(crate) async fn latency(site: &Site, language: Language, round_trip: u64, nearest: Option<f64>) -> (f64, Vec<Value>) {
    let place = place(site, Shape::Jobs, round_trip).await;
    let crew = place.work(language, 1).await;
    let (began, _) = rounds_at(&place).await;
    crew.stop().await;
    place.leave().await;
    let middle = percentiles(began)[0].as_f64().unwrap_or_default();
    let trips = nearest.map(|nearest| (middle - nearest) / round_trip as f64);
    (middle, vec![json!(middle), json!(trips)])
}
