-- What handlers leave while they run: for their own next run (durable blocks: what was done once, until when they sleep, which signals they had), and for
-- others to read (values).

CREATE TABLE tasker.memories (
    task_id  uuid NOT NULL,
    step     smallint NOT NULL,
    name     text NOT NULL,
    -- null: there is none, or nothing came
    value    jsonb,
    -- until when it sleeps
    wakes_at timestamptz,
    at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (task_id, step, name)
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);

CREATE TABLE tasker.task_values (
    task_id uuid NOT NULL,
    name    text NOT NULL,
    value   jsonb NOT NULL,
    -- who said it last, and when
    step    smallint NOT NULL,
    at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (task_id, name)
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);

-- Whether a step is still the caller's, which nobody changes until the caller's transaction ends.
-- Locks: the message.
CREATE FUNCTION tasker.hold_step(p_queue text, p_id bigint, p_fence int, p_task uuid, p_step smallint) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_held bigint[];
BEGIN
    PERFORM tasker.check_reporter(p_queue, ARRAY[p_id], ARRAY[p_task], ARRAY[p_step]);
    EXECUTE format('SELECT tasker.%I($1, $2, $3, $4)', p_queue || '_hold')
    INTO v_held USING ARRAY[p_id], ARRAY[p_fence], ARRAY[p_task], ARRAY[p_step];
    RETURN v_held IS NOT NULL AND EXISTS (
        SELECT FROM tasker.steps s WHERE s.task_id = p_task AND s.step = p_step AND s.msg_id = p_id AND s.state = 'enqueued');
END
$$;

-- Remembers a value under a name, for all runs of this step; with p_sleep, until when it sleeps. What is remembered already stays.
-- Returns whether the step is still the caller's: else nothing was remembered.
CREATE FUNCTION tasker.remember(
    p_queue text, p_id bigint, p_fence int, p_task uuid, p_step smallint, p_name text, p_value jsonb, p_sleep interval DEFAULT NULL
) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT tasker.hold_step(p_queue, p_id, p_fence, p_task, p_step) THEN
        RETURN false;
    END IF;
    INSERT INTO tasker.memories (task_id, step, name, value, wakes_at) VALUES (p_task, p_step, p_name, p_value, clock_timestamp() + p_sleep)
    ON CONFLICT DO NOTHING;
    RETURN true;
END
$$;

-- Begins to wait for a signal, which will be remembered under a name, with its payload; or with nothing, once p_timeout is over. (Its handler ends with the
-- reason 'snoozed' then, see fail_steps.) Returns whether the step is still the caller's.
CREATE FUNCTION tasker.await_signal(
    p_queue text, p_id bigint, p_fence int, p_task uuid, p_step smallint, p_name text, p_signal text, p_key text, p_timeout interval
) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT tasker.hold_step(p_queue, p_id, p_fence, p_task, p_step) THEN
        RETURN false;
    END IF;
    INSERT INTO tasker.waits (task_id, step, place, name, key, since, times_out_at, look_at)
    VALUES (p_task, p_step, p_name, p_signal, p_key, clock_timestamp(), clock_timestamp() + p_timeout, clock_timestamp()) ON CONFLICT DO NOTHING;
    PERFORM tasker.notify('tasker_due', '');
    RETURN true;
END
$$;

-- What a step remembers: everything, or only of p_name. Values as JSON, in the order of their names, as long as they have no more than p_bytes altogether;
-- the others are left out, to be asked for by their names. seconds: how long it still has to sleep.
CREATE FUNCTION tasker.recall(p_task uuid, p_step smallint, p_name text, p_bytes bigint)
RETURNS TABLE (name text, value text, seconds float8, left_out boolean)
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT m.name, CASE WHEN m.bytes <= p_bytes THEN m.value END, greatest(0, extract(epoch FROM m.wakes_at - clock_timestamp())::float8), m.bytes > p_bytes
    FROM (
        SELECT r.name, r.value::text AS value, r.wakes_at, coalesce(sum(octet_length(r.value::text)) OVER (ORDER BY r.name), 0) AS bytes
        FROM tasker.memories r WHERE r.task_id = p_task AND r.step = p_step AND (p_name IS NULL OR r.name = p_name)) AS m
    WHERE tasker.may_work_on(p_task, p_step);
END;

-- Sets a value of the task, for whoever reads it. Returns whether the step is still the caller's.
-- Locks: the message; then the value's row.
CREATE FUNCTION tasker.publish_value(p_queue text, p_id bigint, p_fence int, p_task uuid, p_step smallint, p_name text, p_value jsonb) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT tasker.hold_step(p_queue, p_id, p_fence, p_task, p_step) THEN
        RETURN false;
    END IF;
    INSERT INTO tasker.task_values AS v (task_id, name, value, step) VALUES (p_task, p_name, p_value, p_step)
    ON CONFLICT (task_id, name) DO UPDATE SET value = excluded.value, step = excluded.step, at = excluded.at;
    RETURN true;
END
$$;

-- The values of a task, as {name: value}.
CREATE FUNCTION tasker.read_values(p_task uuid) RETURNS jsonb
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT coalesce(jsonb_object_agg(v.name, v.value), '{}') FROM tasker.task_values v WHERE v.task_id = p_task;
END;
