-- Reconciliation: finds what no transaction of ours leaves behind, mends it, and counts it. A queue that was purged by hand, a restore that
-- is older in one table than in another, or a bug.

-- Ends tasks whose version is not there: nobody can say which steps they have. Each becomes a dead letter of its namespace. Returns how many.
-- Locks: the tasks in id order.
CREATE FUNCTION tasker.end_unrunnable(p_tasks uuid[]) RETURNS int
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_ended uuid[];
    v_parents  uuid[];
    v_of_steps smallint[];
    v_queue text;
    v_letters jsonb[];
BEGIN
    PERFORM 1 FROM tasker.tasks t WHERE t.id = ANY (p_tasks) ORDER BY t.id FOR NO KEY UPDATE;
    PERFORM tasker.forget_dead_children(p_tasks);
    WITH ended AS (
        UPDATE tasker.tasks t SET state = 'failed', claim_order = NULL, due_at = NULL, look_at = NULL, finished_at = clock_timestamp()
        WHERE t.id = ANY (p_tasks) AND t.finished_at IS NULL RETURNING t.id, t.parent_id, t.parent_step
    )
    SELECT array_agg(e.id), array_agg(e.parent_id), array_agg(e.parent_step) INTO v_ended, v_parents, v_of_steps FROM ended e;
    PERFORM tasker.note_children(v_parents, v_of_steps, 0, 1);
    FOR v_queue, v_letters IN
        SELECT n.queue, array_agg(jsonb_build_object('reason', 'unknown_version', 'queue', n.queue, 'task', t.id, 'version_id', t.version_id))
        FROM tasker.tasks t JOIN tasker.namespaces n ON n.id = t.namespace_id WHERE t.id = ANY (v_ended) GROUP BY n.queue ORDER BY n.queue
    LOOP
        PERFORM pgmq.send_batch(v_queue || '_dlq', v_letters);
        PERFORM tasker.note_letters(v_queue);
        PERFORM tasker.notify('tasker_dead_letters', v_queue);
    END LOOP;
    PERFORM tasker.count_event('unrunnable_tasks', cardinality(v_ended));
    RETURN coalesce(cardinality(v_ended), 0);
END
$$;

-- Sends a message again for every step of these tasks (p_queue: that travels through this queue) that is enqueued and has none. Returns how many.
-- Locks: the tasks that it mends in id order, then their steps.
CREATE FUNCTION tasker.send_lost(p_tasks uuid[], p_queue text DEFAULT NULL, OUT sent int)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_queue    text;
    v_ids      uuid[];
    v_numbers  smallint[];
    v_old      bigint[];
    v_attempts int[];
    v_messages jsonb[];
    v_sent     int;
BEGIN
    sent := 0;
    FOR v_queue, v_ids, v_numbers, v_old, v_attempts IN
        SELECT ts.queue, array_agg(s.task_id), array_agg(s.step), array_agg(s.msg_id), array_agg(s.failures + 1)
        FROM unnest(p_tasks) AS l(task)
        CROSS JOIN LATERAL (SELECT * FROM tasker.tasks WHERE id = l.task OFFSET 0) AS t
        CROSS JOIN LATERAL (SELECT * FROM tasker.steps WHERE task_id = l.task OFFSET 0) AS s
        JOIN tasker.template_steps ts ON ts.version_id = t.version_id AND ts.step = s.step
        WHERE s.state = 'enqueued' AND ts.queue = coalesce(p_queue, ts.queue)
          AND NOT EXISTS (SELECT FROM tasker.broken_queues b WHERE b.queue = ts.queue)
        GROUP BY ts.queue ORDER BY ts.queue
    LOOP
        EXECUTE format($f$
            SELECT array_agg(s.task_id), array_agg(s.step), array_agg(s.msg_id), array_agg(s.failures + 1)
            FROM tasker.steps s JOIN unnest($1, $2, $3) AS e(task, step, msg_id) ON s.task_id = e.task AND s.step = e.step AND s.msg_id = e.msg_id
            WHERE s.state = 'enqueued' AND NOT EXISTS (
                SELECT FROM pgmq.%I q WHERE q.msg_id = s.msg_id AND tasker.is_of_step(q.message, s.task_id, s.step))
        $f$, pgmq.format_table_name(v_queue, 'q'))
        INTO v_ids, v_numbers, v_old, v_attempts USING v_ids, v_numbers, v_old;
        IF v_ids IS NOT NULL THEN
            PERFORM 1 FROM tasker.tasks t WHERE t.id = ANY (v_ids) ORDER BY t.id FOR NO KEY UPDATE;
            -- One that was settled meanwhile gets a message that is stale, and is removed when it is leased.
            v_messages := ARRAY(SELECT jsonb_build_object('task', e.task, 'step', e.step, 'attempt', e.attempt)
                                FROM unnest(v_ids, v_numbers, v_attempts) WITH ORDINALITY AS e(task, step, attempt, n) ORDER BY e.n);
            UPDATE tasker.steps s SET msg_id = e.new, released = 0, kills = 0, suspected = NULL
            FROM unnest(v_ids, v_numbers, v_old, ARRAY(SELECT pgmq.send_batch(v_queue, v_messages))) AS e(task, step, old, new)
            WHERE s.task_id = e.task AND s.step = e.step AND s.msg_id = e.old AND s.state = 'enqueued';
            GET DIAGNOSTICS v_sent = ROW_COUNT;
            sent := sent + v_sent;
            PERFORM tasker.notify('tasker_steps', v_queue);
        END IF;
    END LOOP;
END
$$;

-- Looks at p_limit tasks after p_after that began more than a minute ago, and
--   sends a message again for every step that is enqueued and has none, or seeks its permits again;
--   releases the permits of steps that are not enqueued;
--   counts the children of every step whose work is other tasks again, and cancels those that nobody waits for;
--   ends every task that cannot run: its version is not there;
--   advances every task that stands still: a step is ready and not enqueued, or all are complete and the task is not; or so of what undoes it.
-- Returns how many steps and tasks it mended, and the last task it looked at (null: there were no more).
-- Every change of ours is one transaction, so what one statement sees is whole: what is missing there is missing.
-- Locks: its turn (who does not get it leaves the work to who has it); then the tasks it mends in id order, then their steps.
CREATE FUNCTION tasker.reconcile(p_after uuid, p_limit int, OUT mended int, OUT last uuid)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_lost_tasks uuid[];
    v_tasks    uuid[];
    v_ids      uuid[];
    v_numbers  smallint[];
    v_mended   int;
BEGIN
    mended := 0;
    IF NOT tasker.take_turn('tasker.turn_reconcile') THEN
        RETURN;
    END IF;
    SELECT CASE WHEN count(*) = p_limit THEN max(c.id::text)::uuid END, array_agg(c.id ORDER BY c.id) FILTER (
        WHERE c.finished_at IS NULL AND NOT EXISTS (SELECT FROM tasker.template_versions tv WHERE tv.id = c.version_id)
          AND NOT EXISTS (SELECT FROM tasker.broken_queues b WHERE b.namespace_id = c.namespace_id)), array_agg(c.id ORDER BY c.id) FILTER (
        WHERE c.state IN ('running', 'blocked', 'failed', 'undoing') AND c.started_at < clock_timestamp() - interval '1 minute')
    INTO last, v_lost_tasks, v_tasks
    FROM (SELECT t.id, t.version_id, t.namespace_id, t.state, t.started_at, t.finished_at FROM tasker.tasks t WHERE t.id > p_after ORDER BY t.id LIMIT p_limit) AS c;

    mended := mended + tasker.end_unrunnable(v_lost_tasks);

    mended := mended + tasker.send_lost(v_tasks);

    mended := mended + tasker.recount_children(v_tasks);

    IF EXISTS (SELECT FROM tasker.limits) OR EXISTS (SELECT FROM tasker.permits) THEN
        mended := mended + tasker.reconcile_permits(v_tasks);
    END IF;

    PERFORM 1 FROM tasker.tasks t WHERE t.id = ANY (ARRAY(SELECT s.task_id FROM tasker.standing_still(v_tasks) s)) ORDER BY t.id FOR NO KEY UPDATE;
    SELECT array_agg(s.task_id), array_agg(s.step), count(DISTINCT s.task_id) INTO v_ids, v_numbers, v_mended
    FROM tasker.standing_still(v_tasks) s;
    IF v_mended > 0 THEN
        PERFORM tasker.advance_tasks(v_ids, v_numbers);
        mended := mended + v_mended;
    END IF;
    v_ids := ARRAY(SELECT t.id FROM tasker.tasks t WHERE t.id = ANY (v_tasks) AND t.state = 'undoing' ORDER BY t.id FOR NO KEY UPDATE);
    IF v_ids <> '{}' THEN
        mended := mended + tasker.advance_undo(v_ids);
    END IF;
    PERFORM tasker.count_event('reconciled', mended);
END
$$;

-- Of these tasks the complete or skipped steps after which nothing happened: a child is ready and has no row, or, after a last step, the
-- task has not ended though all its last steps have.
CREATE FUNCTION tasker.standing_still(p_tasks uuid[]) RETURNS TABLE (task_id uuid, step smallint)
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT s.task_id, s.step
    FROM unnest(p_tasks) AS l(task)
    -- OFFSET 0: from the tasks that are asked for, whatever the planner believes of the sizes of these tables.
    CROSS JOIN LATERAL (SELECT * FROM tasker.tasks WHERE id = l.task OFFSET 0) AS t
    CROSS JOIN LATERAL (SELECT * FROM tasker.steps WHERE task_id = l.task OFFSET 0) AS s
    JOIN tasker.template_versions tv ON tv.id = t.version_id
    JOIN tasker.template_steps ts ON ts.version_id = t.version_id AND ts.step = s.step
    WHERE t.state IN ('running', 'blocked', 'failed') AND t.undo_as IS NULL AND s.state IN ('complete', 'skipped') AND (
        EXISTS (
            SELECT 1 FROM tasker.template_steps c
            WHERE c.version_id = t.version_id AND c.step = ANY (ts.children)
              AND NOT EXISTS (SELECT 1 FROM tasker.steps cs WHERE cs.task_id = t.id AND cs.step = c.step)
              AND cardinality(c.parents) = (
                  SELECT count(*) FROM tasker.steps ps
                  WHERE ps.task_id = t.id AND ps.step = ANY (c.parents) AND ps.state IN ('complete', 'skipped')))
        OR (s.step = ANY (tv.sinks) AND t.state <> 'failed' AND cardinality(tv.sinks) = (
            SELECT count(*) FROM tasker.steps ls
            WHERE ls.task_id = t.id AND ls.step = ANY (tv.sinks) AND ls.state IN ('complete', 'skipped'))));
END;

-- What of p_limit tasks after p_after is not as our transactions leave it, as [{what, task, step}], and the last task that it looked at (null: there were no
-- more). Changes nothing: the reconciler mends what it can.
CREATE FUNCTION tasker.find_faults(p_after uuid, p_limit int, OUT faults jsonb, OUT last uuid)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_unknown  uuid[];
    v_tasks    uuid[];
    v_queue    text;
    v_ids      uuid[];
    v_numbers  smallint[];
    v_found    jsonb;
BEGIN
    SELECT CASE WHEN count(*) = p_limit THEN max(c.id::text)::uuid END, array_agg(c.id), array_agg(c.id) FILTER (
        WHERE c.finished_at IS NULL AND NOT EXISTS (SELECT FROM tasker.template_versions tv WHERE tv.id = c.version_id))
    INTO last, v_tasks, v_unknown
    FROM (SELECT t.id, t.version_id, t.finished_at FROM tasker.tasks t WHERE t.id > p_after ORDER BY t.id LIMIT p_limit) AS c;
    faults := coalesce((SELECT jsonb_agg(jsonb_build_object('what', 'its version is not there', 'task', u.id)) FROM unnest(v_unknown) AS u(id)), '[]');
    FOR v_queue, v_ids, v_numbers IN
        SELECT ts.queue, array_agg(s.task_id), array_agg(s.step)
        FROM unnest(v_tasks) AS l(task)
        CROSS JOIN LATERAL (SELECT * FROM tasker.tasks WHERE id = l.task OFFSET 0) AS t
        CROSS JOIN LATERAL (SELECT * FROM tasker.steps WHERE task_id = l.task AND state = 'enqueued' OFFSET 0) AS s
        JOIN tasker.template_steps ts ON ts.version_id = t.version_id AND ts.step = s.step
        WHERE NOT EXISTS (SELECT FROM tasker.broken_queues b WHERE b.queue = ts.queue)
        GROUP BY ts.queue ORDER BY ts.queue
    LOOP
        EXECUTE format($f$
            SELECT jsonb_agg(jsonb_build_object('what', 'its message is not there', 'task', s.task_id, 'step', ts.name))
            FROM unnest($1, $2) AS e(task, step)
            CROSS JOIN LATERAL (SELECT * FROM tasker.steps WHERE task_id = e.task AND step = e.step AND state = 'enqueued' OFFSET 0) AS s
            CROSS JOIN LATERAL (SELECT * FROM tasker.tasks WHERE id = e.task OFFSET 0) AS t
            JOIN tasker.template_steps ts ON ts.version_id = t.version_id AND ts.step = s.step
            WHERE NOT EXISTS (SELECT FROM pgmq.%I q WHERE q.msg_id = s.msg_id AND tasker.is_of_step(q.message, s.task_id, s.step))
        $f$, pgmq.format_table_name(v_queue, 'q'))
        INTO v_found USING v_ids, v_numbers;
        faults := faults || coalesce(v_found, '[]');
    END LOOP;
    SELECT jsonb_agg(jsonb_build_object('what', 'it stands still', 'task', s.task_id)) INTO v_found
    FROM (SELECT DISTINCT task_id FROM tasker.standing_still(v_tasks)) AS s;
    faults := faults || coalesce(v_found, '[]');
END
$$;

-- What of the queues is not as our transactions leave it, as [{what, queue, message}], of the first p_limit messages of each: what stands for no step, and
-- numbers that will be given out a second time.
CREATE FUNCTION tasker.find_queue_faults(p_limit int) RETURNS jsonb
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_queue  text;
    v_table  text;
    v_found  jsonb;
    v_faults jsonb := '[]';
BEGIN
    FOR v_queue IN SELECT n.queue FROM tasker.namespaces n
                   WHERE NOT EXISTS (SELECT FROM tasker.broken_queues b WHERE b.namespace_id = n.id) ORDER BY n.queue
    LOOP
        v_table := format('pgmq.%I', pgmq.format_table_name(v_queue, 'q'));
        EXECUTE format($f$
            SELECT jsonb_agg(jsonb_build_object('what', 'it stands for no step', 'queue', $1, 'message', h.msg_id))
            FROM (SELECT * FROM %1$s ORDER BY msg_id LIMIT $2) AS h CROSS JOIN LATERAL tasker.message_identity(h.message) AS i
            WHERE NOT EXISTS (SELECT FROM tasker.steps s WHERE s.task_id = i.task AND s.step = i.step AND s.msg_id = h.msg_id
                                                           AND s.state IN ('enqueued', 'cancelling'))
        $f$, v_table) INTO v_found USING v_queue, p_limit;
        v_faults := v_faults || coalesce(v_found, '[]');
        EXECUTE format($f$
            SELECT jsonb_agg(jsonb_build_object('what', 'numbers up to its own will be given out again', 'queue', $1, 'message', m.last))
            FROM (SELECT max(msg_id) AS last FROM %1$s) AS m
            WHERE m.last > coalesce(pg_sequence_last_value(pg_get_serial_sequence(%1$L, 'msg_id')::regclass), 0)
        $f$, v_table) INTO v_found USING v_queue;
        v_faults := v_faults || coalesce(v_found, '[]');
    END LOOP;
    RETURN v_faults || coalesce((
        SELECT jsonb_agg(jsonb_build_object('what', 'it cannot be worked with', 'queue', n.queue)) FROM tasker.namespaces n
        WHERE n.name = ANY (ARRAY(SELECT tasker.damaged_namespaces()))), '[]');
END
$$;
