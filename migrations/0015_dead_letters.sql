-- Dead letters: what operators see of them and do about them. A letter is a message in '<namespace>_queue_dlq', sent by fail_steps (or by
-- lease_steps, for a message that is no step's) in the transaction that moved the row. Its id is 'namespace/msg_id'.

-- Who did what about which letter, and why. Never deleted.
CREATE TABLE tasker.dead_letter_actions (
    id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    action  text NOT NULL CHECK (action IN ('replay', 'resolve', 'skip', 'discard', 'purge')),
    letter  text NOT NULL,
    task_id uuid,
    step    text,
    who     text NOT NULL,
    why     text,
    details jsonb NOT NULL
);
CREATE INDEX dead_letter_actions_gone ON tasker.dead_letter_actions (task_id) WHERE action IN ('discard', 'purge');

-- The last p_limit actions, the newest first. What is large is left out: it says how many bytes it has.
CREATE FUNCTION tasker.list_dead_letter_actions(p_limit int) RETURNS SETOF jsonb
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT to_jsonb(a) || CASE WHEN pg_column_size(a.details) > 65536
                          THEN jsonb_build_object('details', jsonb_build_object('left_out_bytes', octet_length(a.details::text))) ELSE '{}' END
    FROM tasker.dead_letter_actions a ORDER BY a.id DESC LIMIT p_limit;
END;

-- What the inputs of these tasks must satisfy: of each of their versions that says so, its template and the schema.
CREATE FUNCTION tasker.input_schemas(p_tasks uuid[]) RETURNS TABLE (template text, schema jsonb)
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT n.name || '/' || tp.name, tv.definition -> 'input_schema'
    FROM (SELECT DISTINCT t.version_id FROM unnest(p_tasks) AS i(id)
          CROSS JOIN LATERAL (SELECT version_id FROM tasker.tasks WHERE id = i.id OFFSET 0) AS t) AS v
    JOIN tasker.template_versions tv ON tv.id = v.version_id
    JOIN tasker.templates tp ON tp.id = tv.template_id
    JOIN tasker.namespaces n ON n.id = tp.namespace_id
    WHERE tv.definition ? 'input_schema';
END;

-- The letters that p_filter lets through: {namespace, namespaces: [], template, handler, reason, class, task, tasks: [], ids: [], older_than, newer_than
-- (seconds), before: id, newest: of so many letters of a namespace only}; what it lacks filters nothing. The newest first; 'before' continues after the last
-- of a page. Where no namespace is named, those are left out whose queues cannot be worked with.
CREATE FUNCTION tasker.find_dead_letters(p_filter jsonb, p_limit int)
RETURNS TABLE (id text, namespace text, msg_id bigint, died_at timestamptz, letter jsonb)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_namespace tasker.namespaces;
    v_before    timestamptz;
    -- Without a bound the index by which they are listed is walked as far as it takes.
    v_of        text := CASE WHEN p_filter ? 'ids' THEN '(SELECT * FROM pgmq.%I WHERE msg_id = ANY ($6))' WHEN p_filter ? 'newest' THEN
        '(SELECT * FROM pgmq.%I WHERE ($5 IS NULL OR msg_id < $5) ORDER BY msg_id DESC LIMIT ($1 ->> ''newest'')::int)' ELSE 'pgmq.%I' END;
BEGIN
    IF p_filter ? 'before' THEN
        EXECUTE format('SELECT enqueued_at FROM pgmq.%I WHERE msg_id = $1',
                       pgmq.format_table_name(split_part(p_filter ->> 'before', '/', 1) || '_queue_dlq', 'q'))
        INTO v_before USING split_part(p_filter ->> 'before', '/', 2)::bigint;
    END IF;
    FOR v_namespace IN
        SELECT n.* FROM tasker.lettered l JOIN tasker.namespaces n ON n.id = l.namespace_id
        WHERE n.name = coalesce(p_filter ->> 'namespace', n.name)
          AND (p_filter ? 'namespace' OR NOT EXISTS (SELECT FROM tasker.broken_queues b WHERE b.namespace_id = n.id))
          AND (NOT p_filter ? 'namespaces' OR p_filter -> 'namespaces' ? n.name)
          AND (NOT p_filter ? 'ids' OR EXISTS (
              SELECT 1 FROM jsonb_array_elements_text(p_filter -> 'ids') AS i(id) WHERE split_part(i.id, '/', 1) = n.name))
    LOOP
        RETURN QUERY EXECUTE format($f$
            SELECT $2 || '/' || q.msg_id, $2, q.msg_id, q.enqueued_at, q.message
            FROM $f$ || v_of || $f$ AS q
            WHERE ($1 ->> 'template' IS NULL OR q.message ->> 'template' = $1 ->> 'template')
              AND ($1 ->> 'handler' IS NULL OR q.message ->> 'handler' = $1 ->> 'handler')
              AND ($1 ->> 'reason' IS NULL OR q.message ->> 'reason' = $1 ->> 'reason')
              AND ($1 ->> 'class' IS NULL OR q.message -> 'errors' -> -1 ->> 'class' = $1 ->> 'class')
              AND ($1 ->> 'task' IS NULL OR q.message ->> 'task' = $1 ->> 'task')
              AND (NOT $1 ? 'tasks' OR $1 -> 'tasks' ? (q.message ->> 'task'))
              AND ($1 ->> 'older_than' IS NULL OR q.enqueued_at <= now() - ($1 ->> 'older_than')::float8 * interval '1 second')
              AND ($1 ->> 'newer_than' IS NULL OR q.enqueued_at >= now() - ($1 ->> 'newer_than')::float8 * interval '1 second')
              AND ($3 IS NULL OR q.enqueued_at <= $3
                   AND (q.enqueued_at, $2, q.msg_id) < ($3, split_part($1 ->> 'before', '/', 1), split_part($1 ->> 'before', '/', 2)::bigint))
            ORDER BY q.enqueued_at DESC, q.msg_id DESC LIMIT $4
        $f$, pgmq.format_table_name(v_namespace.queue || '_dlq', 'q'))
        USING p_filter, v_namespace.name, v_before, p_limit,
              CASE WHEN p_filter ? 'newest' AND split_part(p_filter ->> 'before', '/', 1) = v_namespace.name THEN split_part(p_filter ->> 'before', '/', 2)::bigint END,
              CASE WHEN p_filter ? 'ids' THEN ARRAY(
                  SELECT split_part(i.id, '/', 2)::bigint FROM jsonb_array_elements_text(p_filter -> 'ids') AS i(id)
                  WHERE split_part(i.id, '/', 1) = v_namespace.name) END;
    END LOOP;
END
$$;

-- The namespaces that have letters and whose queues can be worked with, in order; of p_filter, its namespace alone.
CREATE FUNCTION tasker.lettered_namespaces(p_filter jsonb DEFAULT '{}') RETURNS SETOF text
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT n.name FROM tasker.lettered l JOIN tasker.namespaces n ON n.id = l.namespace_id
    WHERE n.name = coalesce(p_filter ->> 'namespace', n.name)
      AND (p_filter ? 'namespace' OR NOT EXISTS (SELECT FROM tasker.broken_queues b WHERE b.namespace_id = n.id)) ORDER BY n.id;
END;

-- A page of them. Unless p_whole, what is large is left out, so that a page has a bound: of the input (which then says how many bytes
-- it has), and of the errors all but the last.
CREATE FUNCTION tasker.list_dead_letters(p_filter jsonb, p_limit int, p_whole boolean DEFAULT false) RETURNS SETOF jsonb
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT f.letter
        || CASE WHEN NOT p_whole AND pg_column_size(f.letter -> 'input') > 8192
           THEN jsonb_build_object('input', NULL, 'input_bytes', octet_length((f.letter -> 'input')::text)) ELSE '{}' END
        || CASE WHEN NOT p_whole AND pg_column_size(f.letter -> 'errors') > 65536
           THEN jsonb_build_object('errors', jsonb_build_array(f.letter -> 'errors' -> -1)) ELSE '{}' END
        || jsonb_build_object('id', f.id, 'namespace', f.namespace, 'died_at', f.died_at)
    FROM tasker.find_dead_letters(p_filter, p_limit) f
    ORDER BY f.died_at DESC, f.namespace DESC, f.msg_id DESC LIMIT p_limit;
END;

-- The same by error: what an operator looks at first.
CREATE FUNCTION tasker.group_dead_letters(p_filter jsonb) RETURNS SETOF jsonb
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT jsonb_build_object(
        'namespace', f.namespace, 'template', f.letter ->> 'template', 'step', f.letter ->> 'step', 'reason', f.letter ->> 'reason',
        'class', f.letter -> 'errors' -> -1 ->> 'class', 'count', count(*), 'first', min(f.died_at), 'last', max(f.died_at),
        'example', max(f.id), 'message', max(f.letter -> 'errors' -> -1 ->> 'message'))
    FROM tasker.find_dead_letters(p_filter, NULL) f
    GROUP BY f.namespace, f.letter ->> 'template', f.letter ->> 'step', f.letter ->> 'reason', f.letter -> 'errors' -> -1 ->> 'class'
    ORDER BY count(*) DESC, 1;
END;

-- Whether the step of a letter is still dead, and its task still waits for somebody to do something about it.
CREATE FUNCTION tasker.is_dead(p_letter jsonb) RETURNS boolean
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT EXISTS (
        SELECT 1 FROM tasker.tasks t
        JOIN tasker.template_steps ts ON ts.version_id = t.version_id AND ts.name = p_letter ->> 'step'
        JOIN tasker.steps s ON s.task_id = t.id AND s.step = ts.step AND s.state = 'dead'
        WHERE t.id = (p_letter ->> 'task')::uuid AND CASE WHEN ts.undoes IS NULL THEN t.state IN ('running', 'blocked', 'failed') AND t.undo_as IS NULL ELSE t.state = 'undoing' END);
END;

-- For the functions below: locks the tasks of the letters in id order, then takes the letters out of their queues; with p_only_dead only
-- those whose step is still dead. What another operator has taken meanwhile is not returned.
CREATE FUNCTION tasker.take_dead_letters(p_ids text[], p_only_dead boolean)
RETURNS TABLE (id text, letter jsonb, task_id uuid, step smallint)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_namespace text;
    v_messages  bigint[];
BEGIN
    PERFORM 1 FROM tasker.tasks t
    WHERE t.id IN (SELECT (f.letter ->> 'task')::uuid FROM tasker.find_dead_letters(jsonb_build_object('ids', p_ids), NULL) f)
    ORDER BY t.id FOR NO KEY UPDATE;
    FOR v_namespace, v_messages IN
        SELECT n.name, array_agg(split_part(i.id, '/', 2)::bigint ORDER BY split_part(i.id, '/', 2)::bigint)
        FROM unnest(p_ids) AS i(id) JOIN tasker.namespaces n ON n.name = split_part(i.id, '/', 1)
        GROUP BY n.name ORDER BY n.name
    LOOP
        RETURN QUERY EXECUTE format($f$
            WITH taken AS (
                DELETE FROM pgmq.%I q
                WHERE q.msg_id IN (SELECT h.msg_id FROM pgmq.%1$I h WHERE h.msg_id = ANY ($2) ORDER BY h.msg_id FOR UPDATE)
                  AND (NOT $3 OR tasker.is_dead(q.message))
                RETURNING $1 || '/' || q.msg_id AS id, q.message
            )
            SELECT k.id, k.message, t.id, ts.step
            FROM taken k
            LEFT JOIN tasker.tasks t ON t.id = (k.message ->> 'task')::uuid
            LEFT JOIN tasker.template_steps ts ON ts.version_id = t.version_id AND ts.name = k.message ->> 'step'
        $f$, pgmq.format_table_name(v_namespace || '_queue_dlq', 'q')) USING v_namespace, v_messages, p_only_dead;
    END LOOP;
END
$$;

-- Tasks of which no step is dead any more, and no more children of a step than it tolerates, run again.
CREATE FUNCTION tasker.unblock_tasks(p_tasks uuid[]) RETURNS void
LANGUAGE sql BEGIN ATOMIC
    WITH again AS (
        UPDATE tasker.tasks t SET state = 'running', finished_at = NULL
        WHERE t.id = ANY (p_tasks) AND t.state IN ('blocked', 'failed') AND t.undo_as IS NULL
          AND NOT EXISTS (SELECT 1 FROM tasker.steps s WHERE s.task_id = t.id AND s.state = 'dead')
          AND NOT tasker.has_too_many_dead(t.id)
        RETURNING t.parent_id, t.parent_step
    )
    SELECT tasker.note_children(array_agg(a.parent_id), array_agg(a.parent_step), 0, -1) FROM again a WHERE a.parent_id IS NOT NULL HAVING count(*) > 0;
END;

-- Replays dead letters: their steps start over with a full count of attempts (or p_max_attempts), and with p_input, if it is not null, as
-- the input of their tasks. The n-th of them waits (p_first + n) / p_per_second seconds, so that a replay is no stampede; null: none waits.
-- Letters that are no longer there, or behind which no dead step stands, are left alone. Returns the ids of those it replayed.
-- Locks: the tasks in id order, then letters in order, then steps.
CREATE FUNCTION tasker.replay_dead_letters(
    p_ids text[], p_input jsonb, p_max_attempts int, p_per_second float8, p_first int, p_who text, p_why text
) RETURNS SETOF text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_replayed text[];
    v_tasks    uuid[];
    v_steps    smallint[];
BEGIN
    WITH taken AS MATERIALIZED (
        SELECT * FROM tasker.take_dead_letters(p_ids, true)
    ), again AS (
        SELECT k.*, row_number() OVER (ORDER BY k.id) - 1 + p_first AS n, (
            SELECT ts.kind FROM tasker.tasks t JOIN tasker.template_steps ts ON ts.version_id = t.version_id AND ts.step = k.step WHERE t.id = k.task_id) AS kind
        FROM taken k
    ), scheduled AS (
        UPDATE tasker.steps s
        SET state = CASE WHEN a.kind = 'handler' THEN 'waiting_retry' ELSE 'waiting' END::tasker.step_state, failures = 0, max_attempts = p_max_attempts,
            finished_at = NULL, retry_at = CASE WHEN a.kind = 'handler' THEN clock_timestamp() + coalesce(a.n / p_per_second, 0) * interval '1 second' END,
            wakes_at = CASE a.kind WHEN 'sleep' THEN clock_timestamp() WHEN 'wait' THEN 'infinity' END
        FROM again a WHERE s.task_id = a.task_id AND s.step = a.step
        RETURNING a.id, a.task_id, s.step, a.letter
    ), edited AS (
        UPDATE tasker.tasks t SET input = p_input WHERE p_input IS NOT NULL AND t.id = ANY (ARRAY(SELECT c.task_id FROM scheduled c))
    ), recorded AS (
        INSERT INTO tasker.dead_letter_actions (action, letter, task_id, step, who, why, details)
        SELECT 'replay', c.id, c.task_id, c.letter ->> 'step', p_who, p_why,
               jsonb_build_object('input', p_input, 'max_attempts', p_max_attempts, 'letter', c.letter)
        FROM scheduled c
    )
    SELECT array_agg(c.id), array_agg(c.task_id), array_agg(c.step) INTO v_replayed, v_tasks, v_steps FROM scheduled c;
    PERFORM tasker.unblock_tasks(v_tasks);
    PERFORM tasker.hold_replays(v_tasks, v_steps);
    PERFORM tasker.look_at_children(v_tasks, v_steps);
    UPDATE tasker.waits w SET name = NULL, since = NULL, look_at = clock_timestamp()
    FROM unnest(v_tasks, v_steps) AS a(task, step) WHERE w.task_id = a.task AND w.step = a.step AND w.place = '';
    PERFORM tasker.notify('tasker_due', '');
    RETURN QUERY SELECT unnest(v_replayed);
END
$$;

-- Ends dead steps by hand, as complete with p_result or (p_result null) as skipped; their tasks go on. Returns the ids of those it settled.
-- Locks: the tasks in id order, then letters in order, then steps.
CREATE FUNCTION tasker.settle_dead_letters(p_ids text[], p_result jsonb, p_who text, p_why text) RETURNS SETOF text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_settled text[];
    v_tasks   uuid[];
    v_steps   smallint[];
BEGIN
    WITH taken AS MATERIALIZED (
        SELECT * FROM tasker.take_dead_letters(p_ids, true)
    ), settled AS (
        UPDATE tasker.steps s
        SET state = CASE WHEN p_result IS NULL THEN 'skipped' ELSE 'complete' END::tasker.step_state, result = p_result,
            result_bytes = octet_length(p_result::text),
            finished_at = clock_timestamp()
        FROM taken k WHERE s.task_id = k.task_id AND s.step = k.step
        RETURNING k.id, k.task_id, k.step, k.letter
    ), recorded AS (
        INSERT INTO tasker.dead_letter_actions (action, letter, task_id, step, who, why, details)
        SELECT CASE WHEN p_result IS NULL THEN 'skip' ELSE 'resolve' END, c.id, c.task_id, c.letter ->> 'step', p_who, p_why,
               jsonb_build_object('result', p_result, 'letter', c.letter)
        FROM settled c
    )
    SELECT array_agg(c.id), array_agg(c.task_id), array_agg(c.step) INTO v_settled, v_tasks, v_steps FROM settled c;
    IF v_settled IS NOT NULL THEN
        PERFORM tasker.unblock_tasks(v_tasks);
        PERFORM tasker.advance_tasks(v_tasks, v_steps);
        PERFORM tasker.advance_undo(v_tasks);
        PERFORM tasker.look_at_children(v_tasks, v_steps);
    END IF;
    RETURN QUERY SELECT unnest(v_settled);
END
$$;

-- Deletes dead letters for good, after recording them whole; tasks that were blocked by them have failed, and those that were being undone are so
-- without that step. p_action: discard (a person's decision) or purge (retention's). Returns the ids of those it deleted.
-- Locks: the tasks in id order, then letters in order.
CREATE FUNCTION tasker.delete_dead_letters(p_ids text[], p_action text, p_who text, p_why text) RETURNS SETOF text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_deleted text[];
    v_tasks   uuid[];
    v_steps   smallint[];
BEGIN
    WITH taken AS MATERIALIZED (
        SELECT * FROM tasker.take_dead_letters(p_ids, false)
    ), recorded AS (
        INSERT INTO tasker.dead_letter_actions (action, letter, task_id, step, who, why, details)
        SELECT p_action, k.id, k.task_id, k.letter ->> 'step', p_who, p_why, jsonb_build_object('letter', k.letter) FROM taken k
    )
    SELECT array_agg(k.id), array_agg(k.task_id) FILTER (WHERE tasker.is_dead(k.letter)), array_agg(k.step) FILTER (WHERE tasker.is_dead(k.letter))
    INTO v_deleted, v_tasks, v_steps FROM taken k;
    UPDATE tasker.tasks t SET state = 'failed', finished_at = clock_timestamp() WHERE t.id = ANY (v_tasks) AND t.state = 'blocked';
    UPDATE tasker.steps s SET state = 'discarded' FROM unnest(v_tasks, v_steps) AS d(task, step)
    WHERE s.task_id = d.task AND s.step = d.step AND EXISTS (SELECT FROM tasker.tasks t WHERE t.id = d.task AND t.state = 'undoing');
    IF FOUND THEN
        PERFORM tasker.advance_undo(v_tasks);
    END IF;
    RETURN QUERY SELECT unnest(v_deleted);
END
$$;

-- Of the next p_limit letters of a namespace behind the number p_after, those that are older than their retention (the step's, else its template's, else its
-- namespace's); and the number of the last that was looked at; null: the rest is younger than any retention there.
CREATE FUNCTION tasker.expired_dead_letters(p_namespace text, p_after bigint, p_limit int, OUT expired text[], OUT last bigint)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_days   int := (SELECT n.retention_days FROM tasker.namespaces n WHERE n.name = p_namespace);
    v_before timestamptz := now() - interval '1 day' * least(v_days, (SELECT min(ts.retention_days) FROM tasker.template_steps ts WHERE ts.namespace = p_namespace));
BEGIN
    EXECUTE format($f$
        SELECT array_agg($1 || '/' || q.msg_id) FILTER (
                   WHERE q.enqueued_at < now() - coalesce(ts.retention_days, $2) * interval '1 day'),
               CASE WHEN count(*) = $4 THEN max(q.msg_id) FILTER (WHERE q.enqueued_at < $5) END
        FROM (SELECT * FROM pgmq.%I WHERE msg_id > $3 ORDER BY msg_id LIMIT $4) AS q
        LEFT JOIN LATERAL (SELECT * FROM tasker.tasks WHERE id = (q.message ->> 'task')::uuid AND q.enqueued_at < $5 OFFSET 0) AS t ON true
        LEFT JOIN tasker.template_steps ts ON ts.version_id = t.version_id AND ts.name = q.message ->> 'step'
        WHERE q.enqueued_at < $5
    $f$, pgmq.format_table_name(p_namespace || '_queue_dlq', 'q'))
    INTO expired, last USING p_namespace, v_days, p_after, p_limit, v_before;
END
$$;

-- Forgets that a namespace has letters, if it has none any more. Returns whether it did.
-- Locks: its dead-letter queue against new ones, without waiting: whoever sends one later notes it again.
CREATE FUNCTION tasker.forget_letterless(p_namespace text) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_table text := format('pgmq.%I', pgmq.format_table_name(p_namespace || '_queue_dlq', 'q'));
    v_any   boolean;
BEGIN
    EXECUTE format('SELECT EXISTS (SELECT FROM %s)', v_table) INTO v_any;
    IF v_any THEN
        RETURN false;
    END IF;
    BEGIN
        EXECUTE format('LOCK TABLE %s IN SHARE MODE NOWAIT', v_table);
    EXCEPTION WHEN lock_not_available THEN
        RETURN false;
    END;
    EXECUTE format('SELECT EXISTS (SELECT FROM %s)', v_table) INTO v_any;
    DELETE FROM tasker.lettered l USING tasker.namespaces n WHERE NOT v_any AND n.id = l.namespace_id AND n.name = p_namespace;
    RETURN FOUND;
END
$$;
