-- Cancellation. A handler that is running learns of it at once where LISTEN works, at its next heartbeat otherwise, because its message is
-- gone; its report is stale.

-- Cancels the tasks that have not ended. Returns those it cancelled.
-- Locks: the tasks in id order; then messages and steps, skipping what is locked: that is being reported at this moment, and whatever
-- such a report still enqueues is removed when it is leased, because its task is no longer running.
CREATE FUNCTION tasker.cancel_tasks(p_tasks uuid[]) RETURNS SETOF uuid
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_cancelled uuid[];
    v_queue     text;
    v_messages  bigint[];
    v_tasks     uuid[];
    v_steps     smallint[];
BEGIN
    PERFORM 1 FROM tasker.tasks t WHERE t.id = ANY (p_tasks) ORDER BY t.id FOR NO KEY UPDATE;
    WITH cancelled AS (
        UPDATE tasker.tasks t SET state = 'cancelled', claim_order = NULL, due_at = NULL, finished_at = clock_timestamp()
        WHERE t.id = ANY (p_tasks) AND t.state IN ('pending', 'running', 'waiting', 'blocked', 'paused')
        RETURNING t.id
    )
    SELECT array_agg(c.id) INTO v_cancelled FROM cancelled c;

    FOR v_queue, v_messages IN
        SELECT ts.queue, array_agg(s.msg_id)
        FROM tasker.steps s
        JOIN tasker.tasks t ON t.id = s.task_id
        JOIN tasker.template_steps ts ON ts.version_id = t.version_id AND ts.step = s.step
        WHERE s.task_id = ANY (v_cancelled) AND s.state = 'enqueued'
          -- What is left in a queue that cannot be worked with is stale.
          AND NOT EXISTS (SELECT FROM tasker.broken_queues b WHERE b.queue = ts.queue)
        GROUP BY ts.queue ORDER BY ts.queue
    LOOP
        EXECUTE format($f$
            DELETE FROM pgmq.%1$I WHERE msg_id = ANY (ARRAY(SELECT h.msg_id FROM pgmq.%1$I h WHERE h.msg_id = ANY ($1) FOR UPDATE SKIP LOCKED))
        $f$, pgmq.format_table_name(v_queue, 'q')) USING v_messages;
    END LOOP;

    WITH ended AS (
        UPDATE tasker.steps s SET state = 'cancelled', retry_at = NULL, finished_at = clock_timestamp()
        WHERE (s.task_id, s.step) IN (
            SELECT h.task_id, h.step FROM tasker.steps h
            WHERE h.task_id = ANY (v_cancelled) AND h.state IN ('enqueued', 'waiting_retry')
            FOR UPDATE SKIP LOCKED)
        RETURNING s.task_id, s.step
    )
    SELECT array_agg(e.task_id), array_agg(e.step) INTO v_tasks, v_steps FROM ended e;
    PERFORM tasker.release_permits(v_tasks, v_steps);
    -- Workers look at their leases at once.
    PERFORM tasker.notify('tasker_cancelled', '');
    RETURN QUERY SELECT unnest(v_cancelled);
END
$$;
