-- Deadlines: a task that has not ended in the time its template allows is given up, as a dead letter that says so.

-- Gives up tasks whose deadline is over: their open steps (or, of a task that never began, its first ones) are dead, and each leaves a dead
-- letter with the reason 'deadline'. A handler that is running is stopped like one whose task was cancelled. Returns how many it gave up.
-- Tasks that wait for an operator already are left to him.
-- Locks: the tasks in order of their deadlines, skipping those that are held (the next call takes them); then messages and steps, skipping
-- what is locked: that is being reported at this moment, and its task is looked at again.
CREATE FUNCTION tasker.expire_tasks(p_limit int) RETURNS int
LANGUAGE plpgsql AS $$
DECLARE
    v_due      uuid[];
    v_late     uuid[];
    v_queue    text;
    v_ids      bigint[];
    v_gone     bigint[];
    v_tasks    uuid[] := '{}';
    v_steps    smallint[] := '{}';
    v_messages jsonb[] := '{}';
BEGIN
    SELECT array_agg(d.id) INTO v_due FROM (
        SELECT t.id FROM tasker.tasks t WHERE t.deadline_at <= clock_timestamp() ORDER BY t.deadline_at LIMIT p_limit
        FOR NO KEY UPDATE SKIP LOCKED) AS d;
    IF v_due IS NULL THEN
        RETURN 0;
    END IF;
    UPDATE tasker.tasks t SET deadline_at = NULL WHERE t.id = ANY (v_due);

    -- One that never began: its first steps are dead before they were sent.
    WITH begun AS (
        UPDATE tasker.tasks t SET state = 'running', claim_order = NULL, started_at = clock_timestamp()
        WHERE t.id = ANY (v_due) AND t.state = 'pending'
        RETURNING t.id, t.version_id
    ), roots AS (
        INSERT INTO tasker.steps (task_id, step, state, enqueued_at)
        SELECT b.id, ts.step, 'waiting_retry', clock_timestamp()
        FROM begun b JOIN tasker.template_steps ts ON ts.version_id = b.version_id AND ts.parents = '{}'
        RETURNING task_id, step
    )
    SELECT array_agg(r.task_id), array_agg(r.step), array_agg(NULL::jsonb) INTO v_tasks, v_steps, v_messages FROM roots r;
    v_tasks := coalesce(v_tasks, '{}');
    v_steps := coalesce(v_steps, '{}');
    v_messages := coalesce(v_messages, '{}');

    FOR v_queue, v_ids IN
        SELECT ts.queue, array_agg(s.msg_id) FROM tasker.steps s
        JOIN tasker.tasks t ON t.id = s.task_id AND t.state = 'running'
        JOIN tasker.template_steps ts ON ts.version_id = t.version_id AND ts.step = s.step
        WHERE s.task_id = ANY (v_due) AND s.state = 'enqueued'
        GROUP BY ts.queue ORDER BY ts.queue
    LOOP
        EXECUTE format($f$
            WITH gone AS (
                DELETE FROM pgmq.%1$I WHERE msg_id IN (SELECT h.msg_id FROM pgmq.%1$I h WHERE h.msg_id = ANY ($1) FOR UPDATE SKIP LOCKED)
                RETURNING msg_id, message
            )
            SELECT array_agg(g.msg_id), $2 || array_agg(i.task), $3 || array_agg(i.step), $4 || array_agg(g.message)
            FROM gone g, tasker.message_identity(g.message) AS i
        $f$, pgmq.format_table_name(v_queue, 'q')) INTO v_gone, v_tasks, v_steps, v_messages USING v_ids, v_tasks, v_steps, v_messages;
        -- Somebody reports one of them right now: look at its task again.
        UPDATE tasker.tasks t SET deadline_at = clock_timestamp() WHERE t.id IN (
            SELECT s.task_id FROM tasker.steps s
            WHERE s.task_id = ANY (v_due) AND s.msg_id = ANY (v_ids) AND s.msg_id <> ALL (coalesce(v_gone, '{}')) AND s.state = 'enqueued');
    END LOOP;

    SELECT v_tasks || coalesce(array_agg(w.task_id), '{}'), v_steps || coalesce(array_agg(w.step), '{}'),
           v_messages || coalesce(array_agg(NULL::jsonb), '{}')
    INTO v_tasks, v_steps, v_messages
    FROM (SELECT s.task_id, s.step FROM tasker.steps s JOIN tasker.tasks t ON t.id = s.task_id AND t.state = 'running'
          WHERE s.task_id = ANY (v_due) AND s.state = 'waiting_retry' AND s.retry_at IS NOT NULL FOR UPDATE OF s SKIP LOCKED) AS w;

    UPDATE tasker.steps s
    SET state = 'dead', retry_at = NULL, finished_at = clock_timestamp(),
        errors = coalesce(s.errors, '[]') || jsonb_build_object(
            'class', 'DeadlineExceeded', 'message', 'the task did not end in the time its template allows', 'attempt', s.failures + 1,
            'at', clock_timestamp())
    FROM unnest(v_tasks, v_steps) AS d(task, step) WHERE s.task_id = d.task AND s.step = d.step;
    PERFORM tasker.send_dead_letters(v_tasks, v_steps, array_fill('deadline'::text, ARRAY[cardinality(v_tasks)]), v_messages);
    PERFORM pg_notify('tasker_cancelled', '');
    SELECT array_agg(DISTINCT d) INTO v_late FROM unnest(v_tasks) AS d;
    RETURN coalesce(cardinality(v_late), 0);
END
$$;
