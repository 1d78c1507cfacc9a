-- Roles: who may do what, where not everybody is the owner of this schema. Each right is to call a function, which runs as the owner, and finds
-- nothing but what PostgreSQL has and what it names with its schema; nobody else touches a row. docs/security.md has what each role can do.

-- What each role may call.
CREATE FUNCTION tasker.rights() RETURNS TABLE (role text, function text)
LANGUAGE sql IMMUTABLE BEGIN ATOMIC
    SELECT r.role, f.name FROM (VALUES
        -- creates tasks, sends signals to them, and learns what becomes of them; reads no payload
        ('tasker_submit', '{create_task, create_tasks, find_template, input_schema, list_moves, send_signal, shard, signal_schemas, task_states, unreachable_queues, which_installation}'::text[]),
        -- reads everything
        ('tasker_read', '{fleet, fleet_namespace, fleet_namespaces, group_dead_letters, list_changes, list_tokens, lettered_namespaces, list_bulk_actions, read_facts, read_minutes, list_dead_letter_actions, list_dead_letters, list_limits, list_moves, list_pauses,
                          list_namespaces, list_schedules, list_signals, list_subscriptions, list_tasks, list_templates, list_template_versions, list_waits, find_faults, find_queue_faults, find_tasks, read_values, notifications_are_stuck, pull_events, read_children, read_family, read_results, read_steps, read_task, shard, task_states,
                          unreachable_queues, which_installation}'),
        -- runs steps, of all namespaces or (tasker_worker_of_<namespace>) of one
        ('tasker_worker', '{answer_unhandled, await_signal, ask_unhandled, begin_suspect, complete_steps, decline_steps, ensure_namespaces,
                            extend_leases, fail_barely, fail_steps, find_template, free_held_steps, give_up_unreadable, join_members, lease_holders,
                            lease_steps, leave_members, list_moves, names_before, notifications_are_stuck, publish_value, read_children, read_leased, recall, read_results, record_progress, register_template, release_steps, remember, renew_membership, shard, unreachable_queues,
                            which_installation}'),
        -- what orchestrators and operators do beside what the others may
        ('tasker_operate', '{alert_delivered, alerting_namespaces, begin_due_tasks, cancel_tasks, end_sleeps, change_configuration, check_alerts, children_due, claim_tasks,
                             damaged_namespaces, delete_dead_letters, delete_schedule, due_schedules, fire_schedule, forget_ticks, pause, pause_schedule, pause_tasks, prioritize_tasks, put_schedule, put_schedules, schedules_due, trigger_schedule, enqueue_due_retries, expire_members, expire_tasks, expired_dead_letters, find_broken_queues, find_dead_letters,
                             find_token, advance_bulk_action, begin_bulk_action, forget_bulk_actions, stop_bulk_action, take_bulk_action, begin_change, end_change, create_token, revoke_token, fork_task, forget_activity, forget_changes, forget_letterless, forget_limits, forget_members, forget_pauses, forget_signals, forget_tasks, forget_uniques, grant_permits, input_schemas, match_signals, measure_pressure,
                             move_fan_outs, move_marks, note_traffic, reconcile, refuse_children, repair_queue, replay_dead_letters, reset_breakers, restore_queue, resume, resume_tasks,
                             settle_dead_letters, signals_due, take_alert, tally_children, try_broken_queues, unchecked_inputs, wake_expired_leases,
                             announce_move, close_namespaces, drop_moved_schedules, end_move, export_moved_keys, export_pauses, export_schedules, export_uniques, export_versions, find_ties, import_keys,
                             import_pause, import_schedule, import_uniques, import_version, moved_unfinished, note_uniques, open_namespaces, open_transactions, read_uniques, receive_namespaces, walk_tasks,
                             advance_delivery, delete_subscription, forget_events, hold_deliveries, order_events, pause_subscription, put_subscription, read_events, release_delivery, replay_subscription,
                             rotate_secret, unwatch, unwatched, watch}')
    ) AS r(role, functions), unnest(r.functions) AS f(name);
END;

-- Makes the roles, and one for the workers of each of these namespaces, and grants them their rights; again, what is there already stays as it is.
-- Roles belong to the whole server, and cannot log in themselves: they are granted to those that do. Returns their names.
CREATE FUNCTION tasker.make_roles(p_namespaces text[] DEFAULT '{}') RETURNS SETOF text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_role     text;
    v_as       text;
    v_function regprocedure;
BEGIN
    FOR v_role, v_as IN
        SELECT DISTINCT r.role, r.role FROM tasker.rights() AS r
        UNION ALL SELECT 'tasker_worker_of_' || n.name, 'tasker_worker' FROM unnest(p_namespaces) AS n(name)
    LOOP
        IF NOT EXISTS (SELECT FROM pg_roles r WHERE r.rolname = v_role) THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN', v_role);
        END IF;
        EXECUTE format('GRANT USAGE ON SCHEMA tasker TO %I', v_role);
        EXECUTE format('GRANT SELECT ON tasker._sqlx_migrations TO %I', v_role);
        IF v_as IN ('tasker_worker', 'tasker_operate') THEN
            EXECUTE format('GRANT SELECT ON tasker.configurations TO %I', v_role);
        END IF;
        IF v_as IN ('tasker_read', 'tasker_operate') THEN
            EXECUTE format('GRANT SELECT ON tasker.counters TO %I', v_role);
        END IF;
        FOR v_function IN
            SELECT p.oid FROM pg_proc p JOIN tasker.rights() AS r ON r.function = p.proname
            WHERE p.pronamespace = 'tasker'::regnamespace AND r.role = v_as
        LOOP
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %I', v_function, v_role);
        END LOOP;
        RETURN NEXT v_role;
    END LOOP;
    GRANT tasker_submit, tasker_read, tasker_worker TO tasker_operate;
END
$$;

-- Nobody else may call anything.
DO $$
DECLARE
    v_function regprocedure;
BEGIN
    REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA tasker FROM PUBLIC;
    FOR v_function IN
        SELECT p.oid FROM pg_proc p WHERE p.pronamespace = 'tasker'::regnamespace AND p.proname IN (SELECT r.function FROM tasker.rights() AS r)
          -- They look at no row, and are written into the functions that ask them.
          AND p.proname NOT IN ('notifications_are_stuck', 'shard')
    LOOP
        EXECUTE format('ALTER FUNCTION %s SECURITY DEFINER', v_function);
    END LOOP;
END
$$;
