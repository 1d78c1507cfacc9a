//! Layers, and what is said of wrong ones.
#![allow(clippy::unwrap_used)]

use serde_json::{json, Value};

use super::distributed::check;
use super::{check_file, Effective, Given, Local};
use crate::error::Result;

const FILE: &str = "
shared:
  connections: 8
  orchestrator: { batch: 50, poll: 2s }
production:
  orchestrator: { batch: 100 }
  worker:
    threads: 5
";

fn local(source: &str, variables: &[(&str, &str)], flags: Value) -> Result<Local> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), source).unwrap();
    let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let given = Given {
        file: Some(file.path().to_owned()),
        flags,
        ..Given::default()
    };
    Local::of(given, variables.collect())
}

fn message(local: Result<Local>) -> String {
    local.map(|_| ()).unwrap_err().to_string()
}

#[test]
fn the_nearest_layer_wins_and_each_value_knows_where_it_comes_from() {
    let variables = [
        ("RAILS_ENV", "production"),
        ("TASKER__ORCHESTRATOR__POLL", "500ms"),
        ("ORCHESTRATOR_ID", "one"),
    ];
    let local = local(FILE, &variables, json!({ "orchestrator": { "queue_target": 7 } })).unwrap();
    let overrides =
        json!({ "worker": { "batch": 9 }, "instances": { "one": { "worker": { "batch": 10 } }, "two": { "worker": { "batch": 11 } } } });
    let effective = local.with(3, &overrides).unwrap();
    let of = |path: &str| {
        let (value, origin) = effective.values()[path].clone();
        (
            value,
            origin
                .rsplit('/')
                .next()
                .unwrap_or_default()
                .split_once(", ")
                .map_or(origin.clone(), |(_, of)| of.to_owned()),
        )
    };
    assert_eq!(of("worker.threads"), (json!(5), "production".into()));
    assert_eq!(of("connections"), (json!(8), "shared".into()));
    assert_eq!(of("orchestrator.batch"), (json!(100), "production".into()));
    assert_eq!(of("orchestrator.poll"), (json!("500ms"), "TASKER__ORCHESTRATOR__POLL".into()));
    assert_eq!(of("orchestrator.queue_target"), (json!(7), "command line".into()));
    assert_eq!(of("worker.batch"), (json!(10), "for one".into()));
    assert_eq!(of("worker.lease"), (json!("30s"), "default".into()));
    assert!(
        !effective.common().contains_key("worker.batch"),
        "what is its own by intention is not compared"
    );
    assert_eq!(local.with(3, &json!({})).unwrap().settings.worker.batch, 500);
}

#[test]
fn everything_that_is_wrong_in_a_file_is_said_at_once_with_its_line_and_what_was_meant() {
    let source = "shared:\n  orchestrator:\n    btach: 5\n    poll: soon\nproduction:\n  worker: { threads: 0 }\n  log: { format: xml }\nworker:\n  threads: 3\n";
    let found = check_file(source);
    let told: Vec<(u64, String)> = found.iter().map(|p| (p.line, p.to_string())).collect();
    assert_eq!(
        told,
        [
            (3, "shared.orchestrator.btach is not known: did you mean batch?".to_owned()),
            (
                4,
                "shared.orchestrator.poll is \"soon\": expected a duration such as 30, \"30s\" or \"1h 30m\", of at most a year".to_owned()
            ),
            (6, "production.worker.threads is 0: expected a whole number, 1 to 10000".to_owned()),
            (7, "production.log.format is \"xml\": expected text or json".to_owned()),
            (
                8,
                "worker is a setting: put it under shared, or under an environment such as production".to_owned()
            ),
            (9, "worker.threads is not known: did you mean traces?".to_owned()),
        ]
    );
    assert_eq!(check_file(FILE), []);
    assert_eq!(check_file(""), []);
    assert_eq!(check_file("shared: [").len(), 1);
    let too_short = check_file("production:\n  worker:\n    lease: 10ms\n");
    assert_eq!((too_short[0].line, too_short.len()), (3, 1));
}

#[test]
fn what_is_wrong_in_the_environment_is_said_by_the_variables_name() {
    let variables = [
        ("TASKER__WORKER__THREDS", "3"),
        ("TASKER__CONNECTIONS", "many"),
        ("TASKER_MEMORY_LIMIT", "-1"),
    ];
    let told = message(local("", &variables, json!({ "worker": { "batch": "x" } })));
    for expected in [
        "TASKER__WORKER__THREDS: worker.threds is not known: did you mean threads?",
        "TASKER__CONNECTIONS: connections is \"many\": expected a whole number, 4 to 1000",
        "TASKER_MEMORY_LIMIT: health.memory_limit is -1: expected a whole number, at least 1",
        "worker.batch is \"x\": expected a whole number, 1 to 10000",
    ] {
        assert!(told.contains(expected), "{told}");
    }
}

#[test]
fn lists_and_durations_are_read_from_the_environment() {
    let variables = [
        ("NAMESPACE", "a, b"),
        ("TASKER_LOG_REDACT", "error,task"),
        ("TASKER__WORKER__LEASE", "90"),
    ];
    let settings = local("", &variables, Value::Null).unwrap().with(0, &json!({})).unwrap().settings;
    assert_eq!(settings.worker.namespaces, ["a", "b"]);
    assert_eq!(settings.log.redact, ["error", "task"]);
    assert_eq!(settings.worker.lease.as_secs(), 90);
}

#[test]
fn a_secret_is_compared_and_not_told() {
    let url = |url| {
        local("", &[("DATABASE_URL", url)], Value::Null)
            .unwrap()
            .with(0, &json!({}))
            .unwrap()
    };
    let (one, other) = (url("postgres://a:secret@b/c"), url("postgres://a:other@b/c"));
    let of = |effective: &Effective, key| effective.report(key)["values"]["database_url"].clone();
    assert_ne!(of(&one, Some("key")), of(&other, Some("key")));
    assert_eq!(of(&one, Some("key")), of(&url("postgres://a:secret@b/c"), Some("key")));
    // Who does not know the key cannot try what it may be.
    assert_ne!(of(&one, Some("key")), of(&one, Some("other")));
    assert_eq!(
        (of(&one, None), &one.values()["database_url"].0),
        (json!("(secret)"), &json!("(secret)"))
    );
    let all = [
        format!("{one:?}"),
        one.report(Some("key")).to_string(),
        json!(one.settings).to_string(),
    ];
    assert!(!all.iter().any(|told| told.contains("secret@")), "{all:?}");
}

#[test]
fn no_error_quotes_what_may_be_a_secret() {
    for (source, said) in [
        ("database_ulr: postgres://a:hunter2@b/c", "database_ulr is something else"),
        ("shared: { database_ulr: 'postgres://a:hunter2@b/c' }", "did you mean database_url?"),
        ("shared: { database_url: [hunter2] }", "shared.database_url is a list"),
        (
            "shared: { orchestrator: { alert_webhook: { token: hunter2 } } }",
            "alert_webhook is a section",
        ),
        (
            "shared: { orchestrator: { alert_webhook: hunter2 } }",
            "alert_webhook is no address",
        ),
        ("shared: { worker: hunter2 }", "shared.worker is something else"),
        ("shared: { connections: 'postgres://a:hunter2@b/c' }", "connections is another text"),
    ] {
        let told: Vec<String> = check_file(source).iter().map(ToString::to_string).collect();
        let told = told.join("; ");
        assert!(told.contains(said) && !told.contains("hunter2"), "{source}: {told}");
    }
    let flags = json!({ "coordinator": "etcd://me:hunter2@one:2379,two:2379/shop" });
    let effective = local("", &[], flags).unwrap().with(0, &json!({})).unwrap();
    assert_eq!(effective.values()["coordinator"].0, "etcd://…@one:2379,two:2379/shop");
    let wrong = check(&json!({ "orchestrator": { "alert_webhook": "https://hooks/hunter2" } }))
        .unwrap_err()
        .to_string();
    assert!(wrong.contains("is a secret") && !wrong.contains("hunter2"), "{wrong}");
}
