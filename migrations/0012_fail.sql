-- Failure: a step is tried again later, or it is dead-lettered and its task is blocked.

-- Seconds to wait before the next attempt, after p_failures failures.
-- fixed: base; linear: base * failures; exponential: base * multiplier^(failures - 1). Never more than max; then spread evenly by ± jitter.
CREATE FUNCTION tasker.backoff_seconds(
    p_backoff text, p_multiplier float8, p_base float8, p_max float8, p_jitter float8, p_failures int
) RETURNS float8
LANGUAGE sql VOLATILE BEGIN ATOMIC
    SELECT least(p_max, p_base * CASE p_backoff
        WHEN 'fixed' THEN 1
        WHEN 'linear' THEN p_failures
        -- e^700 is near the end of float8
        ELSE exp(least(700, ln(p_multiplier) * (p_failures - 1))) END) * (1 + p_jitter * (2 * random() - 1));
END;

-- Tasks of which a step, or too many children of a step, have just died are blocked, or have failed, or are about to be undone.
-- Locks: the caller's, who has those of the tasks; then, of those that are to be undone, those of end_cancelling.
CREATE FUNCTION tasker.block_tasks(p_tasks uuid[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_undone   uuid[];
    v_parents  uuid[];
    v_of_steps smallint[];
BEGIN
    WITH blocked AS (
        UPDATE tasker.tasks t
        SET state = CASE tv.dead_state WHEN 'undoing' THEN 'cancelling' ELSE tv.dead_state END,
            undo_as = CASE tv.dead_state WHEN 'undoing' THEN 'failed'::tasker.task_state END,
            finished_at = CASE tv.dead_state WHEN 'failed' THEN clock_timestamp() END
        FROM tasker.template_versions tv
        WHERE t.id = ANY (p_tasks) AND t.state = 'running' AND tv.id = t.version_id
        RETURNING t.id, t.parent_id, t.parent_step, t.undo_as
    )
    SELECT array_agg(b.id) FILTER (WHERE b.undo_as IS NOT NULL), array_agg(b.parent_id) FILTER (WHERE b.undo_as IS NULL),
           array_agg(b.parent_step) FILTER (WHERE b.undo_as IS NULL)
    INTO v_undone, v_parents, v_of_steps FROM blocked b;
    PERFORM tasker.note_children(v_parents, v_of_steps, 0, 1);
    IF v_undone IS NOT NULL THEN
        PERFORM tasker.end_cancelling(v_undone);
        PERFORM tasker.notify('tasker_cancelled', '');
    END IF;
END
$$;

-- The queues that have, or had, dead letters: whoever looks for letters looks nowhere else.
CREATE TABLE tasker.lettered (namespace_id int PRIMARY KEY);

-- Letters were sent in the queue's namespace. After them, in the same transaction: forget_letterless relies on that order.
CREATE FUNCTION tasker.note_letters(p_queue text) RETURNS void
LANGUAGE sql BEGIN ATOMIC
    INSERT INTO tasker.lettered (namespace_id) SELECT n.id FROM tasker.namespaces n WHERE n.queue = p_queue ON CONFLICT DO NOTHING;
END;

-- An error behind those before it. Of many, the first ten and the last forty are kept: each has the number of its attempt. One that a handler raises on
-- purpose takes the place of the one before that says the same, with how often it was said.
CREATE FUNCTION tasker.append_error(p_errors jsonb, p_error jsonb) RETURNS jsonb
LANGUAGE sql IMMUTABLE BEGIN ATOMIC
    SELECT CASE
        WHEN p_error ? 'on_purpose' AND p_errors -> -1 -> 'on_purpose' IS NOT NULL
            AND (p_errors -> -1 -> 'class', p_errors -> -1 -> 'message') = (p_error -> 'class', p_error -> 'message')
        THEN (p_errors - -1) || (p_error || jsonb_build_object('times', coalesce((p_errors -> -1 ->> 'times')::int, 1) + 1))
        ELSE CASE WHEN jsonb_array_length(p_errors) >= 50 THEN p_errors - 10 ELSE coalesce(p_errors, '[]') END || p_error END;
END;

-- Steps have just died: sends their dead letters, with what is known of them and the names of the steps that have results (see read_results), and
-- marks their tasks blocked or failed.
-- p_messages: what they travelled as; null where they had not been sent.
-- Locks: the caller's, who has those of the tasks.
CREATE FUNCTION tasker.send_dead_letters(p_tasks uuid[], p_steps smallint[], p_reasons text[], p_messages jsonb[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_queue   text;
    v_letters jsonb[];
    v_from    int;
BEGIN
    -- A few at a time: a letter may have megabytes.
    FOR v_from IN SELECT generate_series(0, cardinality(p_tasks) - 1, 16) LOOP
        FOR v_queue, v_letters IN
            SELECT ts.queue, array_agg(jsonb_build_object(
                'reason', d.reason, 'queue', ts.queue, 'task', t.id, 'step', ts.name, 'handler', ts.handler, 'template', tp.name,
                'version', tv.version, 'errors', s.errors, 'worker', s.worker, 'input', t.input, 'trace', t.trace, 'message', d.message,
                'results', (SELECT jsonb_agg(rs.name ORDER BY rs.step) FROM tasker.steps r
                            CROSS JOIN LATERAL (SELECT * FROM tasker.template_steps WHERE version_id = t.version_id AND step = r.step OFFSET 0) AS rs
                            WHERE r.task_id = t.id AND r.state = 'complete')))
            FROM unnest(p_tasks[v_from + 1:v_from + 16], p_steps[v_from + 1:v_from + 16], p_reasons[v_from + 1:v_from + 16],
                        p_messages[v_from + 1:v_from + 16]) AS d(task, step, reason, message)
            JOIN tasker.tasks t ON t.id = d.task
            JOIN tasker.steps s ON s.task_id = d.task AND s.step = d.step
            JOIN tasker.templates tp ON tp.id = t.template_id
            JOIN tasker.template_versions tv ON tv.id = t.version_id
            JOIN tasker.template_steps ts ON ts.version_id = t.version_id AND ts.step = d.step
            GROUP BY ts.queue ORDER BY ts.queue
        LOOP
            PERFORM pgmq.send_batch(v_queue || '_dlq', v_letters);
            PERFORM tasker.note_letters(v_queue);
            PERFORM tasker.notify('tasker_dead_letters', v_queue);
        END LOOP;
    END LOOP;
    PERFORM tasker.tell_letters(p_tasks, p_steps, p_reasons);
    PERFORM tasker.block_tasks(p_tasks);
END
$$;

-- A step that no worker runs cannot go on: it is dead.
-- Locks: the caller's, who has that of the task.
CREATE FUNCTION tasker.kill_step(p_task uuid, p_step smallint, p_reason text, p_message text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    UPDATE tasker.steps s
    SET state = 'dead', failures = s.failures + 1, wakes_at = NULL, finished_at = clock_timestamp(),
        errors = tasker.append_error(s.errors, jsonb_build_object('class', 'TaskerError', 'message', p_message, 'attempt', s.failures + 1,
                                                                  'at', clock_timestamp(), 'reason', p_reason))
    WHERE s.task_id = p_task AND s.step = p_step;
    PERFORM tasker.send_dead_letters(ARRAY[p_task], ARRAY[p_step], ARRAY[p_reason], ARRAY[NULL::jsonb]);
END
$$;

-- Fails steps: in one transaction deletes their messages, records the errors and schedules the retry; or, where the error is permanent or
-- the attempts are used up, sends the dead letter, marks the step dead and the task blocked or failed. Branches that do not depend on it
-- go on. One whose handler wants to be called later (the reason 'snoozed'), or waits for a signal ({ending: {waits_for: name}}, see await_signal), uses no
-- attempt. One whose handler ends the task early ({ending: {finished: result}}) is complete. One whose handler says that the task is not worth anything any more (the reason 'discarded') ends the task, without a letter.
-- A step whose task was cancelled while it ran is cancelled, and the error is its last word (see 0013_cancel.sql).
-- The arrays are parallel and in msg_id order. Each error is {class, message, backtrace, reason}; retry_after (seconds, may be null) takes the place
-- of the backoff.
-- Returns the messages whose report counted, and what has become of their steps; the others were stale and changed nothing.
-- Locks: the tasks in id order, then messages in order, then steps.
CREATE FUNCTION tasker.fail_steps(
    p_queue text, p_worker int, p_ids bigint[], p_fences int[], p_tasks uuid[], p_steps smallint[],
    p_errors jsonb[], p_permanent boolean[], p_retry_after float8[]
) RETURNS TABLE (counted bigint, state tasker.step_state)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    v_ids      bigint[];
    v_states   tasker.step_state[];
    v_counted_tasks uuid[];
    v_counted_steps smallint[];
    v_troubled boolean[];
    v_tasks    uuid[];
    v_steps    smallint[];
    v_reasons  text[];
    v_messages jsonb[];
    v_retrying int;
BEGIN
    PERFORM tasker.check_reporter(p_queue, p_ids, p_tasks, p_steps);
    PERFORM 1 FROM tasker.tasks t WHERE t.id = ANY (p_tasks) ORDER BY t.id FOR NO KEY UPDATE;

    EXECUTE format($f$
        WITH gone AS (
            DELETE FROM pgmq.%1$I q
            WHERE q.msg_id = ANY ($1) AND q.read_ct = ($2)[width_bucket(q.msg_id, $1)]
              AND tasker.is_of_step(q.message, ($3)[width_bucket(q.msg_id, $1)], ($4)[width_bucket(q.msg_id, $1)])
            RETURNING q.msg_id, q.read_ct, q.last_read_at, q.message
        ), verdict AS (
            SELECT gone.*, s.place, r.task, r.step, r.error, r.permanent, z.snoozed,
                   r.permanent OR NOT z.snoozed AND s.failures + 1 >= coalesce(s.max_attempts, ts.max_attempts, n.max_attempts) AS dead,
                   coalesce(r.retry_after, tasker.backoff_seconds(
                       coalesce(ts.backoff, n.backoff), coalesce(ts.multiplier, n.multiplier), coalesce(ts.base_seconds, n.base_seconds),
                       coalesce(ts.max_seconds, n.max_seconds), coalesce(ts.jitter, n.jitter), s.failures + 1)) AS delay,
                   t.state NOT IN ('running', 'blocked', 'failed', 'undoing') AS over, z.finished, z.waits
            FROM gone
            JOIN unnest($1, $3, $4, $5, $6, $7) AS r(id, task, step, error, permanent, retry_after) ON r.id = gone.msg_id
            CROSS JOIN LATERAL (
                SELECT coalesce(r.error ->> 'reason' = 'snoozed', false) AS snoozed, coalesce(r.error -> 'ending' ? 'finished', false) AS finished,
                       coalesce(r.error -> 'ending' ? 'waits_for', false) AND EXISTS (
                           SELECT FROM tasker.waits w
                           WHERE w.task_id = r.task AND w.step = r.step AND w.place = r.error #>> '{ending, waits_for}' AND w.since IS NOT NULL) AS waits) AS z
            CROSS JOIN LATERAL (SELECT *, ctid AS place FROM tasker.steps
                                WHERE task_id = r.task AND step = r.step AND msg_id = r.id AND state IN ('enqueued', 'cancelling') OFFSET 0) AS s
            CROSS JOIN LATERAL (SELECT * FROM tasker.tasks WHERE id = r.task OFFSET 0) AS t
            CROSS JOIN LATERAL (SELECT * FROM tasker.template_steps WHERE version_id = t.version_id AND step = r.step OFFSET 0) AS ts
            JOIN tasker.namespaces n ON n.name = ts.namespace
        ), failed AS (
            UPDATE tasker.steps s
            SET state = CASE WHEN v.over THEN 'cancelled' WHEN v.error ->> 'reason' = 'discarded' THEN 'discarded' WHEN v.finished THEN 'complete'
                        WHEN v.dead THEN 'dead' WHEN v.waits THEN 'waiting' ELSE 'waiting_retry' END::tasker.step_state,
                after_cancel = CASE WHEN v.over THEN CASE WHEN v.finished THEN 'complete' ELSE 'failed' END END,
                result = CASE WHEN v.finished THEN v.error #> '{ending, finished}' END,
                result_bytes = CASE WHEN v.finished THEN octet_length((v.error #> '{ending, finished}')::text) END,
                failures = s.failures + (NOT v.snoozed AND NOT v.finished)::int, worker = $8, started_at = v.last_read_at,
                finished_at = CASE WHEN v.dead OR v.over THEN clock_timestamp() END,
                retry_at = CASE WHEN NOT (v.dead OR v.over OR v.waits) THEN clock_timestamp() + v.delay * interval '1 second' END,
                wakes_at = CASE WHEN v.waits AND NOT v.over THEN 'infinity'::timestamptz END,
                errors = CASE WHEN v.snoozed OR v.finished THEN s.errors ELSE tasker.append_error(s.errors, v.error || jsonb_build_object(
                    'attempt', s.failures + 1, 'message_id', v.msg_id, 'crashes', v.read_ct - 1 - s.released, 'at', clock_timestamp(), 'worker', $8)) END
            FROM verdict v
            WHERE s.ctid = v.place AND s.state IN ('enqueued', 'cancelling')
            RETURNING s.msg_id, s.task_id, s.step, s.state, v.message, NOT (v.permanent OR v.snoozed) AS troubled,
                      coalesce(v.error ->> 'reason', CASE WHEN v.permanent THEN 'permanent_error' ELSE 'attempts_exhausted' END) AS reason
        )
        SELECT array_agg(f.msg_id), array_agg(f.state), array_agg(f.task_id), array_agg(f.step), array_agg(f.troubled),
               count(*) FILTER (WHERE f.state = 'waiting_retry'),
               array_agg(f.task_id) FILTER (WHERE f.state = 'dead'),
               array_agg(f.step) FILTER (WHERE f.state = 'dead'),
               array_agg(f.reason) FILTER (WHERE f.state = 'dead'),
               array_agg(f.message) FILTER (WHERE f.state = 'dead')
        FROM failed f
    $f$, pgmq.format_table_name(p_queue, 'q'))
    INTO v_ids, v_states, v_counted_tasks, v_counted_steps, v_troubled, v_retrying, v_tasks, v_steps, v_reasons, v_messages
    USING p_ids, p_fences, p_tasks, p_steps, p_errors, p_permanent, p_retry_after, p_worker;

    IF coalesce(cardinality(v_ids), 0) < cardinality(p_ids) THEN
        PERFORM tasker.count_event('stale_reports', cardinality(p_ids) - coalesce(cardinality(v_ids), 0));
    END IF;
    -- A permanent error tells of the task, not of what its handler works with.
    PERFORM tasker.release_permits(v_counted_tasks, v_counted_steps, v_troubled);
    IF v_tasks IS NOT NULL THEN
        PERFORM tasker.send_dead_letters(v_tasks, v_steps, v_reasons, v_messages);
    END IF;
    IF 'discarded' = ANY (v_states) THEN
        PERFORM tasker.discard_tasks(ARRAY(SELECT d.task FROM unnest(v_states, v_counted_tasks) AS d(state, task) WHERE d.state = 'discarded'));
    END IF;
    IF 'complete' = ANY (v_states) THEN
        PERFORM tasker.finish_tasks(v_counted_tasks, v_counted_steps, v_states);
    END IF;
    IF 'cancelled' = ANY (v_states) THEN
        PERFORM tasker.finish_cancelled(v_counted_tasks);
    END IF;
    IF v_states && '{discarded, complete}' THEN
        PERFORM tasker.advance_undo(v_counted_tasks);
    END IF;
    IF v_retrying > 0 THEN
        PERFORM tasker.notify('tasker_due', '');
    END IF;
    RETURN QUERY SELECT * FROM unnest(v_ids, v_states);
END
$$;

-- Ends a step with the least that its row needs, and a letter of constants: for what cannot be ended otherwise. Nothing of it is read or kept, its
-- errors neither. Locks: the caller's, who has the task and has deleted the message, or will; then the step.
CREATE FUNCTION tasker.end_barely(p_queue text, p_id bigint, p_task uuid, p_step smallint, p_reason text, p_message text) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_errors jsonb;
BEGIN
    SELECT jsonb_build_array(jsonb_build_object('class', 'TaskerError', 'message', p_message, 'attempt', s.failures + 1, 'at', clock_timestamp()))
    INTO v_errors FROM tasker.steps s WHERE s.task_id = p_task AND s.step = p_step;
    UPDATE tasker.steps s SET state = 'dead', failures = s.failures + 1, finished_at = clock_timestamp(), errors = v_errors
    WHERE s.task_id = p_task AND s.step = p_step AND s.msg_id = p_id AND s.state = 'enqueued';
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM tasker.release_permits(ARRAY[p_task], ARRAY[p_step], ARRAY[false]);
    PERFORM pgmq.send(p_queue || '_dlq', (
        SELECT jsonb_build_object('reason', p_reason, 'queue', p_queue, 'task', p_task, 'step', ts.name, 'handler', ts.handler,
                                  'template', ts.template, 'version', ts.version, 'errors', v_errors)
        FROM tasker.tasks t JOIN tasker.template_steps ts ON ts.version_id = t.version_id AND ts.step = p_step WHERE t.id = p_task));
    PERFORM tasker.note_letters(p_queue);
    PERFORM tasker.notify('tasker_dead_letters', p_queue);
    PERFORM tasker.tell_letters(ARRAY[p_task], ARRAY[p_step], ARRAY[p_reason]);
    PERFORM tasker.block_tasks(ARRAY[p_task]);
    RETURN true;
END
$$;

-- Fails one step for good, after fail_steps refused to for its data. False: the report is stale.
-- Locks: the task, then the message, then the step.
CREATE FUNCTION tasker.fail_barely(p_queue text, p_id bigint, p_fence int, p_task uuid, p_step smallint, p_reason text, p_message text) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_gone bigint;
BEGIN
    PERFORM tasker.check_reporter(p_queue, ARRAY[p_id], ARRAY[p_task], ARRAY[p_step]);
    PERFORM FROM tasker.tasks t WHERE t.id = p_task FOR NO KEY UPDATE;
    EXECUTE format('DELETE FROM pgmq.%I WHERE msg_id = $1 AND read_ct = $2 AND tasker.is_of_step(message, $3, $4) RETURNING msg_id',
                   pgmq.format_table_name(p_queue, 'q'))
    INTO v_gone USING p_id, p_fence, p_task, p_step;
    RETURN v_gone IS NOT NULL AND tasker.end_barely(p_queue, p_id, p_task, p_step, p_reason, p_message);
END
$$;
