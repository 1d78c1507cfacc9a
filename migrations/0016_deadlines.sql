-- Limits on time: a task that has not ended by its deadline, and a step that stays in one state for longer than its template allows, are
-- given up, each as a dead letter that says so.

-- Looks at the tasks for which it is time (tasks.look_at), and gives up what is over:
--   deadline  the task did not end in time: all its open steps are dead (of a task that never began: its first ones);
--   stuck     a task was pending, or a step enqueued or in progress, for longer than its limit: that step is dead. (What waits for a
--             retry is bounded by its backoff, what waits for an operator by the retention of its letter.)
-- A handler that is running is stopped like one whose task was cancelled. Returns how many tasks that concerned.
-- Those that are cancelling are ended, as far as they can be. A limit is noticed within a quarter of its length: nothing is written when a step changes its state. Tasks with a step whose queue cannot be worked
-- with are left until it can be.
-- Locks: the tasks in order of look_at, skipping those that are held (the next call takes them); then messages and steps, skipping what
-- is locked: that is being reported at this moment, and its task is looked at again.
CREATE FUNCTION tasker.expire_tasks(p_limit int) RETURNS int
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_due      uuid[];
    v_queue    text;
    v_ids      bigint[];
    v_limits   interval[];
    v_runs     interval[];
    v_since    timestamptz[];
    v_late     boolean[];
    v_tasks    uuid[];
    v_steps    smallint[];
    v_states   text[];
    v_messages jsonb[];
    v_reasons  text[];
    v_given_up int;
BEGIN
    SELECT array_agg(d.id) INTO v_due FROM (
        SELECT t.id FROM tasker.tasks t
        WHERE t.look_at <= (SELECT clock_timestamp()) AND NOT EXISTS (
            SELECT FROM tasker.broken_queues b JOIN tasker.template_steps ts ON ts.queue = b.queue WHERE ts.version_id = t.version_id)
        ORDER BY t.look_at LIMIT p_limit
        FOR NO KEY UPDATE SKIP LOCKED) AS d;
    IF v_due IS NULL THEN
        RETURN 0;
    END IF;
    PERFORM tasker.end_cancelling(array_agg(t.id)) FROM tasker.tasks t WHERE t.id = ANY (v_due) AND t.state = 'cancelling' HAVING count(*) > 0;

    -- A task that never began: its first steps are dead before they were sent. The states: null where it is the deadline that is over.
    WITH begun AS (
        UPDATE tasker.tasks t SET state = 'running', claim_order = NULL, due_at = NULL, started_at = clock_timestamp()
        FROM tasker.template_versions tv
        WHERE t.id = ANY (v_due) AND t.state IN ('pending', 'waiting') AND tv.id = t.version_id
          AND (t.deadline_at <= clock_timestamp() OR greatest(t.created_at, t.run_at) + tv.pending_limit <= clock_timestamp())
        RETURNING t.id, t.version_id, CASE WHEN t.deadline_at <= clock_timestamp() THEN NULL ELSE 'pending' END AS state
    ), roots AS (
        INSERT INTO tasker.steps (task_id, step, state, enqueued_at)
        SELECT b.id, ts.step, 'waiting_retry', clock_timestamp()
        FROM begun b JOIN tasker.template_steps ts ON ts.version_id = b.version_id AND ts.parents = '{}'
        RETURNING task_id, step
    )
    SELECT coalesce(array_agg(r.task_id), '{}'), coalesce(array_agg(r.step), '{}'), coalesce(array_agg(b.state), '{}'),
           coalesce(array_agg(NULL::jsonb), '{}')
    INTO v_tasks, v_steps, v_states, v_messages
    FROM roots r JOIN begun b ON b.id = r.task_id;

    -- Sent, and waiting for a worker or held by one.
    FOR v_queue, v_ids, v_late, v_since, v_limits, v_runs IN
        SELECT ts.queue, array_agg(s.msg_id), array_agg(coalesce(t.deadline_at <= clock_timestamp(), false)), array_agg(s.enqueued_at),
               array_agg(tv.enqueued_limit), array_agg(tv.in_progress_limit)
        FROM tasker.steps s
        JOIN tasker.tasks t ON t.id = s.task_id AND t.state IN ('running', 'blocked')
        JOIN tasker.template_versions tv ON tv.id = t.version_id
        JOIN tasker.template_steps ts ON ts.version_id = t.version_id AND ts.step = s.step
        WHERE s.task_id = ANY (v_due) AND s.state = 'enqueued'
        GROUP BY ts.queue ORDER BY ts.queue
    LOOP
        EXECUTE format($f$
            WITH over AS (
                SELECT h.* FROM unnest($1, $2, $3, $4, $5) AS d(id, late, since, enqueued_limit, in_progress_limit)
                CROSS JOIN LATERAL (
                    SELECT q.msg_id, CASE
                        WHEN d.late THEN NULL
                        WHEN q.vt > clock_timestamp() THEN 'in_progress' ELSE 'enqueued' END AS state
                    FROM pgmq.%1$I q
                    WHERE q.msg_id = d.id AND (d.late OR CASE WHEN q.vt > clock_timestamp()
                        THEN q.last_read_at + d.in_progress_limit ELSE d.since + d.enqueued_limit END <= clock_timestamp())
                    FOR UPDATE SKIP LOCKED) AS h
            ), gone AS (
                DELETE FROM pgmq.%1$I q WHERE q.msg_id = ANY (ARRAY(SELECT o.msg_id FROM over o)) RETURNING q.msg_id, q.message
            )
            SELECT $6 || array_agg(i.task), $7 || array_agg(i.step), $8 || array_agg(o.state), $9 || array_agg(g.message)
            FROM gone g JOIN over o ON o.msg_id = g.msg_id, tasker.message_identity(g.message) AS i
        $f$, pgmq.format_table_name(v_queue, 'q'))
        INTO v_tasks, v_steps, v_states, v_messages
        USING v_ids, v_late, v_since, v_limits, v_runs, v_tasks, v_steps, v_states, v_messages;
    END LOOP;

    -- Not sent: failed, and waiting for a retry; or waiting for a permit (see 0007_limits.sql).
    SELECT v_tasks || array_agg(w.task_id), v_steps || array_agg(w.step), v_states || array_agg(w.state), v_messages || array_agg(NULL::jsonb)
    INTO v_tasks, v_steps, v_states, v_messages
    FROM (
        SELECT s.task_id, s.step, CASE WHEN t.deadline_at <= clock_timestamp() THEN NULL ELSE 'enqueued' END AS state FROM tasker.steps s
        JOIN tasker.tasks t ON t.id = s.task_id AND t.state IN ('running', 'blocked')
        JOIN tasker.template_versions tv ON tv.id = t.version_id
        WHERE s.task_id = ANY (v_due)
          AND (t.deadline_at <= clock_timestamp() AND (s.retry_at IS NOT NULL AND s.state = 'waiting_retry' OR s.state = 'waiting')
               OR least(t.deadline_at, s.enqueued_at + tv.enqueued_limit) <= clock_timestamp() AND s.state = 'enqueued' AND s.msg_id IS NULL)
        FOR UPDATE OF s SKIP LOCKED) AS w;

    UPDATE tasker.steps s
    SET state = 'dead', retry_at = NULL, wakes_at = NULL, finished_at = clock_timestamp(),
        errors = tasker.append_error(s.errors, jsonb_build_object('attempt', s.failures + 1, 'at', clock_timestamp()) || CASE WHEN d.state IS NULL
            THEN jsonb_build_object('class', 'DeadlineExceeded', 'message', 'the task did not end in the time its template allows')
            ELSE jsonb_build_object('class', 'Stuck', 'message', 'it was ' || d.state || ' for longer than its template allows') END)
    FROM unnest(v_tasks, v_steps, v_states) AS d(task, step, state) WHERE s.task_id = d.task AND s.step = d.step;
    PERFORM tasker.release_permits(v_tasks, v_steps);
    PERFORM tasker.close_waits(v_tasks);
    v_reasons := ARRAY(SELECT CASE WHEN d.state IS NULL THEN 'deadline' ELSE 'stuck' END
                       FROM unnest(v_states) WITH ORDINALITY AS d(state, n) ORDER BY d.n);
    PERFORM tasker.send_dead_letters(v_tasks, v_steps, v_reasons, v_messages);

    -- What somebody is reporting right now is still open: look at once. A deadline that is over counts once, so that a replay has time.
    UPDATE tasker.tasks t
    SET deadline_at = CASE WHEN t.deadline_at > clock_timestamp() OR o.is_open THEN t.deadline_at END,
        look_at = CASE WHEN t.state IN ('waiting', 'pending', 'running', 'blocked') THEN
            least(CASE WHEN t.deadline_at > clock_timestamp() OR o.is_open THEN t.deadline_at END,
                  clock_timestamp() + tasker.shortest_limit(tv) / 4) END
    FROM unnest(v_due) AS d(id)
    CROSS JOIN LATERAL (SELECT ctid AS place, version_id FROM tasker.tasks WHERE id = d.id OFFSET 0) AS k
    CROSS JOIN LATERAL (SELECT * FROM tasker.template_versions WHERE id = k.version_id OFFSET 0) AS tv
    CROSS JOIN LATERAL (SELECT tasker.is_open(d.id) AS is_open) AS o
    WHERE t.ctid = k.place AND t.state <> 'cancelling';
    IF cardinality(v_tasks) > 0 THEN
        PERFORM tasker.notify('tasker_cancelled', '');
    END IF;
    SELECT count(DISTINCT d) INTO v_given_up FROM unnest(v_tasks) AS d;
    RETURN v_given_up;
END
$$;
