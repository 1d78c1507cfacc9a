-- Forks: a task that has ended, or is blocked, is run again from a step on, as another task. What was complete beside that step, and before it, is taken
-- over with its results; it was not done by the fork, which undoes none of it.

-- Creates the fork of a task: of the same version, with its input (or p_input), priority and tags, without its key, and nobody's child. p_from: the step
-- from which on everything is done again; null: from the beginning.
-- Errors: TK002 there is no such task, or no such step; TK004 it has not ended, or what it did was undone; TK006 the input is too large.
-- Locks: nothing but its own rows.
CREATE FUNCTION tasker.fork_task(p_task uuid, p_from text DEFAULT NULL, p_input jsonb DEFAULT NULL) RETURNS uuid
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_fork   uuid := tasker.uuidv7();
    v_task   tasker.tasks;
    v_from   smallint;
    v_tasks  uuid[];
    v_steps  smallint[];
    v_queues text[];
    v_skipped_tasks uuid[];
    v_skipped_steps smallint[];
BEGIN
    SELECT * INTO v_task FROM tasker.tasks t WHERE t.id = p_task;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'no task %', p_task USING ERRCODE = 'TK002';
    ELSIF v_task.state <> 'blocked' AND v_task.finished_at IS NULL THEN
        RAISE EXCEPTION 'task % is %', p_task, tasker.visible_state(v_task)
            USING ERRCODE = 'TK004', HINT = 'only one that has ended, or is blocked, is forked: cancel it first';
    ELSIF p_from IS NOT NULL AND v_task.undo_as IS NOT NULL THEN
        RAISE EXCEPTION 'what task % did was undone', p_task USING ERRCODE = 'TK004', HINT = 'fork it from the beginning';
    ELSIF jsonb_typeof(p_input) <> 'object' THEN
        RAISE EXCEPTION 'the input is not a JSON object' USING ERRCODE = 'TK004';
    ELSIF tasker.excess(p_input) IS NOT NULL THEN
        RAISE EXCEPTION 'the input has %', tasker.excess(p_input) USING ERRCODE = 'TK006', HINT = 'keep it elsewhere, and pass where';
    END IF;
    SELECT ts.step INTO v_from FROM tasker.template_steps ts WHERE ts.version_id = v_task.version_id AND ts.name = p_from AND ts.undoes IS NULL;
    IF v_from IS NULL AND p_from IS NOT NULL THEN
        RAISE EXCEPTION 'task % has no step %', p_task, p_from USING ERRCODE = 'TK002';
    END IF;

    INSERT INTO tasker.tasks (id, template_id, version_id, namespace_id, priority, state, claim_order, input, tags, trace, created_at, started_at,
                              deadline_at, look_at, forked_from)
    SELECT v_fork, v_task.template_id, v_task.version_id, v_task.namespace_id, v_task.priority,
           CASE WHEN v_from IS NULL THEN 'pending' ELSE 'running' END::tasker.task_state,
           CASE WHEN v_from IS NULL THEN n.now - v_task.priority * tasker.aging() END, coalesce(p_input, v_task.input),
           CASE WHEN p_input IS NULL THEN v_task.tags ELSE tasker.tags_of(tv.definition, p_input, NULL) END, v_task.trace, n.now,
           CASE WHEN v_from IS NOT NULL THEN n.now END, n.now + tv.deadline, n.now + least(tv.deadline, tasker.shortest_limit(tv)), p_task
    FROM tasker.template_versions tv, (SELECT clock_timestamp()) AS n(now) WHERE tv.id = v_task.version_id;
    IF v_from IS NULL THEN
        PERFORM tasker.wake_namespaces(ARRAY[v_task.namespace_id]);
        PERFORM tasker.notify('tasker_tasks', n.name) FROM tasker.namespaces n WHERE n.id = v_task.namespace_id;
        RETURN v_fork;
    END IF;

    WITH RECURSIVE again AS (
        SELECT v_from AS step
        UNION SELECT c.step FROM again a JOIN tasker.template_steps ts ON ts.version_id = v_task.version_id AND ts.step = a.step
        CROSS JOIN unnest(ts.children) AS c(step)
    ), taken AS (
        INSERT INTO tasker.steps (task_id, step, state, failures, worker, enqueued_at, started_at, finished_at, result_bytes, result, errors,
                                  skipped_because, taken_over)
        SELECT v_fork, s.step, s.state, s.failures, s.worker, s.enqueued_at, s.started_at, s.finished_at, s.result_bytes, s.result, s.errors,
               s.skipped_because, true
        FROM tasker.steps s JOIN tasker.template_steps ts ON ts.version_id = v_task.version_id AND ts.step = s.step AND ts.undoes IS NULL
        WHERE s.task_id = p_task AND s.step NOT IN (SELECT a.step FROM again a)
          -- What was skipped because the task was finished early is decided anew.
          AND (s.state = 'complete' OR s.state = 'skipped' AND v_task.finished_by IS NULL)
        RETURNING step
    )
    INSERT INTO tasker.fan_outs (task_id, step, version_id, total, at_once, tolerated, created, ended, dead, pages, pages_read, known, cancelled, children_of)
    SELECT v_fork, f.step, f.version_id, f.total, f.at_once, f.tolerated, f.created, f.ended, f.dead, f.pages, f.pages, f.known, f.created,
           coalesce(f.children_of, p_task)
    FROM tasker.fan_outs f JOIN taken k ON k.step = f.step WHERE f.task_id = p_task;

    SELECT array_agg(v_fork ORDER BY ts.step), array_agg(ts.step ORDER BY ts.step), array_agg(ts.queue ORDER BY ts.step) INTO v_tasks, v_steps, v_queues
    FROM tasker.template_steps ts
    WHERE ts.version_id = v_task.version_id AND ts.undoes IS NULL
      AND NOT EXISTS (SELECT FROM tasker.steps s WHERE s.task_id = v_fork AND s.step = ts.step)
      AND cardinality(ts.parents) = (SELECT count(*) FROM tasker.steps s WHERE s.task_id = v_fork AND s.step = ANY (ts.parents));
    SELECT d.p_tasks, d.p_steps, d.p_queues, d.skipped_tasks, d.skipped_steps INTO v_tasks, v_steps, v_queues, v_skipped_tasks, v_skipped_steps
    FROM tasker.decide_steps(v_tasks, v_steps, v_queues) AS d;
    IF v_tasks IS NOT NULL THEN
        PERFORM tasker.enqueue_steps(v_tasks, v_steps, v_queues);
    END IF;
    IF v_skipped_tasks IS NOT NULL THEN
        PERFORM tasker.advance_tasks(v_skipped_tasks, v_skipped_steps);
    END IF;
    RETURN v_fork;
END
$$;
