//! The API is what its OpenAPI document says: schemathesis (<https://schemathesis.io>) asks each route with what the document allows, and with what it
//! does not, and looks at every answer.

use std::process::Command;

use serde_json::{json, Value};
use tasker::api::ApiConfig;
use tasker::engine::tokens::Role;

use super::api::{crew, leave, Asked, ORDER};
use super::world::World;

/// All but that what the document allows is accepted: there are rules that no schema can say.
const CHECKS: &str =
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,response_schema_conformance,\
negative_data_rejection,missing_required_header,unsupported_method,use_after_free,ensure_resource_availability,ignored_auth";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_is_as_the_openapi_document_has_it() {
    World::with(async |world| {
        world.register(ORDER).await;
        let crew = crew(world).await;
        let config = ApiConfig {
            trust_loopback: false,
            rate: 10_000,
            ..ApiConfig::default()
        };
        let api = Asked::with_config(world, &config).await;
        let admin = api.by(world, Role::Admin, &[]).await;
        let created = admin.post(
            "/tasks",
            json!({ "template": "here/order", "tasks": [{ "input": { "card": "bad" } }] }),
        );
        let task = created.body["tasks"][0]["id"].as_str().expect("a task").to_owned();
        assert_eq!(admin.get(&format!("/tasks/{task}/wait")).body["state"], "blocked");
        let nightly = json!({ "template": "here/order", "definition": { "cron": "0 3 * * *" } });
        admin.put("/schedules/nightly", nightly);
        let letter: Value = admin.get("/dead-letters").body["items"][0]["id"].clone();
        let number = letter.as_str().and_then(|id| id.split_once('/')).expect("an id").1.to_owned();

        let folder = tempfile::tempdir().expect("a folder");
        let settings = format!(
            "[parameters]\n\"path.id\" = \"{task}\"\n\"path.step\" = \"check\"\n\"path.namespace\" = \"here\"\n\"path.number\" = {number}\n
[[operations]]\ninclude-path-regex = \"/schedules/\"\nparameters = {{ \"path.name\" = \"nightly\" }}\n
[[operations]]\ninclude-path-regex = \"/templates/\"\nparameters = {{ \"path.name\" = \"order\" }}\n"
        );
        std::fs::write(folder.path().join("schemathesis.toml"), settings).expect("writes");
        let mut schemathesis = Command::new(std::env::var_os("SCHEMATHESIS").unwrap_or_else(|| "schemathesis".into()));
        schemathesis
            .args(["--no-color", "run", &format!("http://{}/api/v1/openapi.json", admin.address())])
            .args(["--checks", CHECKS, "--max-examples", "10", "--generation-deterministic"])
            .args([
                "--header",
                &format!("Authorization: Bearer {}", admin.token()),
                "--request-timeout",
                "60",
                "--max-failures",
                "20",
            ])
            .current_dir(folder.path());
        let ran = tokio::task::spawn_blocking(move || schemathesis.output()).await.expect("runs");
        let ran = ran.expect("schemathesis runs: bin/test installs it");
        assert!(
            ran.status.success(),
            "{}{}",
            String::from_utf8_lossy(&ran.stdout),
            String::from_utf8_lossy(&ran.stderr)
        );
        leave(crew).await;
    })
    .await;
}
