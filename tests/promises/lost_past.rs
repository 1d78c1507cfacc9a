//! A failover without a synchronous standby, or a restore, loses the last of what was committed. Numbers that were given out there are given out again, and
//! whoever still has them from before is told apart.

use serde_json::json;
use tasker::config::distributed::{change, set};
use tasker::engine::configuration::DatabaseCoordinator;
use tasker::engine::submit::{NewTask, Submitter};
use uuid::Uuid;

use crate::command_line::tasker;
use crate::configuration::author;
use crate::health::Serve;
use crate::world::{Leased, World};

const ONE: &str = "name: one\nnamespace: here\nsteps:\n  - { name: only, handler: H }\n";

/// A step that the database has forgotten since it was leased, and another one under the same numbers.
async fn lose(world: &World) -> (Leased, Leased) {
    world.register(ONE).await;
    world.submit("one", json!({})).await;
    world.claim().await;
    let lost = world.lease("here_queue", 1).await.remove(0);
    world
        .run("DELETE FROM tasker.tasks; DELETE FROM tasker.steps; TRUNCATE pgmq.q_here_queue RESTART IDENTITY; UPDATE tasker.marks SET message = 0")
        .await;
    world.submit("one", json!({})).await;
    world.claim().await;
    let now = world.lease("here_queue", 1).await.remove(0);
    assert_eq!((now.msg_id, now.fence, now.step), (lost.msg_id, lost.fence, lost.step));
    assert_ne!(now.task_id, lost.task_id);
    (lost, now)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_by_numbers_that_were_given_out_again_counts_for_nobody_and_takes_nobodys_lease() {
    World::with(async |world| {
        let (lost, now) = lose(world).await;
        assert!(world.complete(std::slice::from_ref(&lost), "1").await.is_empty());
        assert!(!world.fail(&lost, "lost", true, None).await);
        assert!(!world.fail(&lost, "lost", false, None).await);
        let many = format!(
            "'here_queue', ARRAY[{}::bigint], ARRAY[{}], ARRAY['{}'::uuid], ARRAY[{}::smallint]",
            lost.msg_id, lost.fence, lost.task_id, lost.step
        );
        let one = format!(
            "'here_queue', {}, {}, '{}', {}::smallint",
            lost.msg_id, lost.fence, lost.task_id, lost.step
        );
        for (what, counted) in [
            (
                format!("count(*) FROM tasker.extend_leases({many}, '1 hour') WHERE NOT cancelled"),
                1,
            ),
            (format!("tasker.release_steps({many})::bigint"), 0),
            (
                format!("count(*) FROM tasker.record_progress({many}, ARRAY['1'::jsonb], ARRAY['1'::jsonb])"),
                1,
            ),
            (format!("tasker.begin_suspect({one})::int::bigint"), 0),
            (format!("tasker.remember({one}, 'a', '1')::int::bigint"), 0),
            (format!("tasker.await_signal({one}, 'a', 'b', NULL, NULL)::int::bigint"), 0),
            (format!("tasker.publish_value({one}, 'a', '1')::int::bigint"), 0),
            (format!("tasker.fail_barely({one}, 'unreadable', 'it is')::int::bigint"), 0),
        ] {
            assert_eq!(world.count(&format!("SELECT {what}")).await, counted, "{what}");
        }
        world
            .run(&format!(
                "SELECT tasker.decline_steps('here_queue', 7, {})",
                many.split_once(", ").unwrap().1
            ))
            .await;
        let untouched = world
            .count("SELECT count(*) FROM pgmq.q_here_queue WHERE vt > clock_timestamp() + interval '50 minutes' AND read_ct = 1")
            .await;
        assert_eq!(untouched, 1);
        let task = world.task(now.task_id).await;
        assert_eq!(
            (&task["steps"][0]["state"], &task["steps"][0]["progress"]),
            (&json!("in_progress"), &json!(null))
        );
        assert_eq!(world.complete(&[now], "2").await, [lost.msg_id]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_whose_id_was_given_to_another_is_a_member_no_more() {
    World::with(async |world| {
        let (before, now) = (Uuid::new_v4(), Uuid::new_v4());
        let join = async |proof: Uuid| {
            world
                .count(&format!(
                    "SELECT tasker.join_members('worker', 'host:1', '1', '{{here}}', '1 hour', '{proof}')::bigint"
                ))
                .await
        };
        let id = join(before).await;
        world
            .run(&format!(
                "DELETE FROM tasker.members WHERE id = {id}; ALTER TABLE tasker.members ALTER id RESTART WITH {id}"
            ))
            .await;
        assert_eq!(join(now).await, id);
        let is_held = async |proof: Uuid| {
            let sql = format!("SELECT held::int::bigint FROM tasker.renew_membership({id}, '1 hour', p_proof => '{proof}')");
            world.count(&sql).await == 1
        };
        assert!(!is_held(before).await && is_held(now).await);
        world.run(&format!("SELECT tasker.leave_members({id}, '{before}')")).await;
        assert!(is_held(now).await);
        world.run(&format!("SELECT tasker.leave_members({id}, '{now}')")).await;
        assert!(!is_held(now).await);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_of_a_template_that_was_lost_is_not_taken_for_another_under_its_number() {
    World::with(async |world| {
        let strict = format!("{ONE}input_schema: {{ type: object, required: [card] }}\n");
        let registered = world.register(&strict).await;
        let submitter = Submitter::new(world.db.clone());
        let task = || NewTask {
            input: json!({ "card": 1 }).into(),
            ..NewTask::default()
        };
        submitter.submit("here/one", Some(&registered.version), &[task()]).await.unwrap();
        submitter.submit("here/one", None, &[task()]).await.unwrap();
        world
            .run("TRUNCATE tasker.tasks, tasker.steps; DELETE FROM tasker.template_steps; UPDATE tasker.templates SET current_version_id = NULL; \
                  DELETE FROM tasker.template_versions; ALTER TABLE tasker.template_versions ALTER id RESTART")
            .await;
        let other = world.register(&format!("{ONE}input_schema: {{ type: object, required: [iban] }}\n")).await;
        assert_eq!(other.version, registered.version);
        let lost = submitter.submit("here/one", Some(&registered.version), &[task()]).await.unwrap_err();
        assert!(lost.to_string().contains("is not what it was"), "{lost}");
        let unchecked = submitter.submit("here/one", None, &[task()]).await.unwrap_err();
        assert!(unchecked.to_string().contains("iban"), "{unchecked}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_of_the_configuration_that_was_lost_is_not_taken_for_another_under_its_number() {
    World::with(async |world| {
        let _serve = Serve::start(&world.url, &[], &[("TASKER__ORCHESTRATOR__LEASE", "3s")]);
        let in_force = async |batch: i64| {
            let values = "report -> 'configuration' -> 'values' ->> 'orchestrator.batch'";
            world
                .until_true(&format!("EXISTS (SELECT FROM tasker.members WHERE {values} = '{batch}')"))
                .await;
        };
        change(&DatabaseCoordinator::new(&world.db), &author(), |overrides| {
            set(overrides, &["orchestrator", "batch"], json!(50));
            Ok(())
        })
        .await
        .unwrap();
        in_force(50).await;
        world
            .run(r#"UPDATE tasker.configurations SET overrides = '{"orchestrator": {"batch": 60}}' WHERE version = 1"#)
            .await;
        in_force(60).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_go_together_is_found_by_a_check_and_nothing_is_changed() {
    World::with(async |world| {
        world.register(ONE).await;
        let said = || {
            let output = tasker(&world.url, &["check", "--json"]);
            let faults: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
            (output.status.code(), faults)
        };
        let [one, two, three] = [1, 2, 3].map(|_| world.submit("one", json!({})));
        let (one, _two, three) = (one.await, two.await, three.await);
        assert_eq!(world.claim().await, 3);
        assert_eq!(said(), (Some(0), vec![]));

        world
            .run(&format!(
                "DELETE FROM pgmq.q_here_queue q USING tasker.steps s WHERE s.task_id = '{one}' AND q.msg_id = s.msg_id;
                 UPDATE tasker.steps SET state = 'complete' WHERE task_id = '{three}';
                 SELECT setval('pgmq.q_here_queue_msg_id_seq', 1)"
            ))
            .await;
        let last = world.count("SELECT max(msg_id) FROM pgmq.q_here_queue").await;
        let of_task = |what: &str, task: Uuid, step: Option<&str>| json!({ "what": what, "task": task, "step": step, "queue": null, "message": null });
        let of_queue = |what: &str| json!({ "what": what, "task": null, "step": null, "queue": "here_queue", "message": last });
        let expected = vec![
            of_task("its message is not there", one, Some("only")),
            of_task("it stands still", three, None),
            of_queue("it stands for no step"),
            of_queue("numbers up to its own will be given out again"),
        ];
        assert_eq!(said(), (Some(1), expected.clone()));
        assert_eq!(said(), (Some(1), expected));
    })
    .await;
}
