-- Cancellation. What nobody runs ends at once. A handler that is running learns of it: at once where LISTEN works, at its next heartbeat otherwise.
-- Until it has ended, or its lease has, its step and its task are cancelling; what became of it is the step's last word (steps.after_cancel), and
-- decides nothing any more.

-- Whether a step of this task runs, or is to.
CREATE FUNCTION tasker.is_open(p_task uuid) RETURNS boolean
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT EXISTS (SELECT FROM tasker.steps s WHERE s.task_id = p_task AND s.state IN ('enqueued', 'waiting_retry', 'waiting', 'cancelling'));
END;

-- Of these tasks those that are blocked, and somebody's children, are no longer counted as dead: they are about to end in another way.
-- Locks: the caller's, who has those of the tasks.
CREATE FUNCTION tasker.forget_dead_children(p_tasks uuid[]) RETURNS void
LANGUAGE sql BEGIN ATOMIC
    SELECT tasker.note_children(array_agg(t.parent_id), array_agg(t.parent_step), 0, -1) FROM tasker.tasks t
    WHERE t.id = ANY (p_tasks) AND t.state = 'blocked' AND t.parent_id IS NOT NULL HAVING count(*) > 0;
END;

-- Cancels the tasks that have not ended, and has their children cancelled (see move_fan_out). Returns those it cancelled. A child that is cancelled is
-- dead for its parent: nobody has its result.
-- With p_undo what they did is undone then (see 0032_undo.sql), also of those that have ended, but for children: theirs is undone with their parent's.
-- Locks: the tasks in id order; then those of end_cancelling.
CREATE FUNCTION tasker.cancel_tasks(p_tasks uuid[], p_undo boolean DEFAULT false) RETURNS SETOF uuid
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_cancelled uuid[];
    v_parents   uuid[];
    v_of_steps  smallint[];
BEGIN
    PERFORM 1 FROM tasker.tasks t WHERE t.id = ANY (p_tasks) ORDER BY t.id FOR NO KEY UPDATE;
    PERFORM tasker.forget_dead_children(p_tasks);
    WITH cancelled AS (
        UPDATE tasker.tasks t
        SET state = CASE WHEN p_undo OR tasker.is_open(t.id) THEN 'cancelling' ELSE 'cancelled' END::tasker.task_state, claim_order = NULL, due_at = NULL,
            look_at = NULL, finished_at = CASE WHEN NOT (p_undo OR tasker.is_open(t.id)) THEN clock_timestamp() END,
            undo_as = CASE WHEN p_undo THEN CASE WHEN t.state IN ('failed', 'discarded') THEN t.state ELSE 'cancelled' END END
        WHERE t.id = ANY (p_tasks) AND CASE
            WHEN t.state IN ('pending', 'running', 'waiting', 'blocked', 'paused') THEN true
            ELSE p_undo AND t.undo_as IS NULL AND (
                t.state = 'cancelling' OR t.parent_id IS NULL OR EXISTS (SELECT FROM tasker.tasks p WHERE p.id = t.parent_id AND p.state = 'undoing')) END
        RETURNING t.id, t.parent_id, t.parent_step, t.state
    )
    SELECT array_agg(c.id), array_agg(c.parent_id) FILTER (WHERE c.state = 'cancelled'), array_agg(c.parent_step) FILTER (WHERE c.state = 'cancelled')
    INTO v_cancelled, v_parents, v_of_steps FROM cancelled c;
    PERFORM tasker.note_children(v_parents, v_of_steps, 0, 1);
    PERFORM tasker.end_cancelling(v_cancelled);
    -- Workers look at their leases at once.
    PERFORM tasker.notify('tasker_cancelled', '');
    RETURN QUERY SELECT unnest(v_cancelled);
END
$$;

-- Of those of these tasks that are cancelling: ends the steps that nobody has leased, tells those who have (by the message's headers), and ends the
-- tasks of which no step is left. The others are looked at again in a second (expire_tasks). Of a step that was leased before and never heard of
-- again, it is unknown what became.
-- Locks: the caller's, who has those of the tasks; then messages and steps, skipping what is locked: that is being leased or reported at this moment.
-- Whatever such a report still enqueues is removed when it is leased, because its task is no longer running.
CREATE FUNCTION tasker.end_cancelling(p_tasks uuid[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_queue    text;
    v_ids      bigint[];
    v_of_tasks uuid[];
    v_of_steps smallint[];
    v_held     bigint[];
    v_fences   int[];
    v_running  boolean[];
    v_tasks    uuid[];
    v_steps    smallint[];
    v_runs     boolean[];
    v_leases   int[];
BEGIN
    -- Before any of its steps, as free_replays does.
    DELETE FROM tasker.held_replays h
    WHERE h.task_id = ANY (p_tasks) AND EXISTS (SELECT FROM tasker.tasks t WHERE t.id = h.task_id AND t.state = 'cancelling');
    -- Without a message, or with one that nobody can look at: whoever had it may have begun.
    -- A step whose work is other tasks is cancelling as long as these are.
    SELECT coalesce(array_agg(s.task_id), '{}'), coalesce(array_agg(s.step), '{}'),
           coalesce(array_agg(coalesce(f.ended + f.dead < f.created + f.pages OR f.cancelled < f.created, false)), '{}'),
           coalesce(array_agg(CASE WHEN s.msg_id IS NULL THEN 0 ELSE 32767 END), '{}')
    INTO v_tasks, v_steps, v_runs, v_leases
    FROM tasker.steps s
    JOIN tasker.tasks t ON t.id = s.task_id AND t.state = 'cancelling'
    JOIN tasker.template_steps ts ON ts.version_id = t.version_id AND ts.step = s.step
    LEFT JOIN tasker.fan_outs f ON f.task_id = s.task_id AND f.step = s.step
    WHERE s.task_id = ANY (p_tasks) AND (s.state IN ('waiting_retry', 'waiting') OR s.state IN ('enqueued', 'cancelling') AND (
        s.msg_id IS NULL OR EXISTS (SELECT FROM tasker.broken_queues b WHERE b.queue = ts.queue)));

    FOR v_queue, v_ids, v_of_tasks, v_of_steps IN
        SELECT ts.queue, array_agg(s.msg_id), array_agg(s.task_id), array_agg(s.step)
        FROM tasker.steps s
        JOIN tasker.tasks t ON t.id = s.task_id AND t.state = 'cancelling'
        JOIN tasker.template_steps ts ON ts.version_id = t.version_id AND ts.step = s.step
        WHERE s.task_id = ANY (p_tasks) AND s.state IN ('enqueued', 'cancelling') AND s.msg_id IS NOT NULL
          AND NOT EXISTS (SELECT FROM tasker.broken_queues b WHERE b.queue = ts.queue)
        GROUP BY ts.queue ORDER BY ts.queue
    LOOP
        EXECUTE format($f$
            WITH there AS MATERIALIZED (
                SELECT q.msg_id, q.read_ct FROM pgmq.%1$I q WHERE q.msg_id = ANY ($1)
            ), held AS MATERIALIZED (
                SELECT q.msg_id, q.read_ct, q.read_ct > 0 AND q.vt > clock_timestamp() AS leased
                FROM pgmq.%1$I q WHERE q.msg_id = ANY ($1) FOR UPDATE SKIP LOCKED
            ), told AS (
                UPDATE pgmq.%1$I q SET headers = q.headers || '{"cancelled": true}'
                WHERE q.msg_id = ANY (ARRAY(SELECT h.msg_id FROM held h WHERE h.leased)) AND NOT q.headers ? 'cancelled'
            ), gone AS (
                DELETE FROM pgmq.%1$I q WHERE q.msg_id = ANY (ARRAY(SELECT h.msg_id FROM held h WHERE NOT h.leased))
            )
            SELECT array_agg(t.msg_id), array_agg(t.read_ct), array_agg(coalesce(h.leased, true)) FROM there t LEFT JOIN held h USING (msg_id)
        $f$, pgmq.format_table_name(v_queue, 'q')) INTO v_held, v_fences, v_running USING v_ids;
        -- What has no message any more was lost with it.
        SELECT v_tasks || array_agg(s.task), v_steps || array_agg(s.step), v_runs || array_agg(coalesce(h.runs, false)),
               v_leases || array_agg(coalesce(h.fence, 32767))
        INTO v_tasks, v_steps, v_runs, v_leases
        FROM unnest(v_ids, v_of_tasks, v_of_steps) AS s(id, task, step) LEFT JOIN unnest(v_held, v_fences, v_running) AS h(id, fence, runs) USING (id);
    END LOOP;

    WITH ended AS (
        UPDATE tasker.steps s
        SET state = CASE WHEN r.runs THEN 'cancelling' WHEN r.because IS NOT NULL THEN 'skipped' ELSE 'cancelled' END::tasker.step_state,
            skipped_because = CASE WHEN NOT r.runs THEN r.because END, retry_at = NULL, wakes_at = NULL,
            finished_at = CASE WHEN NOT r.runs THEN clock_timestamp() END,
            after_cancel = CASE WHEN NOT r.runs AND r.leases > s.released THEN 'unknown' END
        FROM (SELECT u.runs, u.leases, h.place, (
                  SELECT 'step ' || ts.name || ' finished the task' FROM tasker.tasks t
                  JOIN tasker.template_steps ts ON ts.version_id = t.version_id AND ts.step = t.finished_by WHERE t.id = u.task) AS because
              FROM unnest(v_tasks, v_steps, v_runs, v_leases) AS u(task, step, runs, leases)
              CROSS JOIN LATERAL (
                  SELECT ctid AS place FROM tasker.steps
                  WHERE task_id = u.task AND step = u.step AND state IN ('enqueued', 'waiting_retry', 'waiting', 'cancelling') FOR UPDATE SKIP LOCKED) AS h) AS r
        WHERE s.ctid = r.place AND s.state IN ('enqueued', 'waiting_retry', 'waiting', 'cancelling')
        RETURNING s.task_id, s.step, r.runs
    )
    SELECT array_agg(e.task_id), array_agg(e.step) INTO v_tasks, v_steps FROM ended e WHERE NOT e.runs;
    PERFORM tasker.release_permits(v_tasks, v_steps);
    UPDATE tasker.fan_outs f SET look_at = CASE WHEN f.cancelled < f.created OR f.pages_read < f.pages THEN clock_timestamp() END
    WHERE f.task_id = ANY (p_tasks) AND EXISTS (SELECT FROM tasker.tasks t WHERE t.id = f.task_id AND t.state = 'cancelling');
    IF FOUND THEN
        PERFORM tasker.notify('tasker_due', '');
    END IF;
    PERFORM tasker.close_waits(p_tasks);

    UPDATE tasker.tasks t SET look_at = clock_timestamp() + interval '1 second' WHERE t.id = ANY (p_tasks) AND t.state = 'cancelling';
    PERFORM tasker.finish_cancelled(p_tasks);
END
$$;

-- Ends those of these tasks that are cancelling and have no step left that runs; or begins to undo them.
-- Locks: the tasks, skipping those that somebody else has: they are looked at again (end_cancelling).
CREATE FUNCTION tasker.finish_cancelled(p_tasks uuid[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_state    tasker.task_state;
    v_tasks    uuid[];
    v_parents  uuid[];
    v_of_steps smallint[];
BEGIN
    FOR v_state, v_tasks, v_parents, v_of_steps IN
        WITH finished AS (
            UPDATE tasker.tasks t
            SET state = CASE WHEN t.undo_as IS NOT NULL THEN 'undoing'
                        WHEN t.finished_by IS NOT NULL THEN 'complete'
                        WHEN EXISTS (SELECT FROM tasker.steps s WHERE s.task_id = t.id AND s.state = 'discarded')
                        THEN 'discarded' ELSE 'cancelled' END::tasker.task_state,
                look_at = NULL, finished_at = CASE WHEN t.undo_as IS NULL THEN clock_timestamp() END
            WHERE t.id = ANY (ARRAY(
                    SELECT h.id FROM tasker.tasks h WHERE h.id = ANY (p_tasks) AND h.state = 'cancelling' FOR NO KEY UPDATE SKIP LOCKED))
              AND NOT tasker.is_open(t.id)
            RETURNING t.state, t.id, t.parent_id, t.parent_step
        )
        SELECT f.state, array_agg(f.id), array_agg(f.parent_id), array_agg(f.parent_step) FROM finished f GROUP BY f.state
    LOOP
        IF v_state = 'undoing' THEN
            PERFORM tasker.begin_undo(v_tasks);
        ELSE
            PERFORM tasker.note_children(v_parents, v_of_steps, (v_state <> 'cancelled')::int, (v_state = 'cancelled')::int);
        END IF;
    END LOOP;
END
$$;

-- Ends tasks of which a handler has just discarded a step, as if they were cancelled.
-- Locks: the caller's, who has those of the tasks; then those of end_cancelling.
CREATE FUNCTION tasker.discard_tasks(p_tasks uuid[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM tasker.forget_dead_children(p_tasks);
    UPDATE tasker.tasks t SET state = 'cancelling' WHERE t.id = ANY (p_tasks) AND t.state IN ('running', 'blocked', 'paused');
    PERFORM tasker.end_cancelling(p_tasks);
    PERFORM tasker.notify('tasker_cancelled', '');
END
$$;

-- Ends tasks of which a handler has just completed a step and wants no other: these are skipped. One that has failed stays so, and goes on.
-- Locks: the caller's, who has those of the tasks; then those of end_cancelling.
CREATE FUNCTION tasker.finish_tasks(p_tasks uuid[], p_steps smallint[], p_states tasker.step_state[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_tasks uuid[] := ARRAY(SELECT u.task FROM unnest(p_tasks, p_states) AS u(task, state) WHERE u.state = 'complete');
BEGIN
    PERFORM tasker.forget_dead_children(v_tasks);
    UPDATE tasker.tasks t SET state = 'cancelling', finished_by = u.step
    FROM unnest(p_tasks, p_steps, p_states) AS u(task, step, state)
    CROSS JOIN LATERAL (SELECT ctid AS place FROM tasker.tasks WHERE id = u.task OFFSET 0) AS h
    WHERE t.ctid = h.place AND u.state = 'complete' AND t.state IN ('running', 'blocked', 'paused');
    PERFORM tasker.end_cancelling(v_tasks);
    PERFORM tasker.advance_tasks(array_agg(u.task), array_agg(u.step)) FROM unnest(p_tasks, p_steps, p_states) AS u(task, step, state)
    JOIN tasker.tasks t ON t.id = u.task AND t.state = 'failed' WHERE u.state = 'complete' HAVING count(*) > 0;
    PERFORM tasker.notify('tasker_cancelled', '');
END
$$;

-- Takes down results that came after their tasks were cancelled, for steps whose messages the caller has deleted under their fences.
-- Locks: the caller's; then the steps, and those of finish_cancelled.
CREATE FUNCTION tasker.keep_last_words(p_worker int, p_ids bigint[], p_tasks uuid[], p_steps smallint[], p_results text[], p_started timestamptz[])
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_tasks uuid[];
    v_steps smallint[];
BEGIN
    WITH kept AS (
        UPDATE tasker.steps s
        SET state = 'cancelled', after_cancel = 'complete', result = r.result::jsonb, result_bytes = octet_length(r.result::jsonb::text),
            worker = p_worker, started_at = r.started, finished_at = clock_timestamp()
        FROM unnest(p_ids, p_tasks, p_steps, p_results, p_started) AS r(id, task, step, result, started)
        WHERE s.task_id = r.task AND s.step = r.step AND s.msg_id = r.id AND s.state = 'cancelling'
        RETURNING s.task_id, s.step
    )
    SELECT array_agg(k.task_id), array_agg(k.step) INTO v_tasks, v_steps FROM kept k;
    IF v_tasks IS NOT NULL THEN
        PERFORM tasker.release_permits(v_tasks, v_steps);
        PERFORM tasker.finish_cancelled(v_tasks);
    END IF;
END
$$;
