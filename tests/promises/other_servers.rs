//! Servers and databases that are not what they should be, or somebody else's: each is told apart, said clearly, and left alone.

use std::fs;
use std::os::unix::fs::{chown, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, Executor, PgConnection};
use tasker::engine::read::{wait_for_end, INSTALLATION};
use tasker::engine::submit::{NewTask, Submitter};
use tasker::worker::{Handlers, Worker, WorkerConfig};
use tasker::{Db, Error, Template};
use tempfile::TempDir;

use crate::health::{own_postgres, Serve};
use crate::world::World;

const ONE: &str = "name: one\nnamespace: here\nsteps:\n  - { name: only, handler: H }\n";

/// Runs with the URL of another database of the same server, made so.
async fn with_database(world: &World, how: &str, test: impl AsyncFnOnce(&str)) {
    let name = format!("tasker_test_{}", uuid::Uuid::new_v4().simple());
    let options: PgConnectOptions = world.url.parse().unwrap();
    let mut admin = options.clone().database("postgres").connect().await.unwrap();
    admin.execute(&*format!("CREATE DATABASE {name} {how}")).await.unwrap();
    test(options.database(&name).to_url_lossy().as_str()).await;
    admin.execute(&*format!("DROP DATABASE {name} WITH (FORCE)")).await.unwrap();
    admin.close().await.unwrap();
}

async fn refused(url: &str) -> Error {
    Db::connect(url, 4).await.map(drop).unwrap_err()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_url_says_nothing_that_is_passed_over() {
    World::with(async |world| {
        let options: PgConnectOptions = world.url.parse().unwrap();
        let url = options.to_url_lossy().to_string();
        let place = url.split('?').next().unwrap();
        for (parameters, expected) in [
            ("sslmodes=disable", "did you mean sslmode?"),
            ("keepalives=1", "the parameter keepalives is unknown"),
            ("target_session_attrs=prefer-standby", "expected read-write or primary"),
            ("connect_timeout=soon", "expected whole seconds"),
            ("host=one,two&port=1,2,3", "not as many of each"),
        ] {
            let error = refused(&format!("{place}?{parameters}")).await;
            assert!(
                matches!(error, Error::Config(_)) && error.to_string().contains(expected),
                "{parameters}: {error}"
            );
        }
        let error = refused("postgres://127.0.0.1:1,127.0.0.1:2/app").await;
        assert!(error.to_string().contains("none of them takes writes: 127.0.0.1:1: "), "{error}");
        let honoured = format!("{place}?connect_timeout=5&target_session_attrs=read-write&sslmode=disable");
        Db::connect(&honoured, 4).await.unwrap().close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_in_another_encoding_is_refused_before_anything_is_done() {
    World::with(async |world| {
        for encoding in ["LATIN1", "SQL_ASCII"] {
            let how = format!("ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0");
            with_database(world, &how, async |url| {
                let error = refused(url).await;
                assert!(matches!(error, Error::Config(_)) && error.to_string().contains(encoding), "{error}");
                assert!(error.to_string().contains("ENCODING 'UTF8'"), "{error}");
            })
            .await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_database_sets_for_its_sessions_does_not_matter_to_ours() {
    World::with(async |world| {
        with_database(world, "", async |url| {
            let mut admin = PgConnection::connect(url).await.unwrap();
            for setting in [
                "standard_conforming_strings = off",
                "default_transaction_isolation = 'serializable'",
            ] {
                let sql = format!(
                    "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET {}', current_database()); END $$",
                    setting.replace('\'', "''")
                );
                admin.execute(&*sql).await.unwrap();
            }
            let db = Db::connect(url, 6).await.unwrap();
            db.migrate().await.unwrap();
            tasker::engine::register::register(&db, &Template::parse(ONE, "one.yml").unwrap())
                .await
                .unwrap();
            Submitter::new(db.clone()).submit("one", None, &[NewTask::default()]).await.unwrap();
            db.close().await;
            admin.close().await.unwrap();
        })
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_database_is_refused_and_one_that_becomes_so_makes_processes_unready() {
    World::with(async |world| {
        world.register(ONE).await;
        let serve = Serve::start(&world.url, &[], &[]);
        serve.until("/ready", |status, _| status == 200).await;
        let set = async |on: &str| {
            let sql = format!(
                "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = {on}', current_database()); END $$"
            );
            world.run(&format!("SET default_transaction_read_only = off; {sql}")).await;
        };
        let end_sessions = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                            WHERE datname = current_database() AND application_name = 'tasker'";
        set("on").await;
        let error = refused(&world.url).await;
        assert!(
            matches!(error, Error::Unreachable { .. }) && error.to_string().contains("read-only"),
            "{error}"
        );
        world.count(end_sessions).await;
        let said = serve.until("/ready", |status, _| status == 503).await;
        let said = serve.until("/ready", |_, body| body.to_string().contains("read-only")).await["failed"].to_string() + &said.to_string();
        assert!(said.contains("cannot be worked with") || said.contains("read-only"), "{said}");
        set("off").await;
        world.count(end_sessions).await;
        serve.until("/ready", |status, _| status == 200).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_a_standby_for_a_while_is_told_and_left_and_work_goes_on_when_it_is_the_primary_again() {
    let folder = TempDir::new().unwrap();
    let (postgres, url) = own_postgres(&folder).await;
    let db = Db::connect(&url, 8).await.unwrap();
    tasker::engine::register::register(&db, &Template::parse(ONE, "one.yml").unwrap())
        .await
        .unwrap();
    let serve = Serve::start(&url, &[], &[]);
    let config = WorkerConfig {
        namespaces: vec!["here".into()],
        ..WorkerConfig::default()
    };
    let worker = Arc::new(Worker::start(&db, config).await.unwrap());
    worker.handle_with(Handlers::default().with("H", |_| async { Ok(json!(1)) }));
    let submitter = Submitter::new(db.clone());
    let first = submitter.submit("one", None, &[NewTask::default()]).await.unwrap()[0].id;
    assert_eq!(wait_for_end(&db, first, None).await.unwrap(), "complete");

    let signal = postgres.data().join("standby.signal");
    fs::write(&signal, "").unwrap();
    let owner = fs::metadata(postgres.data()).unwrap();
    chown(&signal, Some(owner.uid()), Some(owner.gid())).unwrap();
    postgres.crash().unwrap();
    let said = serve
        .until("/ready", |status, body| status == 503 && body.to_string().contains("standby"))
        .await;
    assert!(said["failed"][0].as_str().unwrap().contains("expected the primary"), "{said}");
    assert!(!worker.health().ready().await.ready);
    let error = refused(&url).await;
    assert!(
        matches!(error, Error::Unreachable { .. }) && error.to_string().contains("standby"),
        "{error}"
    );

    fs::remove_file(&signal).unwrap();
    postgres.crash().unwrap();
    serve.until("/ready", |status, _| status == 200).await;
    let second = loop {
        match submitter.submit("one", None, &[NewTask::default()]).await {
            Ok(submitted) => break submitted[0].id,
            Err(error) => assert!(matches!(error, Error::Database(_)), "{error}"),
        }
    };
    assert_eq!(wait_for_end(&db, second, None).await.unwrap(), "complete");
    worker.shutdown(Duration::from_secs(5)).await;
    db.close().await;
    drop(serve);
    postgres.stop().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_a_database_is_another_installation() {
    World::with(async |world| {
        let which = async |url: &str| -> String {
            let mut connection = PgConnection::connect(url).await.unwrap();
            let which = sqlx::query_scalar(INSTALLATION).fetch_one(&mut connection).await.unwrap();
            connection.close().await.unwrap();
            which
        };
        // A database is copied while nobody is connected to it.
        with_database(world, "", async |url| {
            let db = Db::connect(url, 4).await.unwrap();
            db.migrate().await.unwrap();
            db.close().await;
            let own = which(url).await;
            let name = url.rsplit('/').next().unwrap().split('?').next().unwrap();
            let options: PgConnectOptions = url.parse().unwrap();
            let mut admin = options.database("postgres").connect().await.unwrap();
            while sqlx::query_scalar::<_, i64>("SELECT count(*) FROM pg_stat_activity WHERE datname = $1")
                .bind(name)
                .fetch_one(&mut admin)
                .await
                .unwrap()
                > 0
            {}
            admin.close().await.unwrap();
            with_database(world, &format!("TEMPLATE {name}"), async |url| {
                let theirs = which(url).await;
                assert_ne!(own, theirs);
                assert_eq!(own.split('/').next(), theirs.split('/').next(), "it is a copy");
            })
            .await;
        })
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_without_rights_is_told_so_and_may_migrate_what_is_up_to_date() {
    World::with(async |world| {
        world.register(ONE).await;
        let role = format!("tasker_test_{}", uuid::Uuid::new_v4().simple());
        world
            .run(&format!(
                "CREATE ROLE {role} LOGIN PASSWORD 'secret';
                 GRANT USAGE ON SCHEMA tasker, pgmq TO {role};
                 GRANT ALL ON ALL TABLES IN SCHEMA tasker, pgmq TO {role};
                 GRANT ALL ON ALL SEQUENCES IN SCHEMA tasker, pgmq TO {role}"
            ))
            .await;
        let options: PgConnectOptions = world.url.parse().unwrap();
        let url = options.username(&role).password("secret").to_url_lossy();
        let db = Db::connect(url.as_str(), 4).await.unwrap();
        db.migrate().await.expect("it is up to date");
        let elsewhere = Template::parse(&ONE.replace("here", "elsewhere"), "one.yml").unwrap();
        let error = tasker::engine::register::register(&db, &elsewhere).await.unwrap_err();
        assert!(matches!(error, Error::Forbidden(_)), "{error}");
        assert!(
            error.to_string().contains("permission denied for function") && error.to_string().contains("docs/security.md"),
            "{error}"
        );
        assert_eq!(world.count("SELECT count(*) FROM tasker.namespaces").await, 1);
        db.close().await;

        // Of a database that is not migrated, too.
        with_database(world, "", async |url| {
            let options: PgConnectOptions = url.parse().unwrap();
            let db = Db::connect(options.username(&role).password("secret").to_url_lossy().as_str(), 4)
                .await
                .unwrap();
            let error = db.migrate().await.unwrap_err();
            assert!(error.to_string().contains("permission denied"), "{error}");
            db.close().await;
        })
        .await;
        world.run(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
    })
    .await;
}

/// A key and a certificate of that name in a folder, made by openssl with these arguments.
fn certificate(folder: &Path, name: &str, arguments: &str) -> PathBuf {
    let (key, certificate) = (folder.join(format!("{name}.key")), folder.join(format!("{name}.crt")));
    let (program, rest) = match arguments.strip_prefix("in 2020 ") {
        Some(rest) => ("faketime", format!("2020-01-01 openssl req {rest}")),
        None => ("openssl", format!("req {arguments}")),
    };
    // faketime fails where one that was killed had the same process id, and left its semaphore.
    for attempt in 1.. {
        let made = Command::new(program)
            .args(rest.split_whitespace())
            .args(["-newkey", "rsa:2048", "-nodes", "-keyout"])
            .args([key.as_os_str(), "-out".as_ref(), certificate.as_os_str()])
            .output()
            .unwrap();
        if made.status.success() {
            break;
        }
        assert!(attempt < 10, "{}", String::from_utf8_lossy(&made.stderr));
    }
    certificate
}

#[tokio::test(flavor = "multi_thread")]
async fn a_servers_certificate_is_accepted_where_psql_accepts_it_and_nowhere_else() {
    let folder = TempDir::new().unwrap();
    let (postgres, url) = own_postgres(&folder).await;
    let owner = fs::metadata(postgres.data()).unwrap();
    let mut admin = PgConnection::connect(&url).await.unwrap();
    let files = TempDir::new().unwrap();
    let files = files.path();
    let of_time = "-x509 -days 3650 -subj";
    let authority = certificate(files, "authority", &format!("{of_time} /CN=authority"));
    let signed = format!(
        "{of_time} /CN=localhost -CA {0}/authority.crt -CAkey {0}/authority.key",
        files.display()
    );
    let mut answers = Vec::new();
    for (name, arguments, root, mode) in [
        ("self-signed", format!("{of_time} /CN=localhost"), None, "verify-full"),
        (
            "named",
            format!("{of_time} /CN=other -addext subjectAltName=DNS:localhost"),
            None,
            "verify-full",
        ),
        ("any-name", format!("{of_time} /CN=*.localhost"), None, "verify-full"),
        ("other-name", format!("{of_time} /CN=other"), None, "verify-full"),
        ("other-name-of-no-matter", format!("{of_time} /CN=other"), None, "verify-ca"),
        (
            "named-otherwise",
            format!("{of_time} /CN=localhost -addext subjectAltName=DNS:other"),
            None,
            "verify-full",
        ),
        ("old", "in 2020 -x509 -days 30 -subj /CN=localhost".into(), None, "verify-full"),
        ("unknown", format!("{of_time} /CN=localhost"), Some(&authority), "verify-full"),
        ("unknown-to-ca", format!("{of_time} /CN=localhost"), Some(&authority), "verify-ca"),
        (
            "signed",
            signed.clone() + " -addext basicConstraints=CA:FALSE",
            Some(&authority),
            "verify-full",
        ),
        ("signed-and-authority", signed, Some(&authority), "verify-full"),
    ] {
        let made = certificate(files, name, &arguments);
        for (setting, file) in [("ssl_cert_file", &made), ("ssl_key_file", &made.with_extension("key"))] {
            let copy = postgres.data().join(file.file_name().unwrap());
            fs::copy(file, &copy).unwrap();
            fs::set_permissions(&copy, fs::Permissions::from_mode(0o600)).unwrap();
            chown(&copy, Some(owner.uid()), Some(owner.gid())).unwrap();
            admin
                .execute(&*format!("ALTER SYSTEM SET {setting} = '{}'", copy.display()))
                .await
                .unwrap();
        }
        admin.execute("ALTER SYSTEM SET ssl = on").await.unwrap();
        admin.execute("SELECT pg_reload_conf()").await.unwrap();

        let options: PgConnectOptions = url.parse().unwrap();
        let place = options.host("localhost").to_url_lossy();
        let place = place.as_str().split('?').next().unwrap();
        let secure = format!("{place}?sslmode={mode}&sslrootcert={}", root.unwrap_or(&made).display());
        // A reload takes effect when the server comes to it.
        let psql = loop {
            let answer = Command::new(postgres.program("psql"))
                .args([&secure, "-Atc", "SELECT current_setting('ssl_cert_file')"])
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&answer.stdout).into_owned() + &String::from_utf8_lossy(&answer.stderr);
            let now: String = sqlx::query_scalar("SHOW ssl_cert_file")
                .fetch_one(&mut PgConnection::connect(&url).await.unwrap())
                .await
                .unwrap();
            if now.ends_with(&format!("/{name}.crt")) && !said.contains("does not support SSL") {
                break answer.status.success();
            }
        };
        let ours = match Db::connect(&secure, 4).await {
            Ok(db) => {
                db.migrate().await.unwrap();
                let encrypted: bool = sqlx::query_scalar(
                    "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name = 'tasker'",
                )
                .fetch_one(&mut admin)
                .await
                .unwrap();
                assert!(encrypted, "{name}");
                db.close().await;
                true
            }
            Err(error) => {
                assert!(error.to_string().contains("certificate"), "{name}: {error}");
                false
            }
        };
        // One that may sign others, and has been signed by another, is the one that we are stricter about.
        assert_eq!(ours, psql && name != "signed-and-authority", "{name}");
        answers.push((name, ours));
    }
    let refused: Vec<_> = answers.iter().filter(|(_, accepted)| !accepted).map(|(name, _)| *name).collect();
    assert_eq!(
        refused,
        [
            "any-name",
            "other-name",
            "named-otherwise",
            "old",
            "unknown",
            "unknown-to-ca",
            "signed-and-authority"
        ]
    );
    admin.close().await.unwrap();
    postgres.stop().unwrap();
}
