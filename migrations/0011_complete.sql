-- Completion: where a result lands, the task advances. No second queue, no orchestrator between two steps.

-- The step that a task does a part of.
CREATE TYPE tasker.parent_step AS (task uuid, step smallint);

-- Tasks of one template that are complete now, and how long each took since it was created (or its time had come), in seconds.
CREATE TYPE tasker.finished_tasks AS (namespace text, template text, seconds float8[]);

-- Steps have just become complete or skipped: finalises the tasks that are done, and enqueues the dependents that are now ready, or skips them
-- (see decide_steps, 0025_readiness.sql).
-- A failed task's other branches still finish, but it stays failed. Returns what p_taker has taken of the dependents (see enqueue_steps), and the
-- tasks that are done.
-- Locks: the caller's (see complete_steps).
CREATE FUNCTION tasker.advance_tasks(
    p_tasks uuid[], p_steps smallint[], p_taker tasker.taker DEFAULT NULL,
    OUT taken tasker.leased_message[], OUT done tasker.finished_tasks[]
)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_tasks     uuid[];
    v_steps     smallint[];
    v_queues    text[];
    v_decided   boolean;
    v_done      tasker.finished_tasks[];
    v_parents   tasker.parent_step[];
BEGIN
    LOOP
        WITH finished AS MATERIALIZED (
            SELECT r.task, t.version_id, ts.children
            FROM unnest(p_tasks, p_steps) AS r(task, step)
            CROSS JOIN LATERAL (SELECT * FROM tasker.tasks WHERE id = r.task OFFSET 0) AS t
            CROSS JOIN LATERAL (SELECT * FROM tasker.template_steps WHERE version_id = t.version_id AND step = r.step OFFSET 0) AS ts
            WHERE t.state IN ('running', 'blocked', 'failed')
        ), finalised AS (
            UPDATE tasker.tasks t SET state = 'complete', finished_at = clock_timestamp()
            FROM (SELECT DISTINCT f.task, tv.sinks FROM finished f JOIN tasker.template_versions tv ON tv.id = f.version_id WHERE f.children = '{}') AS last
            -- The array of one, because a join by = could begin at all tasks.
            WHERE t.id = ANY (ARRAY[last.task]) AND t.state IN ('running', 'blocked')
              AND (cardinality(last.sinks) = 1 OR cardinality(last.sinks) = (
                  SELECT count(*) FROM tasker.steps s
                  WHERE s.task_id = t.id AND s.step = ANY (last.sinks) AND s.state IN ('complete', 'skipped')))
            RETURNING t.parent_id, t.parent_step, t.template_id, extract(epoch FROM t.finished_at - greatest(t.created_at, t.run_at))::float8 AS seconds
        ), child AS (
            SELECT DISTINCT f.task, c.step, f.version_id FROM finished f CROSS JOIN unnest(f.children) AS c(step)
        )
        SELECT array_agg(ready.task), array_agg(ready.step), array_agg(ready.queue), bool_or(ready.decided),
            (SELECT array_agg(ROW(parent_id, parent_step)::tasker.parent_step) FROM finalised WHERE parent_id IS NOT NULL), (
            SELECT array_agg(ROW((SELECT n.name FROM tasker.namespaces n WHERE n.id = tp.namespace_id), tp.name, f.seconds)::tasker.finished_tasks)
            FROM (SELECT template_id, array_agg(seconds) AS seconds FROM finalised GROUP BY template_id) AS f
            CROSS JOIN LATERAL (SELECT * FROM tasker.templates WHERE id = f.template_id OFFSET 0) AS tp)
        INTO v_tasks, v_steps, v_queues, v_decided, v_parents, v_done
        FROM (
            SELECT child.task, child.step, cs.queue, cs.decided
            FROM child
            CROSS JOIN LATERAL (SELECT * FROM tasker.template_steps WHERE version_id = child.version_id AND step = child.step OFFSET 0) AS cs
            WHERE cardinality(cs.parents) = 1 OR cardinality(cs.parents) = (
                SELECT count(*) FROM tasker.steps s
                WHERE s.task_id = child.task AND s.step = ANY (cs.parents) AND s.state IN ('complete', 'skipped'))
            ORDER BY child.task, child.step) AS ready;

        done := done || v_done;
        IF v_parents IS NOT NULL THEN
            PERFORM tasker.note_children(array_agg(p.task), array_agg(p.step), 1, 0) FROM unnest(v_parents) AS p;
        END IF;
        EXIT WHEN v_tasks IS NULL;
        p_tasks := NULL;
        IF v_decided THEN
            SELECT d.p_tasks, d.p_steps, d.p_queues, d.skipped_tasks, d.skipped_steps INTO v_tasks, v_steps, v_queues, p_tasks, p_steps
            FROM tasker.decide_steps(v_tasks, v_steps, v_queues) AS d;
        END IF;
        IF v_tasks IS NOT NULL THEN
            taken := taken || tasker.enqueue_steps(v_tasks, v_steps, v_queues, p_taker);
            p_taker.room := 0;
        END IF;
        -- What was skipped has dependents, too.
        EXIT WHEN p_tasks IS NULL;
    END LOOP;
END
$$;

-- Completes steps: in one transaction deletes their messages, records their results, enqueues the dependents that are now ready and
-- finalises the tasks that are done. Returns the messages whose report counted (the others were stale and changed nothing), and
-- the steps that the worker has leased by the same call: at most p_room of those that are ready now in this queue, and p_ahead with those that have a permit
-- now which came back, none when others wait there, which would be overtaken; and the tasks that are done. The first row has the messages; each of the others is a step or a
-- template's tasks. The arrays are parallel and in msg_id order: (message, fence, task, step, result).
-- Of a step whose task was cancelled while it ran, the result is kept as its last word, and does not count (see 0013_cancel.sql).
-- p_shared: the tasks of which a step's siblings could decide the same thing (leased_step.shared); more are right, too.
-- Locks: first, in id order, p_shared; then messages in order; then steps. The update that finalises a task with a single last step comes last
-- without having locked it first: no other report of that task can be under way, and cancel_tasks waits for nothing while it holds the task.
CREATE FUNCTION tasker.complete_steps(
    p_queue text, p_worker int, p_ids bigint[], p_fences int[], p_tasks uuid[], p_steps smallint[], p_results text[],
    p_shared uuid[], p_room int DEFAULT 0, p_lease interval DEFAULT NULL, p_ahead int DEFAULT 0
) RETURNS TABLE (counted bigint[], next tasker.leased_step, done tasker.finished_tasks)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_held    bigint[];
    v_held_tasks uuid[];
    v_held_steps smallint[];
    v_results text[];
    v_started timestamptz[];
    v_ids     bigint[];
    v_tasks   uuid[];
    v_steps   smallint[];
    v_taken   tasker.leased_message[];
    v_done    tasker.finished_tasks[];
    v_waits   boolean;
    v_undoing boolean;
    v_limited boolean;
BEGIN
    PERFORM tasker.check_reporter(p_queue, p_ids, p_tasks, p_steps, p_shared);
    IF p_shared <> '{}' THEN
        SELECT bool_or(h.state = 'undoing') INTO v_undoing
        FROM (SELECT t.state FROM tasker.tasks t WHERE t.id = ANY (p_shared) ORDER BY t.id FOR NO KEY UPDATE) AS h;
    END IF;

    EXECUTE format('SELECT * FROM tasker.%I($1, $2, $3, $4, $5)', p_queue || '_delete')
    INTO v_held, v_held_tasks, v_held_steps, v_results, v_started USING p_ids, p_fences, p_tasks, p_steps, p_results;

    WITH done AS (
        UPDATE tasker.steps s
        -- An exponent is written out by jsonb.
        SET state = 'complete', result = r.result::jsonb, worker = p_worker, started_at = r.started, finished_at = clock_timestamp(),
            result_bytes = octet_length(CASE WHEN r.result ~ '[0-9][eE][+-]?[0-9]' THEN r.result::jsonb::text ELSE r.result END)
        -- By its place, which its key finds (see 0005_queues.sql): a join by the key could begin at all steps.
        FROM (SELECT u.result, u.started, h.place FROM unnest(v_held, v_held_tasks, v_held_steps, v_results, v_started) AS u(id, task, step, result, started)
              CROSS JOIN LATERAL (SELECT ctid AS place FROM tasker.steps
                                  WHERE task_id = u.task AND step = u.step AND msg_id = u.id AND state = 'enqueued' OFFSET 0) AS h) AS r
        WHERE s.ctid = r.place AND s.state = 'enqueued'
        RETURNING s.msg_id, s.task_id, s.step
    )
    SELECT array_agg(msg_id), array_agg(task_id), array_agg(step) INTO v_ids, v_tasks, v_steps FROM done;

    IF cardinality(v_ids) IS DISTINCT FROM cardinality(v_held) THEN
        PERFORM tasker.keep_last_words(p_worker, v_held, v_held_tasks, v_held_steps, v_results, v_started);
    END IF;
    IF coalesce(cardinality(v_ids), 0) < cardinality(p_ids) THEN
        PERFORM tasker.count_event('stale_reports', cardinality(p_ids) - coalesce(cardinality(v_ids), 0));
    END IF;
    IF v_ids IS NULL THEN
        RETURN;
    END IF;
    v_limited := EXISTS (SELECT FROM tasker.limits);
    IF v_limited THEN
        PERFORM tasker.release_permits(v_tasks, v_steps, array_fill(false, ARRAY[cardinality(v_ids)]));
    END IF;

    IF p_room > 0 OR v_limited AND p_ahead > 0 THEN
        EXECUTE format('SELECT tasker.%I($1)', p_queue || '_waits') INTO v_waits USING p_ids[cardinality(p_ids)];
    END IF;
    SELECT a.taken, a.done INTO v_taken, v_done
    FROM tasker.advance_tasks(v_tasks, v_steps, ROW(p_queue, p_worker, CASE WHEN v_waits THEN 0 ELSE p_room END, p_lease)) AS a;
    IF v_undoing THEN
        PERFORM tasker.advance_undo(v_tasks);
    END IF;
    IF v_limited AND p_lease IS NOT NULL THEN
        v_taken := v_taken || tasker.pass_permits_on(
            ROW(p_queue, p_worker, CASE WHEN v_waits OR EXISTS (SELECT FROM tasker.pauses) THEN 0 ELSE p_ahead - coalesce(cardinality(v_taken), 0) END, p_lease));
    END IF;
    RETURN QUERY SELECT v_ids, NULL::tasker.leased_step, NULL::tasker.finished_tasks;
    IF v_taken IS NOT NULL THEN
        RETURN QUERY SELECT NULL::bigint[], l, NULL::tasker.finished_tasks FROM tasker.leased_steps(v_taken) AS l;
    END IF;
    IF v_done IS NOT NULL THEN
        RETURN QUERY SELECT NULL::bigint[], NULL::tasker.leased_step, d FROM unnest(v_done) AS d;
    END IF;
END
$$;
