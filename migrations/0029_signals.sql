-- Signals: what somebody says to a task that is under way, and the steps that wait for it. A signal is for one task, or by a key for all that wait with
-- that key. To send one is to leave a row: the sender's transaction, however long, holds nobody up. What is committed later of a wait and a signal
-- finds the other: one session at a time brings them together (match_signals).
--
-- A task has each signal once. One that is sent to a task is for the wait that has waited longest. One that is sent by a key is for every task that was
-- there when it came, and waits for it then or later; as long as none has had it, also for the first that comes.

CREATE TABLE tasker.signals (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name       text NOT NULL,
    -- for whom: a task, or who waits with that key
    task_id    uuid,
    key        text,
    -- the sender's own id of it: the same counts once
    sender_id  text,
    payload    jsonb NOT NULL,
    sent_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- when it is forgotten, and may come again
    keep_until timestamptz NOT NULL,
    -- nobody has looked who waits for it
    is_new     boolean NOT NULL DEFAULT true,
    -- how many waits it ended
    received   int NOT NULL DEFAULT 0,
    CHECK ((task_id IS NULL) <> (key IS NULL))
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
CREATE UNIQUE INDEX signals_of_task ON tasker.signals (task_id, name, sender_id) WHERE task_id IS NOT NULL;
CREATE UNIQUE INDEX signals_of_key ON tasker.signals (key, name, sender_id) WHERE key IS NOT NULL;
CREATE INDEX signals_new ON tasker.signals (id) WHERE is_new;
CREATE INDEX signals_kept ON tasker.signals (keep_until);

-- The schemas that a signal's payload has to satisfy: those of the waits of that name in the task's template; or, by a key, of those that have a key, in
-- the templates of which tasks wait for it, and in the current versions of all.
CREATE FUNCTION tasker.signal_schemas(p_name text, p_task uuid, p_key text) RETURNS SETOF jsonb
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT DISTINCT coalesce(d.step #> '{wait, schema}', d.step #> '{wait, form}')
    FROM tasker.template_versions tv CROSS JOIN LATERAL jsonb_array_elements(tv.definition -> 'steps') AS d(step)
    WHERE tv.id = ANY (ARRAY(
            SELECT t.version_id FROM tasker.tasks t WHERE t.id = p_task
            UNION SELECT t.version_id FROM tasker.waits w JOIN tasker.tasks t ON t.id = w.task_id
            WHERE w.key = p_key AND w.name = p_name AND w.since IS NOT NULL
            UNION SELECT ts.version_id FROM tasker.templates tp JOIN tasker.template_steps ts ON ts.version_id = tp.current_version_id
            WHERE p_key IS NOT NULL AND ts.wait ->> 'signal' = p_name AND ts.wait ? 'key'))
      AND d.step #>> '{wait, signal}' = p_name AND (p_key IS NULL OR d.step -> 'wait' ? 'key') AND d.step -> 'wait' ?| '{schema, form}';
END;

-- Sends a signal, in the caller's transaction: to a task, or by a key. With p_id, the same id counts once for that task or key and name.
-- p_keep: how long it is kept, and its id known; as long as its task has not ended, one to a task is kept in any case.
-- outcome: 'awaited' (somebody waits for it now), 'kept' (nobody does yet), 'duplicate' (its id is known), or 'late' (the task has ended; it is not kept).
-- note: what looks like a mistake, if anything does.
-- Errors: TK002 no such task, TK004 bad argument, TK006 the payload is too large. A wait's schema is enforced by the libraries and the CLI, not here.
-- Locks: nothing but its own row; who sends the same id waits for the first to be committed or not.
CREATE FUNCTION tasker.send_signal(
    p_name text, p_task uuid DEFAULT NULL, p_key text DEFAULT NULL, p_payload jsonb DEFAULT NULL, p_id text DEFAULT NULL,
    p_keep interval DEFAULT '7 days', OUT outcome text, OUT note text
)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_task tasker.tasks;
    v_bad  text := CASE
        WHEN p_name IS NULL OR length(p_name) NOT BETWEEN 1 AND 100 THEN 'the name of a signal must have 1 to 100 characters'
        WHEN (p_task IS NULL) = (p_key IS NULL) THEN 'a signal is for a task, or for a key: expected one of them'
        WHEN length(p_key) NOT BETWEEN 1 AND 255 THEN 'the key must have 1 to 255 characters'
        WHEN length(p_id) NOT BETWEEN 1 AND 255 THEN 'the id of a signal must have 1 to 255 characters'
        WHEN p_keep IS NULL OR p_keep NOT BETWEEN '1 second' AND '10 years' THEN 'a signal is kept for a second to ten years' END;
BEGIN
    IF v_bad IS NOT NULL THEN
        RAISE EXCEPTION '%', v_bad USING ERRCODE = 'TK004';
    END IF;
    v_bad := tasker.excess(p_payload);
    IF v_bad IS NOT NULL THEN
        RAISE EXCEPTION 'the payload has %', v_bad USING ERRCODE = 'TK006', HINT = 'keep it elsewhere, and pass where';
    END IF;
    IF p_task IS NOT NULL THEN
        SELECT * INTO v_task FROM tasker.tasks t WHERE t.id = p_task;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'no task %', p_task USING ERRCODE = 'TK002';
        ELSIF EXISTS (SELECT FROM tasker.signals s WHERE s.task_id = p_task AND s.name = p_name AND s.sender_id = p_id) THEN
            outcome := 'duplicate';
        ELSIF v_task.state IN ('complete', 'cancelling', 'cancelled', 'discarded') OR v_task.state = 'failed' AND NOT tasker.is_open(p_task) THEN
            outcome := 'late';
        END IF;
        IF outcome IS NOT NULL THEN
            RETURN;
        END IF;
    END IF;
    INSERT INTO tasker.signals (name, task_id, key, sender_id, payload, keep_until)
    VALUES (p_name, p_task, p_key, p_id, coalesce(p_payload, 'null'), clock_timestamp() + p_keep) ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
        outcome := 'duplicate';
        RETURN;
    END IF;
    PERFORM tasker.notify('tasker_due', '');
    IF p_task IS NOT NULL THEN
        outcome := CASE WHEN EXISTS (SELECT FROM tasker.waits w WHERE w.task_id = p_task AND w.name = p_name AND w.since IS NOT NULL)
            THEN 'awaited' ELSE 'kept' END;
        SELECT 'no step of ' || tp.name || ' waits for "' || p_name || '"'
               || coalesce(': its steps wait for ' || string_agg(DISTINCT ts.wait ->> 'signal', ', '), ', unless a handler does')
        INTO note FROM tasker.templates tp LEFT JOIN tasker.template_steps ts ON ts.version_id = v_task.version_id AND ts.wait IS NOT NULL
        WHERE tp.id = v_task.template_id AND outcome = 'kept' GROUP BY tp.name HAVING coalesce(bool_and(ts.wait ->> 'signal' <> p_name), true);
    ELSE
        outcome := CASE WHEN EXISTS (SELECT FROM tasker.waits w WHERE w.key = p_key AND w.name = p_name AND w.since IS NOT NULL)
            THEN 'awaited' ELSE 'kept' END;
        IF outcome = 'kept' AND NOT EXISTS (
            SELECT FROM tasker.templates tp JOIN tasker.template_steps ts ON ts.version_id = tp.current_version_id
            WHERE ts.wait ->> 'signal' = p_name AND ts.wait ? 'key')
        THEN
            note := 'no template has a step that waits for "' || p_name || '" by a key';
        END IF;
    END IF;
END
$$;

-- The oldest signal that this wait may have; null: there is none.
CREATE FUNCTION tasker.kept_signal(p_wait tasker.waits) RETURNS bigint
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN (
        SELECT min(k.id) FROM (
            SELECT s.id FROM tasker.signals s WHERE s.task_id = p_wait.task_id AND s.name = p_wait.name AND s.received = 0
            UNION ALL
            SELECT s.id FROM tasker.signals s WHERE s.key = p_wait.key AND s.name = p_wait.name
              AND (s.received = 0 OR s.sent_at >= (SELECT t.created_at FROM tasker.tasks t WHERE t.id = p_wait.task_id))
              AND NOT EXISTS (SELECT FROM tasker.waits w WHERE w.task_id = p_wait.task_id AND w.signal_id = s.id)) AS k);
END
$$;

-- Those of these tasks' waits are over whose steps do not wait any more.
CREATE FUNCTION tasker.close_waits(p_tasks uuid[]) RETURNS void
LANGUAGE sql BEGIN ATOMIC
    UPDATE tasker.waits w SET since = NULL, look_at = NULL
    WHERE w.task_id = ANY (p_tasks) AND coalesce(w.since, w.look_at) IS NOT NULL
      AND NOT EXISTS (SELECT FROM tasker.steps s WHERE s.task_id = w.task_id AND s.step = w.step AND s.state IN ('waiting', 'waiting_retry', 'enqueued'));
END;

-- Begins a wait: finds out by which key its signal may come, and who is to send it. Returns why it cannot.
CREATE FUNCTION tasker.begin_wait(p_template jsonb, INOUT p_wait tasker.waits, OUT problem text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_seen  jsonb;
    v_found jsonb;
BEGIN
    IF p_template ? 'key' OR position('$' IN coalesce(p_template ->> 'assignees', '')) > 0 THEN
        v_seen := tasker.seen_by(p_wait.task_id, p_wait.step);
    END IF;
    IF p_template ? 'key' THEN
        v_found := jsonb_path_query_array(v_seen, (p_template ->> 'key')::jsonpath, '{}', true);
        p_wait.key := CASE WHEN jsonb_array_length(v_found) = 1 AND jsonb_typeof(v_found -> 0) IN ('string', 'number') THEN v_found ->> 0 END;
        IF p_wait.key IS NULL OR length(p_wait.key) NOT BETWEEN 1 AND 255 THEN
            problem := (p_template ->> 'key') || ' finds ' || CASE WHEN p_wait.key IS NOT NULL THEN 'a text of ' || length(p_wait.key) || ' characters'
                WHEN v_found = '[]' THEN 'nothing' WHEN jsonb_array_length(v_found) > 1 THEN jsonb_array_length(v_found) || ' values'
                ELSE 'a value of the type ' || jsonb_typeof(v_found -> 0) END || ': expected the key of a signal, one string or number';
            RETURN;
        END IF;
    END IF;
    p_wait.name := p_template ->> 'signal';
    p_wait.since := clock_timestamp();
    p_wait.due_at := p_wait.since + (p_template ->> 'due')::float8 * interval '1 second';
    p_wait.times_out_at := p_wait.since + (p_template ->> 'timeout')::float8 * interval '1 second';
    p_wait.assignees := (
        SELECT array_agg(DISTINCT f.who) FROM jsonb_array_elements_text(p_template -> 'assignees') AS a(who)
        CROSS JOIN LATERAL (
            SELECT a.who WHERE a.who NOT LIKE '$%'
            UNION ALL SELECT q.value #>> '{}' FROM jsonb_path_query(v_seen, CASE WHEN a.who LIKE '$%' THEN a.who::jsonpath ELSE '$' END, '{}', true) AS q(value)
            WHERE a.who LIKE '$%' AND jsonb_typeof(q.value) IN ('string', 'number')) AS f(who));
END
$$;

-- Tells a handler that waits of its signal, or that none came, by what it remembers; it is called again.
CREATE FUNCTION tasker.end_own_wait(p_wait tasker.waits, p_payload jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO tasker.memories (task_id, step, name, value) VALUES (p_wait.task_id, p_wait.step, p_wait.place, p_payload) ON CONFLICT DO NOTHING;
    UPDATE tasker.steps s SET state = 'waiting_retry', wakes_at = NULL, retry_at = clock_timestamp()
    WHERE s.task_id = p_wait.task_id AND s.step = p_wait.step AND s.state = 'waiting';
    PERFORM tasker.notify('tasker_due', '');
END
$$;

-- Looks at a wait: begins it, ends it if there is a signal for it, or its time is over. Returns whether its step is complete or skipped now.
-- Locks: the caller's, who has the task's and his turn (match_signals).
CREATE FUNCTION tasker.look_at_wait(p_wait tasker.waits) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_kind     text;
    v_template jsonb;
    v_begun    record;
    v_problem  text;
    v_signal   bigint;
    v_payload  jsonb;
BEGIN
    SELECT ts.kind, ts.wait INTO v_kind, v_template FROM tasker.tasks t
    JOIN tasker.steps s ON s.task_id = t.id AND s.step = p_wait.step
    JOIN tasker.template_steps ts ON ts.version_id = t.version_id AND ts.step = s.step
    WHERE t.id = p_wait.task_id AND t.state IN ('running', 'blocked', 'failed', 'undoing')
      AND (s.state = 'waiting' OR ts.kind = 'handler' AND s.state IN ('enqueued', 'waiting_retry'));
    IF v_kind IS NULL THEN
        PERFORM tasker.close_waits(ARRAY[p_wait.task_id]);
        UPDATE tasker.waits w SET look_at = NULL WHERE w.task_id = p_wait.task_id AND w.step = p_wait.step AND w.place = p_wait.place;
        RETURN false;
    END IF;
    IF p_wait.name IS NULL THEN
        SELECT * INTO v_begun FROM tasker.begin_wait(v_template, p_wait);
        p_wait := v_begun.p_wait;
        IF v_begun.problem IS NOT NULL THEN
            UPDATE tasker.waits w SET look_at = NULL WHERE w.task_id = p_wait.task_id AND w.step = p_wait.step AND w.place = p_wait.place;
            PERFORM tasker.kill_step(p_wait.task_id, p_wait.step, 'no_key', v_begun.problem);
            RETURN false;
        END IF;
    END IF;

    v_signal := tasker.kept_signal(p_wait);
    IF v_signal IS NULL AND p_wait.times_out_at <= clock_timestamp() THEN
        v_problem := 'no signal "' || p_wait.name || '" came within ' || justify_hours(
            coalesce((v_template ->> 'timeout')::float8 * interval '1 second', p_wait.times_out_at - p_wait.since));
    END IF;
    UPDATE tasker.waits w
    SET name = p_wait.name, key = p_wait.key, assignees = p_wait.assignees, due_at = p_wait.due_at, times_out_at = p_wait.times_out_at,
        since = CASE WHEN v_signal IS NULL AND v_problem IS NULL THEN p_wait.since END, signal_id = v_signal,
        look_at = CASE WHEN v_signal IS NULL AND v_problem IS NULL THEN p_wait.times_out_at END
    WHERE w.task_id = p_wait.task_id AND w.step = p_wait.step AND w.place = p_wait.place;
    IF v_signal IS NOT NULL THEN
        UPDATE tasker.signals s SET received = s.received + 1 WHERE s.id = v_signal RETURNING s.payload INTO v_payload;
    END IF;

    IF v_kind = 'handler' THEN
        IF v_signal IS NOT NULL OR v_problem IS NOT NULL THEN
            PERFORM tasker.end_own_wait(p_wait, v_payload);
        END IF;
    ELSIF v_signal IS NOT NULL THEN
        UPDATE tasker.steps s
        SET state = 'complete', wakes_at = NULL, started_at = s.enqueued_at, finished_at = clock_timestamp(), result = v_payload,
            result_bytes = octet_length(v_payload::text)
        WHERE s.task_id = p_wait.task_id AND s.step = p_wait.step;
        RETURN true;
    ELSIF v_problem IS NOT NULL AND v_template ->> 'on_timeout' = 'skip' THEN
        UPDATE tasker.steps s SET state = 'skipped', wakes_at = NULL, finished_at = clock_timestamp(), skipped_because = v_problem
        WHERE s.task_id = p_wait.task_id AND s.step = p_wait.step;
        RETURN true;
    ELSIF v_problem IS NOT NULL THEN
        PERFORM tasker.kill_step(p_wait.task_id, p_wait.step, 'timed_out', v_problem);
        UPDATE tasker.tasks t SET state = 'failed', finished_at = clock_timestamp()
        WHERE t.id = p_wait.task_id AND t.state = 'blocked' AND v_template ->> 'on_timeout' = 'fail';
    END IF;
    RETURN false;
END
$$;

-- Brings waits and signals together, and ends waits whose time is over: of p_limit tasks at most. Returns of how many.
-- Locks: its turn; then the tasks in id order, skipping those that somebody else has (the next call takes them); then their waits and steps.
CREATE FUNCTION tasker.match_signals(p_limit int) RETURNS int
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_new   bigint[];
    v_tasks uuid[];
    v_held  uuid[];
    v_wait  tasker.waits;
    v_ended uuid[] := '{}';
    v_steps smallint[] := '{}';
BEGIN
    PERFORM tasker.await_turn('tasker.turn_signals');
    v_new := ARRAY(SELECT s.id FROM tasker.signals s WHERE s.is_new ORDER BY s.id LIMIT p_limit);
    DELETE FROM tasker.waits w WHERE w.look_at <= (SELECT clock_timestamp()) AND NOT EXISTS (SELECT FROM tasker.tasks t WHERE t.id = w.task_id);
    v_tasks := ARRAY(SELECT DISTINCT c.task_id FROM (
        (SELECT w.task_id FROM tasker.waits w WHERE w.look_at <= (SELECT clock_timestamp()) ORDER BY w.look_at LIMIT p_limit)
        UNION ALL
        (SELECT w.task_id FROM unnest(v_new) AS n(id)
         CROSS JOIN LATERAL (SELECT * FROM tasker.signals WHERE id = n.id OFFSET 0) AS s
         CROSS JOIN LATERAL (
             SELECT task_id FROM tasker.waits WHERE task_id = s.task_id AND name = s.name AND since IS NOT NULL
             UNION ALL SELECT task_id FROM tasker.waits WHERE key = s.key AND name = s.name AND since IS NOT NULL) AS w
         LIMIT p_limit)) AS c);
    v_held := ARRAY(SELECT t.id FROM tasker.tasks t WHERE t.id = ANY (v_tasks) ORDER BY t.id FOR NO KEY UPDATE SKIP LOCKED);
    FOR v_wait IN
        SELECT w.* FROM tasker.waits w WHERE w.task_id = ANY (v_held) AND (w.look_at <= clock_timestamp() OR w.since IS NOT NULL)
        ORDER BY w.since, w.task_id, w.step
    LOOP
        IF tasker.look_at_wait(v_wait) THEN
            v_ended := v_ended || v_wait.task_id;
            v_steps := v_steps || v_wait.step;
        END IF;
    END LOOP;
    IF v_ended <> '{}' THEN
        PERFORM tasker.advance_tasks(v_ended, v_steps);
    END IF;
    -- A wait that is not there yet will look by itself.
    UPDATE tasker.signals s SET is_new = false WHERE s.id = ANY (v_new) AND NOT EXISTS (
        SELECT FROM tasker.waits w
        WHERE (w.task_id = s.task_id AND s.received = 0 OR w.key = s.key) AND w.name = s.name AND w.since IS NOT NULL AND tasker.kept_signal(w) IS NOT NULL);
    RETURN cardinality(v_held);
END
$$;

-- When there is something to match; null: it is not known.
CREATE FUNCTION tasker.signals_due() RETURNS timestamptz
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT CASE WHEN EXISTS (SELECT FROM tasker.signals s WHERE s.is_new) THEN now()
           ELSE (SELECT w.look_at FROM tasker.waits w WHERE w.look_at IS NOT NULL ORDER BY w.look_at LIMIT 1) END;
END;

-- Forgets at most p_limit signals whose time is over, and counts those that nobody has had. One to a task that has not ended is kept on.
-- Returns how many it looked at, and of how many nobody has heard.
CREATE FUNCTION tasker.forget_signals(p_limit int, OUT looked_at int, OUT unclaimed int)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_over bigint[] := ARRAY(
        SELECT s.id FROM tasker.signals s WHERE s.keep_until <= clock_timestamp() ORDER BY s.keep_until LIMIT p_limit FOR UPDATE SKIP LOCKED);
BEGIN
    looked_at := cardinality(v_over);
    UPDATE tasker.signals s SET keep_until = clock_timestamp() + interval '7 days'
    WHERE s.id = ANY (v_over) AND EXISTS (SELECT FROM tasker.tasks t WHERE t.id = s.task_id AND t.finished_at IS NULL);
    WITH gone AS (
        DELETE FROM tasker.signals s WHERE s.id = ANY (v_over) AND s.keep_until <= clock_timestamp() RETURNING s.received
    )
    SELECT count(*) FILTER (WHERE g.received = 0) INTO unclaimed FROM gone g;
    PERFORM tasker.count_event('unclaimed_signals', unclaimed);
END
$$;

-- What waits for a signal, those first that have waited longest: of a namespace, for a signal, with this assignee; null filters nothing.
-- p_after: behind this task's.
CREATE FUNCTION tasker.list_waits(p_namespace text, p_signal text, p_assignee text, p_after uuid, p_limit int) RETURNS SETOF jsonb
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT jsonb_build_object(
        'task', w.task_id, 'template', ts.template, 'namespace', n.name, 'step', ts.name, 'signal', w.name, 'key', w.key, 'since', w.since,
        'due_at', w.due_at, 'times_out_at', w.times_out_at, 'assignees', coalesce(w.assignees, '{}'),
        'form', (SELECT d.step #> '{wait, form}' FROM tasker.template_versions tv, jsonb_array_elements(tv.definition -> 'steps') AS d(step)
                 WHERE tv.id = t.version_id AND d.step ->> 'name' = ts.name))
    FROM tasker.waits w
    JOIN tasker.tasks t ON t.id = w.task_id
    JOIN tasker.template_steps ts ON ts.version_id = t.version_id AND ts.step = w.step
    JOIN tasker.namespaces n ON n.id = t.namespace_id
    WHERE w.since IS NOT NULL AND (p_namespace IS NULL OR n.name = p_namespace) AND (p_signal IS NULL OR w.name = p_signal)
      AND (p_assignee IS NULL OR p_assignee = ANY (w.assignees))
      AND (p_after IS NULL OR (w.since, w.task_id) > ((SELECT max(a.since) FROM tasker.waits a WHERE a.task_id = p_after), p_after))
    ORDER BY w.since, w.task_id, w.step LIMIT p_limit;
END;

-- The newest signals that are not forgotten: of a name, to a task, by a key, or with p_unclaimed those that nobody has had yet; null filters nothing.
CREATE FUNCTION tasker.list_signals(p_name text, p_task uuid, p_key text, p_unclaimed boolean, p_limit int) RETURNS SETOF jsonb
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN QUERY
    SELECT jsonb_build_object('id', s.id, 'name', s.name, 'task', s.task_id, 'key', s.key, 'sender_id', s.sender_id, 'sent_at', s.sent_at,
        'keep_until', s.keep_until, 'received', s.received,
        'payload', CASE WHEN pg_column_size(s.payload) <= 8192 THEN s.payload ELSE jsonb_build_object('left_out_bytes', octet_length(s.payload::text)) END)
    FROM tasker.signals s
    WHERE (p_name IS NULL OR s.name = p_name) AND (p_task IS NULL OR s.task_id = p_task) AND (p_key IS NULL OR s.key = p_key)
      AND (NOT p_unclaimed OR s.received = 0)
    ORDER BY s.id DESC LIMIT p_limit;
END
$$;
