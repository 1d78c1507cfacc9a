-- The configuration that a fleet shares: what is set for all, for namespaces, and for single instances, above what each process is told where it runs.

-- A row is all of it, so that going back is one step, too. The library validates what comes in.
CREATE TABLE tasker.configurations (
    version   bigint PRIMARY KEY,
    at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    who       text NOT NULL,
    why       text,
    overrides jsonb NOT NULL CHECK (jsonb_typeof(overrides) = 'object')
);
INSERT INTO tasker.configurations (version, who, why, overrides) VALUES (0, 'tasker', 'installed', '{}');

-- The rules of a namespace, whether or not it is there: its own, else those for all namespaces, else these.
CREATE FUNCTION tasker.rules(p_namespace text) RETURNS TABLE (
    max_attempts int, backoff text, multiplier float8, base_seconds float8, max_seconds float8, jitter float8, retention_days int,
    alert_threshold int, history_seconds float8, queue_target int, depth_warning int, depth_critical int, age_warning_seconds float8, age_critical_seconds float8,
    throttle_new_tasks text, throttle_wait_seconds float8, shed_low_priority boolean
)
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT r.* FROM (SELECT overrides FROM tasker.configurations ORDER BY version DESC LIMIT 1) AS c,
        jsonb_to_record('{"max_attempts": 5, "backoff": "exponential", "multiplier": 2, "base_seconds": 1, "max_seconds": 600, "jitter": 0.1,
                          "throttle_new_tasks": "hold", "throttle_wait_seconds": 5, "shed_low_priority": false}'
                        || coalesce(c.overrides -> 'namespace_defaults', '{}') || coalesce(c.overrides -> 'namespaces' -> p_namespace, '{}')) AS r(
            max_attempts int, backoff text, multiplier float8, base_seconds float8, max_seconds float8, jitter float8, retention_days int,
            alert_threshold int, history_seconds float8, queue_target int, depth_warning int, depth_critical int, age_warning_seconds float8, age_critical_seconds float8,
            throttle_new_tasks text, throttle_wait_seconds float8, shed_low_priority boolean);
END;

-- Adds a version above p_base, and returns its number. The rules of namespaces are in force once it commits, also for tasks that are under way;
-- processes are told.
-- Errors: TK005 when p_base is not the newest any more; 23514 (check violation) when a rule is out of bounds.
-- Locks: the turn of ensure_namespaces; then the namespaces and limits that change.
CREATE FUNCTION tasker.change_configuration(p_base bigint, p_overrides jsonb, p_who text, p_why text) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_newest bigint;
BEGIN
    PERFORM tasker.await_turn('tasker.turn_namespaces');
    SELECT max(version) INTO v_newest FROM tasker.configurations;
    IF v_newest <> p_base THEN
        RAISE EXCEPTION 'the configuration is at version % by now', v_newest USING ERRCODE = 'TK005';
    END IF;
    INSERT INTO tasker.configurations (version, who, why, overrides) VALUES (v_newest + 1, p_who, p_why, p_overrides);
    UPDATE tasker.namespaces n
    SET (max_attempts, backoff, multiplier, base_seconds, max_seconds, jitter, retention_days, alert_threshold, history_seconds, queue_target, depth_warning,
         depth_critical, age_warning_seconds, age_critical_seconds, throttle_new_tasks, throttle_wait_seconds, shed_low_priority)
        = (SELECT r.* FROM tasker.rules(n.name) AS r);
    PERFORM tasker.apply_limits(p_overrides);
    PERFORM tasker.notify('tasker_configuration', (v_newest + 1)::text);
    RETURN v_newest + 1;
END
$$;
