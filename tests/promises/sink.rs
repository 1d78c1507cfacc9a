//! A server that takes webhooks, or does not.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::watch;

/// What was posted, and how it was answered.
#[derive(Debug, Clone)]
pub(crate) struct Posted {
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: String,
    pub(crate) event: Value,
    pub(crate) taken: bool,
}

impl Posted {
    pub(crate) fn kind(&self) -> &str {
        self.event["type"].as_str().unwrap().trim_start_matches("tasker.")
    }
}

/// How it answers: a status, and headers; None: it never does.
type Answers = dyn Fn(&Value) -> Option<(u16, Vec<(&'static str, &'static str)>)> + Send + Sync;

#[derive(Clone)]
pub(crate) struct Sink {
    pub(crate) url: String,
    posted: Arc<watch::Sender<Vec<Posted>>>,
    answers: Arc<Mutex<Arc<Answers>>>,
}

impl Sink {
    /// Takes everything.
    pub(crate) async fn open() -> Sink {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let sink = Sink {
            url: format!("http://{}/hooks", listener.local_addr().unwrap()),
            posted: Arc::new(watch::Sender::new(Vec::new())),
            answers: Arc::new(Mutex::new(Arc::new(|_: &Value| Some((204, vec![]))))),
        };
        let router = axum::Router::new().fallback(take).with_state(sink.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        sink
    }

    /// From now on it answers so.
    pub(crate) fn answer(&self, answers: impl Fn(&Value) -> Option<(u16, Vec<(&'static str, &'static str)>)> + Send + Sync + 'static) {
        *self.answers.lock().unwrap() = Arc::new(answers);
    }

    /// What it has taken.
    pub(crate) fn taken(&self) -> Vec<Posted> {
        self.posted.borrow().iter().filter(|posted| posted.taken).cloned().collect()
    }

    pub(crate) fn all(&self) -> Vec<Posted> {
        self.posted.borrow().clone()
    }

    /// Waits until what it was sent is so.
    pub(crate) async fn until(&self, enough: impl Fn(&[Posted]) -> bool) -> Vec<Posted> {
        let mut following = self.posted.subscribe();
        let found = following.wait_for(|posted| enough(posted)).await.unwrap().clone();
        found
    }

    /// Waits until it has taken so many.
    pub(crate) async fn until_taken(&self, count: usize) -> Vec<Posted> {
        self.until(|posted| posted.iter().filter(|posted| posted.taken).count() >= count)
            .await;
        self.taken()
    }
}

async fn take(State(sink): State<Sink>, headers: HeaderMap, body: String) -> impl IntoResponse {
    let event: Value = serde_json::from_str(&body).unwrap();
    let answers = sink.answers.lock().unwrap().clone();
    let answer = answers(&event);
    let headers = headers
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
        .collect();
    let taken = answer.as_ref().is_some_and(|(status, _)| (200..300).contains(status));
    sink.posted.send_modify(|posted| {
        posted.push(Posted {
            headers,
            body,
            event,
            taken,
        })
    });
    match answer {
        Some((status, headers)) => {
            let mut response = StatusCode::from_u16(status).unwrap().into_response();
            for (name, value) in headers {
                response.headers_mut().insert(name, value.parse().unwrap());
            }
            response
        }
        None => std::future::pending().await,
    }
}
