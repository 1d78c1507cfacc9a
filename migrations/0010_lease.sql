-- Leases: a worker's hold on a step. The message's vt is the lease's end and its read_ct is the fence:
-- whoever leases the message next raises read_ct, and every report of the former holder is then stale.

-- What a message says, if it is one of ours; a null task otherwise. Ours are small: one of more than 8 kB is somebody else's.
-- One row, as a table so that PostgreSQL writes it into the statement that asks.
CREATE FUNCTION tasker.message_identity(p_message jsonb) RETURNS TABLE (task uuid, step smallint)
LANGUAGE sql IMMUTABLE ROWS 1 BEGIN ATOMIC
    SELECT CASE WHEN ours THEN (p_message ->> 'task')::uuid END, CASE WHEN ours THEN (p_message ->> 'step')::smallint END
    FROM (SELECT coalesce(pg_column_size(p_message) <= 8192 AND jsonb_typeof(p_message -> 'step') = 'number' AND p_message ->> 'step' ~ '^[0-9]{1,4}$'
             AND p_message ->> 'task' ~ '^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$', false) AS ours) AS shape;
END;

-- A step as it is leased, with all that its handler needs, as far as it is not large. large: input and checkpoint are to be read (read_leased);
-- results are, too, where they are null, and have results_bytes altogether. fan_outs: the steps before whose results are those of many tasks
-- (read_children). trace: {context: the task's}, and if that is sampled {parents: the steps that it waited
-- for, and what they travelled as [[step, msg_id]], previous: what its last failed attempt travelled as}.
CREATE TYPE tasker.leased_step AS (
    msg_id bigint, fence int, task_id uuid, step smallint, name text, handler text, template text, version text,
    attempt int, max_attempts int, crashes int, kills int, timeout_ms bigint, large boolean, input text, config text, results text,
    results_bytes bigint, trace jsonb, checkpoint text, transactional boolean, shared boolean, waited float8, fan_outs text[]
);

-- The steps behind leased messages, as their handlers need them. A message that no runnable step's row stands behind is left out.
CREATE FUNCTION tasker.leased_steps(p_messages tasker.leased_message[]) RETURNS SETOF tasker.leased_step
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT m.msg_id, m.fence, m.task, m.step, ts.name, ts.handler, ts.template, ts.version,
           s.failures + 1,
           coalesce(s.max_attempts, ts.max_attempts, (SELECT n.max_attempts FROM tasker.namespaces n WHERE n.name = ts.namespace)),
           m.fence - 1 - s.released, s.kills::int, ts.timeout_ms,
           z.large, CASE WHEN NOT z.large THEN i.input END, ts.config::text,
           CASE WHEN ts.parents = '{}' THEN '{}' ELSE r.results END, coalesce(r.bytes, 0),
           CASE
               WHEN tasker.is_sampled(t.trace) THEN jsonb_build_object(
                   'context', t.trace, 'previous', s.errors -> -1 -> 'message_id', 'parents', r.messages)
               WHEN t.trace IS NOT NULL THEN jsonb_build_object('context', t.trace) END,
           CASE WHEN NOT z.large THEN i.checkpoint END, ts.transactional, ts.shared,
           extract(epoch FROM clock_timestamp() - s.enqueued_at)::float8, ts.fan_outs
    FROM unnest(p_messages) AS m
    -- OFFSET 0: each row by its whole key, whatever the planner believes of the sizes of these tables; and each size measured once.
    CROSS JOIN LATERAL (SELECT * FROM tasker.steps WHERE task_id = m.task AND step = m.step OFFSET 0) AS s
    CROSS JOIN LATERAL (SELECT * FROM tasker.tasks WHERE id = m.task OFFSET 0) AS t
    CROSS JOIN LATERAL (SELECT * FROM tasker.template_steps WHERE version_id = t.version_id AND step = m.step OFFSET 0) AS ts
    -- Those that are large are read when they are wanted: until the lease is committed, no worker has more in its memory than it can hold, so that
    -- whatever kills it is counted. As they are stored, by 8 kB; as text, by 64 kB, and 4 MB for all steps.
    CROSS JOIN LATERAL (
        SELECT CASE WHEN pg_column_size(t.input) <= 8192 THEN t.input::text END AS input,
               CASE WHEN pg_column_size(s.checkpoint) <= 8192 THEN s.checkpoint::text END AS checkpoint OFFSET 0) AS i
    CROSS JOIN LATERAL (
        SELECT i.input IS NULL OR (i.checkpoint IS NULL AND s.checkpoint IS NOT NULL)
               OR octet_length(i.input) + coalesce(octet_length(i.checkpoint), 0) > 4194304 / greatest(cardinality(p_messages), 64) AS large) AS z
    CROSS JOIN LATERAL (
        SELECT sum(ps.result_bytes) AS bytes,
               jsonb_agg(jsonb_build_array(ps.step, ps.msg_id)) FILTER (WHERE tasker.is_sampled(t.trace)) AS messages,
               CASE WHEN coalesce(sum(ps.result_bytes), 0) <= 32768 THEN
               (jsonb_object_agg(pts.name, ps.result) FILTER (WHERE coalesce(ps.result_bytes, 0) <= 32768 AND ps.skipped_because IS NULL))::text END AS results
        FROM tasker.template_steps pts
        CROSS JOIN LATERAL (SELECT * FROM tasker.steps WHERE task_id = m.task AND step = pts.step OFFSET 0) AS ps
        WHERE ts.parents <> '{}' AND pts.version_id = t.version_id AND pts.step = ANY (ts.parents)) AS r
    WHERE s.msg_id = m.msg_id AND s.state = 'enqueued' AND t.state IN ('running', 'blocked', 'failed', 'undoing')
    ORDER BY m.msg_id;
END;

-- Whether the session may work on this step.
CREATE FUNCTION tasker.may_work_on(p_task uuid, p_step smallint) RETURNS boolean
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT tasker.is_one_of('{tasker_worker, tasker_operate}') OR EXISTS (
        SELECT FROM tasker.tasks t JOIN tasker.template_steps ts ON ts.version_id = t.version_id AND ts.step = p_step
        WHERE t.id = p_task AND tasker.is_one_of(ARRAY['tasker_worker_of_' || ts.namespace]));
END;

-- Errors with TK008 unless the session may work for this queue's namespace, and, where it may not work for all, these messages stand for these steps:
-- a message of its own must not report another's step.
CREATE FUNCTION tasker.check_reporter(p_queue text, p_ids bigint[], p_tasks uuid[], p_steps smallint[], p_shared uuid[] DEFAULT '{}') RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_wrong boolean;
BEGIN
    IF tasker.is_one_of('{tasker_worker, tasker_operate}') THEN
        RETURN;
    END IF;
    PERFORM tasker.check_worker(ARRAY[left(p_queue, -6)]);
    EXECUTE format('SELECT EXISTS (SELECT FROM unnest($1, $2, $3) AS r(id, task, step) JOIN pgmq.%I q ON q.msg_id = r.id, '
                   'tasker.message_identity(q.message) AS i WHERE (i.task, i.step) IS DISTINCT FROM (r.task, r.step))',
                   pgmq.format_table_name(p_queue, 'q'))
    INTO v_wrong USING p_ids, p_tasks, p_steps;
    IF v_wrong OR NOT p_shared <@ p_tasks THEN
        RAISE EXCEPTION 'the role % may not report steps of others', session_user USING ERRCODE = 'TK008';
    END IF;
END
$$;

-- What was too large to travel with a step's lease.
CREATE FUNCTION tasker.read_leased(p_task uuid, p_step smallint, OUT input text, OUT checkpoint text)
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT t.input::text, s.checkpoint::text FROM tasker.tasks t JOIN tasker.steps s ON s.task_id = t.id AND s.step = p_step
    WHERE t.id = p_task AND tasker.may_work_on(p_task, p_step);
END;

-- Results of a task's steps by their names, of those that are complete or skipped, in order, as long as they have no more than p_bytes altogether
-- (null: all); of p_before, only those that it depends on.
CREATE FUNCTION tasker.read_results(p_task uuid, p_before smallint, p_names text[], p_bytes bigint DEFAULT NULL) RETURNS TABLE (name text, result text)
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT f.name, coalesce(f.result::text, 'null') FROM (
        SELECT ts.name, s.result, sum(s.result_bytes) OVER (ORDER BY ts.step) AS bytes
        FROM tasker.tasks t
        JOIN tasker.template_steps ts ON ts.version_id = t.version_id AND ts.name = ANY (p_names)
        CROSS JOIN LATERAL (SELECT * FROM tasker.steps WHERE task_id = t.id AND step = ts.step OFFSET 0) AS s
        WHERE CASE WHEN p_before IS NULL THEN tasker.is_one_of('{tasker_read, tasker_worker, tasker_operate}') ELSE tasker.may_work_on(p_task, p_before) END
          AND t.id = p_task AND (s.state IN ('complete', 'skipped') OR s.after_cancel = 'complete') AND s.skipped_because IS NULL AND (p_before IS NULL OR ts.step = ANY (
            SELECT unnest(b.parents) FROM tasker.template_steps b WHERE b.version_id = t.version_id AND b.step = p_before))) AS f
    WHERE p_bytes IS NULL OR coalesce(f.bytes, 0) <= p_bytes;
END;

-- The names of the steps that a step depends on, in order, but for those that were skipped.
CREATE FUNCTION tasker.names_before(p_task uuid, p_step smallint) RETURNS SETOF text
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT p.name FROM tasker.tasks t
    JOIN tasker.template_steps ts ON ts.version_id = t.version_id AND ts.step = p_step
    CROSS JOIN LATERAL unnest(ts.parents) AS b(step)
    CROSS JOIN LATERAL (SELECT * FROM tasker.template_steps WHERE version_id = t.version_id AND step = b.step OFFSET 0) AS p
    WHERE t.id = p_task AND tasker.may_work_on(p_task, p_step)
      AND NOT EXISTS (SELECT FROM tasker.steps s WHERE s.task_id = p_task AND s.step = b.step AND s.skipped_because IS NOT NULL)
    ORDER BY b.step;
END;

-- Leases the first p_limit visible messages of a queue. A worker that has room for more than there are admits tasks itself, and leases their
-- roots as it sends them: so a task that finds a worker idle waits for nobody else. Where tasks that it admits are traced, one more row comes last,
-- which has nothing but them, as trace (see admit_tasks).
-- p_unable: the worker has no handler for some kinds of step (see 0024_unhandled.sql). It leases none of these, and admits tasks only where nothing
-- waits, without leasing their roots unseen.
-- A message that is not ours, or names a task or step that is not there, goes to the dead-letter queue; one whose row disagrees is removed;
-- both are counted, neither is returned.
-- Locks: the messages, skipping those that another worker is leasing or reporting; then those of start_limited; then the rows of stale steps; then
-- those of admit_tasks.
CREATE FUNCTION tasker.lease_steps(p_queue text, p_worker int, p_limit int, p_lease interval, p_unable boolean DEFAULT false)
RETURNS SETOF tasker.leased_step
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_leased    tasker.leased_message[];
    v_kept      tasker.leased_message[];
    v_paused    boolean := EXISTS (SELECT FROM tasker.pauses);
    v_messages  jsonb[];
    v_runnable  int;
    v_room      int;
    v_namespace int;
    v_mark      bigint;
    v_traced    jsonb;
BEGIN
    PERFORM tasker.check_worker(ARRAY[left(p_queue, -6)]);
    IF v_paused AND tasker.is_paused(left(p_queue, -6)) THEN
        RETURN;
    END IF;
    SELECT n.id, m.message INTO v_namespace, v_mark
    FROM tasker.namespaces n JOIN tasker.marks m ON m.namespace_id = n.id WHERE n.queue = p_queue;
    IF p_unable THEN
        PERFORM tasker.hold_unhandled(p_queue, v_mark, p_worker);
        SELECT h.leased, h.messages INTO v_leased, v_messages FROM tasker.lease_handled(p_queue, v_mark, p_limit, p_lease, p_worker) AS h;
    ELSE
        EXECUTE format('SELECT * FROM tasker.%I($1, $2, $3, $4)', p_queue || '_lease')
        INTO v_leased, v_messages USING v_mark, p_limit, p_lease, p_worker;
    END IF;
    v_kept := v_leased;
    IF v_leased IS NOT NULL AND v_paused THEN
        v_kept := tasker.hold_leased(p_queue, v_kept);
    END IF;
    IF v_leased IS NOT NULL AND EXISTS (SELECT FROM tasker.limits) THEN
        v_kept := tasker.start_limited(p_queue, v_kept);
    END IF;
    IF cardinality(v_kept) < cardinality(v_leased) THEN
        v_messages := ARRAY(SELECT u.message FROM unnest(v_leased, v_messages) WITH ORDINALITY AS u(msg_id, fence, task, step, message, n)
                            WHERE u.msg_id = ANY (ARRAY(SELECT k.msg_id FROM unnest(v_kept) AS k)) ORDER BY u.n);
        v_leased := v_kept;
    END IF;
    IF v_leased IS NOT NULL THEN
        RETURN QUERY SELECT * FROM tasker.leased_steps(v_leased);
        GET DIAGNOSTICS v_runnable = ROW_COUNT;
        IF v_runnable < cardinality(v_leased) THEN
            PERFORM tasker.remove_unrunnable(p_queue, v_leased, v_messages);
        END IF;
    END IF;

    v_room := p_limit - coalesce(cardinality(v_leased), 0);
    IF p_unable THEN
        EXECUTE format('SELECT CASE WHEN tasker.%I($1) THEN 0 ELSE $2 END', p_queue || '_waits') INTO v_room USING v_mark - 1, v_room;
    END IF;
    IF v_room > 0 AND EXISTS (
        SELECT FROM tasker.members m WHERE m.id = p_worker AND m.left_at IS NULL AND m.lease_until > clock_timestamp())
    THEN
        SELECT a.taken, a.traced INTO v_leased, v_traced
        FROM tasker.admit_tasks(ARRAY[v_namespace], ARRAY[v_room], p_worker, v_room, 'infinity',
                                CASE WHEN NOT p_unable THEN ROW(p_queue, p_worker, v_room, p_lease)::tasker.taker END) AS a;
        RETURN QUERY SELECT * FROM tasker.leased_steps(v_leased);
        IF v_traced IS NOT NULL THEN
            RETURN QUERY SELECT * FROM jsonb_populate_record(NULL::tasker.leased_step, jsonb_build_object('trace', v_traced));
        END IF;
    END IF;
END
$$;

-- The other part of lease_steps: of messages that the caller has just leased, removes those that no step's row stands behind.
CREATE FUNCTION tasker.remove_unrunnable(p_queue text, p_leased tasker.leased_message[], p_messages jsonb[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_gone    bigint[];
    v_foreign jsonb[];
    v_tasks   uuid[];
    v_steps   smallint[];
BEGIN
    SELECT array_agg(u.msg_id),
           array_agg(jsonb_build_object('reason', u.reason, 'queue', p_queue, 'message', u.message) ORDER BY u.msg_id) FILTER (WHERE u.reason IS NOT NULL)
    INTO v_gone, v_foreign
    FROM (
        SELECT m.msg_id, m.message, CASE
            WHEN m.task IS NULL AND pg_column_size(m.message) > 8192 THEN 'payload_too_large'
            WHEN m.task IS NULL THEN 'not_a_step'
            WHEN t.id IS NULL THEN 'unknown_task'
            WHEN ts.step IS NULL THEN 'unknown_step' END AS reason
        FROM unnest(p_leased, p_messages) AS m(msg_id, fence, task, step, message)
        LEFT JOIN tasker.tasks t ON t.id = m.task
        LEFT JOIN tasker.template_steps ts ON ts.version_id = t.version_id AND ts.step = m.step
        LEFT JOIN tasker.steps s ON s.task_id = m.task AND s.step = m.step AND s.msg_id = m.msg_id AND s.state = 'enqueued'
        WHERE s.task_id IS NULL OR t.state NOT IN ('running', 'blocked', 'failed', 'undoing')) AS u;

    WITH cancelled AS (
        UPDATE tasker.steps s
        SET state = 'cancelled', finished_at = clock_timestamp(), after_cancel = CASE WHEN m.fence - 1 > s.released THEN 'unknown' END
        FROM unnest(p_leased) AS m
        JOIN tasker.tasks t ON t.id = m.task AND t.state NOT IN ('running', 'blocked', 'failed', 'undoing')
        WHERE s.task_id = m.task AND s.step = m.step AND s.msg_id = m.msg_id AND s.state IN ('enqueued', 'cancelling') AND m.msg_id = ANY (v_gone)
        RETURNING s.task_id, s.step
    )
    SELECT array_agg(c.task_id), array_agg(c.step) INTO v_tasks, v_steps FROM cancelled c;
    PERFORM tasker.release_permits(v_tasks, v_steps);
    PERFORM tasker.finish_cancelled(v_tasks);

    PERFORM pgmq.delete(p_queue, v_gone);
    PERFORM tasker.count_event('stale_messages', cardinality(v_gone) - coalesce(cardinality(v_foreign), 0));
    IF v_foreign IS NOT NULL THEN
        PERFORM pgmq.send_batch(p_queue || '_dlq', v_foreign);
        PERFORM tasker.note_letters(p_queue);
        PERFORM tasker.count_event('foreign_messages', cardinality(v_foreign));
    END IF;
END
$$;

-- After lease_steps has failed for its data: tries each of the first p_limit visible messages alone, and gives the step of one that cannot be leased
-- a certain end (end_barely), as 'unreadable'. Where no message is visible, what failed was a task on its way there: one is sent, to be looked at by
-- the next call. Returns the ids of the messages that are gone.
-- Locks: the messages, skipping those that another worker has; then, of one that is given up, its task and its step. The task comes after the
-- message, but is not waited for: where somebody has it, the message is left.
CREATE FUNCTION tasker.give_up_unreadable(p_queue text, p_worker int, p_limit int) RETURNS bigint[]
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_table     text := format('pgmq.%I', pgmq.format_table_name(p_queue, 'q'));
    v_namespace int;
    v_mark      bigint;
    v_ids       bigint[];
    v_id        bigint;
    v_task      uuid;
    v_step      smallint;
    v_state     text;
    v_gone      bigint[] := '{}';
BEGIN
    PERFORM tasker.check_worker(ARRAY[left(p_queue, -6)]);
    SELECT n.id, m.message INTO v_namespace, v_mark
    FROM tasker.namespaces n JOIN tasker.marks m ON m.namespace_id = n.id WHERE n.queue = p_queue;
    EXECUTE format('SELECT array_agg(h.msg_id) FROM (SELECT msg_id FROM %s WHERE msg_id >= $1 AND vt <= clock_timestamp() '
                   'ORDER BY msg_id LIMIT $2 FOR UPDATE SKIP LOCKED) AS h', v_table)
    INTO v_ids USING v_mark, p_limit;
    IF v_ids IS NULL THEN
        PERFORM tasker.admit_tasks(ARRAY[v_namespace], ARRAY[1], p_worker, 1, 'infinity');
        RETURN v_gone;
    END IF;
    FOREACH v_id IN ARRAY v_ids LOOP
        v_task := NULL;
        BEGIN
            EXECUTE format('SELECT i.task, i.step FROM %s q, tasker.message_identity(q.message) AS i WHERE q.msg_id = $1', v_table)
            INTO v_task, v_step USING v_id;
            EXECUTE format('SELECT q.read_ct + 1 FROM %s q WHERE q.msg_id = $1', v_table) USING v_id;
            PERFORM tasker.leased_steps(ARRAY[ROW(v_id, 1, v_task, v_step)::tasker.leased_message]);
            CONTINUE;
        EXCEPTION WHEN data_exception OR program_limit_exceeded OR internal_error OR data_corrupted THEN
            v_state := SQLSTATE;
        END;
        IF v_task IS NOT NULL THEN
            PERFORM FROM tasker.tasks t WHERE t.id = v_task FOR NO KEY UPDATE SKIP LOCKED;
            CONTINUE WHEN NOT FOUND;
            PERFORM tasker.end_barely(p_queue, v_id, v_task, v_step, 'unreadable', 'it cannot be handed to a worker (SQLSTATE ' || v_state || ')');
        END IF;
        EXECUTE format('DELETE FROM %s WHERE msg_id = $1', v_table) USING v_id;
        v_gone := v_gone || v_id;
    END LOOP;
    PERFORM tasker.count_event('unreadable_steps', cardinality(v_gone));
    RETURN v_gone;
END
$$;

-- Renews leases. Returns the messages that are no longer the caller's, to be abandoned; and those whose task was cancelled, which are still its own:
-- their handlers are to come to an end.
-- Locks: the messages, skipping those whose completion or failure is being committed at this moment.
CREATE FUNCTION tasker.extend_leases(p_queue text, p_ids bigint[], p_fences int[], p_tasks uuid[], p_steps smallint[], p_lease interval)
RETURNS TABLE (id bigint, cancelled boolean)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM tasker.check_worker(ARRAY[left(p_queue, -6)]);
    RETURN QUERY EXECUTE format('SELECT * FROM tasker.%I($1, $2, $3, $4, $5)', p_queue || '_extend') USING p_ids, p_fences, p_tasks, p_steps, p_lease;
END
$$;

-- The names of the members that have these steps, by their messages, or reported them last; null where nobody does. In order.
CREATE FUNCTION tasker.lease_holders(p_queue text, p_ids bigint[], p_tasks uuid[], p_steps smallint[]) RETURNS SETOF text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM tasker.check_worker(ARRAY[left(p_queue, -6)]);
    RETURN QUERY EXECUTE format($f$
        SELECT m.name FROM unnest($1, $2, $3) WITH ORDINALITY AS l(id, task, step, n)
        LEFT JOIN pgmq.%I q ON q.msg_id = l.id
        LEFT JOIN tasker.steps s ON s.task_id = l.task AND s.step = l.step
        LEFT JOIN tasker.members m ON m.id = coalesce((q.headers ->> 'worker')::int, s.worker)
        ORDER BY l.n
    $f$, pgmq.format_table_name(p_queue, 'q')) USING p_ids, p_tasks, p_steps;
END
$$;

-- A step whose lease ran out more than once is a suspect: it may have taken its workers down. It may as well have waited beside the one
-- that did, so workers run suspects one at a time, and count here, before they begin, what is a kill unless they are heard of again.
-- False: the lease is no longer the caller's. Locks: the message, then its step.
CREATE FUNCTION tasker.begin_suspect(p_queue text, p_id bigint, p_fence int, p_task uuid, p_step smallint) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_held bigint[];
BEGIN
    PERFORM tasker.check_reporter(p_queue, ARRAY[p_id], ARRAY[p_task], ARRAY[p_step]);
    EXECUTE format('SELECT tasker.%I($1, $2, $3, $4)', p_queue || '_hold')
    INTO v_held USING ARRAY[p_id], ARRAY[p_fence], ARRAY[p_task], ARRAY[p_step];
    UPDATE tasker.steps s SET kills = s.kills + 1, suspected = p_fence
    WHERE s.task_id = p_task AND s.step = p_step AND s.msg_id = ANY (v_held);
    RETURN FOUND;
END
$$;

-- Records what handlers say while they run: their progress, and their checkpoints; null changes nothing.
-- Returns the messages that are no longer the caller's, for which nothing was recorded.
-- Locks: the messages in order, then their steps. Reports and hand-backs take the same order.
CREATE FUNCTION tasker.record_progress(
    p_queue text, p_ids bigint[], p_fences int[], p_tasks uuid[], p_steps smallint[], p_progress jsonb[], p_checkpoints jsonb[]
) RETURNS SETOF bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_held bigint[];
BEGIN
    PERFORM tasker.check_reporter(p_queue, p_ids, p_tasks, p_steps);
    EXECUTE format('SELECT tasker.%I($1, $2, $3, $4)', p_queue || '_hold') INTO v_held USING p_ids, p_fences, p_tasks, p_steps;
    UPDATE tasker.steps s SET progress = coalesce(r.progress, s.progress), checkpoint = coalesce(r.checkpoint, s.checkpoint)
    FROM (SELECT u.progress, u.checkpoint, h.place FROM unnest(p_ids, p_tasks, p_steps, p_progress, p_checkpoints) AS u(id, task, step, progress, checkpoint)
          CROSS JOIN LATERAL (SELECT ctid AS place FROM tasker.steps WHERE task_id = u.task AND step = u.step AND msg_id = u.id OFFSET 0) AS h
          WHERE u.id = ANY (v_held)) AS r
    WHERE s.ctid = r.place;
    RETURN QUERY SELECT r.id FROM unnest(p_ids) AS r(id) WHERE r.id <> ALL (coalesce(v_held, '{}'));
END
$$;

-- Hands back leased messages whose handlers have not begun, or were stopped by a shutdown: visible at once, and not a crash.
-- Locks: the messages, then their steps; nobody who holds such a step waits for its message (reports delete the message first).
CREATE FUNCTION tasker.release_steps(p_queue text, p_ids bigint[], p_fences int[], p_tasks uuid[], p_steps smallint[]) RETURNS int
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_held     bigint[];
    v_released int;
BEGIN
    PERFORM tasker.check_worker(ARRAY[left(p_queue, -6)]);
    EXECUTE format('SELECT tasker.%I($1, $2, $3, $4)', p_queue || '_hold') INTO v_held USING p_ids, p_fences, p_tasks, p_steps;
    EXECUTE format($f$
        WITH visible AS (
            UPDATE pgmq.%I q SET vt = clock_timestamp() WHERE q.msg_id = ANY ($1) RETURNING q.msg_id, q.read_ct, q.message
        )
        UPDATE tasker.steps s SET released = released + 1, kills = kills - (suspected IS NOT DISTINCT FROM v.read_ct)::int
        FROM (SELECT n.read_ct, h.place FROM visible n, tasker.message_identity(n.message) AS i
              CROSS JOIN LATERAL (SELECT ctid AS place FROM tasker.steps WHERE task_id = i.task AND step = i.step AND msg_id = n.msg_id OFFSET 0) AS h) AS v
        WHERE s.ctid = v.place
    $f$, pgmq.format_table_name(p_queue, 'q')) USING v_held;
    GET DIAGNOSTICS v_released = ROW_COUNT;
    IF v_released > 0 THEN
        PERFORM tasker.call('tasker_steps', p_queue, v_released);
    END IF;
    RETURN v_released;
END
$$;

-- Counts leases that ran out (their holder died or is cut off) in the queues of the next p_limit namespaces after p_after that are not asleep, and
-- wakes their workers. The messages are visible again by themselves; this only makes the wait short and the event seen. A last row without a
-- namespace says where to go on, if there are more.
CREATE FUNCTION tasker.wake_expired_leases(p_after int DEFAULT 0, p_limit int DEFAULT 50) RETURNS TABLE (namespace text, expired int, last int)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_namespace tasker.namespaces;
    v_seen      int := 0;
BEGIN
    FOR v_namespace IN SELECT * FROM tasker.awake_namespaces(p_after, p_limit) LOOP
        v_seen := v_seen + 1;
        EXECUTE format('SELECT count(*) FILTER (WHERE read_ct > 0 AND vt <= clock_timestamp()) '
                       'FROM (SELECT msg_id, read_ct, vt FROM pgmq.%I WHERE msg_id >= $1 ORDER BY msg_id LIMIT 1000) AS live',
                       pgmq.format_table_name(v_namespace.queue, 'q'))
        INTO expired USING (SELECT m.message FROM tasker.marks m WHERE m.namespace_id = v_namespace.id);
        IF expired > 0 THEN
            PERFORM tasker.call('tasker_steps', v_namespace.queue, expired);
            namespace := v_namespace.name;
            RETURN NEXT;
        END IF;
    END LOOP;
    IF v_seen = p_limit THEN
        RETURN QUERY SELECT NULL::text, NULL::int, v_namespace.id;
    END IF;
END
$$;
