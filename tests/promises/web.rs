//! The dashboard where no browser is needed to see it: many viewers, a database that is away. The pages themselves are in spec/web_spec.rb.

use std::time::Duration;

use futures::future::join_all;
use serde_json::json;
use tasker::api::ApiConfig;
use tasker::engine::cancel::cancel_tasks;
use tasker::engine::register::register;
use tasker::engine::submit::{NewTask, Submitter};
use tasker::{Db, Template};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use uuid::Uuid;

use super::api::Asked;
use super::health::{own_postgres, Serve};
use super::world::World;

const JOB: &str = "
name: job
namespace: here
steps:
  - { name: a, handler: H }
  - { name: b, handler: H, depends_on: [a] }
";

/// Somebody who looks at a task.
struct Viewer {
    connection: TcpStream,
    seen: String,
}

impl Viewer {
    async fn of(address: &str, task: &str) -> Viewer {
        let mut connection = TcpStream::connect(address).await.unwrap();
        let request = format!("GET /tasks/{task}/live HTTP/1.1\r\nhost: {address}\r\naccept: text/event-stream\r\n\r\n");
        connection.write_all(request.as_bytes()).await.unwrap();
        let seen = String::new();
        Viewer { connection, seen }
    }

    /// Until that was sent.
    async fn until(&mut self, expected: &str) {
        let mut bytes = vec![0; 1 << 16];
        let reading = async {
            while !self.seen.contains(expected) {
                let read = self.connection.read(&mut bytes).await.unwrap();
                assert!(read > 0, "the stream has ended: {}", self.seen);
                self.seen.push_str(&String::from_utf8_lossy(&bytes[..read]));
            }
        };
        tokio::time::timeout(Duration::from_secs(120), reading).await.expect(expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_who_look_at_a_task_cost_one_reader() {
    tasker::http::allow_many_connections();
    World::with(async |world| {
        world.register(JOB).await;
        let api = Asked::open(world, true).await;
        let task = world.submit("job", json!({})).await.to_string();
        world.claim().await;
        let mut viewers = join_all((0..1_000).map(|_| Viewer::of(api.address(), &task))).await;
        join_all(viewers.iter_mut().map(|viewer| viewer.until("enqueued"))).await;

        // Of each content once, since each is read together with them.
        let reads = "SELECT coalesce(idx_scan, 0) + coalesce(seq_scan, 0) FROM pg_stat_user_tables WHERE relname = 'task_values'";
        let before = world.count(reads).await;
        for _ in 0..2 {
            let leased = world.lease("here_queue", 1).await;
            world.complete(&leased, "{}").await;
        }
        join_all(viewers.iter_mut().map(|viewer| viewer.until("event: ended"))).await;
        drop(viewers);
        let reads = world.count(reads).await - before;
        assert!(reads < 500, "a thousand viewers had {reads} reads made");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_says_that_the_database_is_away_and_comes_back_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let (postgres, url) = own_postgres(&folder).await;
    let db = Db::connect(&url, 4).await.unwrap();
    register(&db, &Template::parse(JOB, "job.yml").unwrap()).await.unwrap();
    let created = Submitter::new(db.clone())
        .submit("job", None, &[NewTask::default(), NewTask::default()])
        .await;
    let tasks: Vec<Uuid> = created.unwrap().iter().map(|task| task.id).collect();

    let serve = Serve::start(&url, &[], &[]);
    let ask = |path: &str| {
        let agent = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
        let mut answer = agent.get(format!("http://{}{path}", serve.api())).call().unwrap();
        (answer.status().as_u16(), answer.body_mut().read_to_string().unwrap())
    };
    let mut viewers = Vec::new();
    for task in &tasks {
        let mut viewer = Viewer::of(serve.api(), &task.to_string()).await;
        viewer.until("has no worker, and never had one").await;
        viewers.push(viewer);
    }
    postgres.crash().unwrap();
    while ask("/tasks").0 != 200 {}
    while cancel_tasks(&db, &tasks[..1]).await.is_err() {}
    viewers[0].until("event: ended").await;

    postgres.stop().unwrap();
    viewers[1].until("The page goes on by itself").await;
    let (status, said) = ask("/tasks");
    assert_eq!(status, 503);
    assert!(said.contains("<h1>Away for now</h1>") && !said.contains("5432"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_is_created_within_a_trace_is_a_part_of_it_and_its_page_leads_there() {
    World::with(async |world| {
        world.register(JOB).await;
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        let create = |api: &Asked| {
            let headers = [
                ("content-type", "application/json"),
                ("traceparent", &*format!("00-{trace}-00f067aa0ba902b7-01")),
            ];
            let created = api.send("POST /tasks", &headers, Some(r#"{ "template": "job", "tasks": [{}] }"#));
            created.body["tasks"][0]["id"].as_str().unwrap().to_owned()
        };
        let config = ApiConfig {
            trace_url: Some("https://traces.example/{trace_id}?more".into()),
            ..ApiConfig::default()
        };
        let api = Asked::with_config(world, &config).await;
        let page = api.page(&format!("/tasks/{}", create(&api)));
        assert!(page.contains(&format!("href=\"https://traces.example/{trace}?more\"")), "{page}");
        let api = Asked::open(world, true).await;
        let page = api.page(&format!("/tasks/{}", create(&api)));
        assert!(page.contains(&format!("<code>{trace}</code>")), "{page}");
    })
    .await;
}
