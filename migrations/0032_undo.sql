-- Undo: what takes back the effect of steps, in the reverse order of the graph. A task that is to be undone (tasks.undo_as) ends first as one that is
-- cancelled does, so that nothing of it runs any more; then it is undoing. For each step that names a handler for this, and for each whose work was
-- other tasks, its version has another step (template_steps.undoes): a handler's is sent like any other, with retries and dead letters of its own; the
-- other waits until these tasks are undone. When all have ended, the task is what it was to be. One that is dead holds its task: nothing is half undone
-- in silence.

-- Whether a step may have done something: it is complete; or nobody knows what became of its last run, or it has done once what it remembers. One that
-- has failed is taken to have done nothing.
CREATE FUNCTION tasker.has_effect(p_task uuid, p_step smallint) RETURNS boolean
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT EXISTS (
        SELECT FROM tasker.steps s
        WHERE s.task_id = p_task AND s.step = p_step AND s.state <> 'skipped' AND s.taken_over IS NULL AND (
            s.state = 'complete' OR s.after_cancel IN ('complete', 'unknown')
            OR s.state = 'dead' AND (s.errors -> -1 ->> 'reason' IN ('timeout', 'poison')
                                     OR s.errors -> -1 ->> 'class' IN ('DeadlineExceeded', 'Stuck') AND s.msg_id IS NOT NULL)
            OR EXISTS (SELECT FROM tasker.memories m WHERE m.task_id = p_task AND m.step = p_step AND m.name LIKE 'once/%')))
        OR EXISTS (SELECT FROM tasker.fan_outs f WHERE f.task_id = p_task AND f.step = p_step AND f.created > 0 AND f.children_of IS NULL);
END;

-- Begins to undo tasks of which nothing runs any more: what there is nothing to undo of is skipped.
-- Locks: the caller's, who has those of the tasks; then it creates rows.
CREATE FUNCTION tasker.begin_undo(p_tasks uuid[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO tasker.steps (task_id, step, state, enqueued_at, finished_at, skipped_because)
    SELECT t.id, u.step, 'skipped', n.now, n.now, 'there is nothing to undo'
    FROM tasker.tasks t
    CROSS JOIN LATERAL (SELECT * FROM tasker.template_steps WHERE version_id = t.version_id AND undoes IS NOT NULL OFFSET 0) AS u
    CROSS JOIN (SELECT clock_timestamp()) AS n(now)
    WHERE t.id = ANY (p_tasks) AND NOT tasker.has_effect(t.id, u.undoes);
    PERFORM tasker.advance_undo(p_tasks);
END
$$;

-- Of those of these tasks that are undoing: sends what is to be undone next, and ends those of which everything is. Returns how many steps and tasks
-- that concerned.
-- Locks: the caller's, who has those of the tasks; then it creates rows.
CREATE FUNCTION tasker.advance_undo(p_tasks uuid[]) RETURNS int
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_tasks  uuid[];
    v_steps  smallint[];
    v_queues text[];
    v_kinds  text[];
BEGIN
    p_tasks := ARRAY(SELECT DISTINCT t.id FROM tasker.tasks t WHERE t.id = ANY (p_tasks) AND t.state = 'undoing');
    IF p_tasks = '{}' THEN
        RETURN 0;
    END IF;
    SELECT array_agg(t.id), array_agg(u.step), array_agg(u.queue), array_agg(u.kind) INTO v_tasks, v_steps, v_queues, v_kinds
    FROM tasker.tasks t
    CROSS JOIN LATERAL (SELECT * FROM tasker.template_steps WHERE version_id = t.version_id AND undoes IS NOT NULL OFFSET 0) AS u
    WHERE t.id = ANY (p_tasks) AND NOT EXISTS (SELECT FROM tasker.steps s WHERE s.task_id = t.id AND s.step = u.step) AND NOT EXISTS (
        SELECT FROM tasker.template_steps b
        WHERE b.version_id = t.version_id AND b.undoes IS NOT NULL AND u.step = ANY (b.children) AND NOT tasker.is_undone(t.id, b.step));

    INSERT INTO tasker.steps (task_id, step, state, enqueued_at)
    SELECT u.task, u.step, 'waiting', clock_timestamp() FROM unnest(v_tasks, v_steps, v_kinds) AS u(task, step, kind) WHERE u.kind = 'undo';
    IF FOUND THEN
        INSERT INTO tasker.fan_outs (task_id, step, look_at)
        SELECT u.task, u.step, clock_timestamp() FROM unnest(v_tasks, v_steps, v_kinds) AS u(task, step, kind) WHERE u.kind = 'undo';
        PERFORM tasker.notify('tasker_children', '');
    END IF;
    PERFORM tasker.enqueue_steps(array_agg(u.task), array_agg(u.step), array_agg(u.queue))
    FROM unnest(v_tasks, v_steps, v_queues, v_kinds) AS u(task, step, queue, kind) WHERE u.kind <> 'undo' HAVING count(*) > 0;
    RETURN coalesce(cardinality(v_tasks), 0) + tasker.end_undo(p_tasks);
END
$$;

-- Whether a step that undoes another has ended.
CREATE FUNCTION tasker.is_undone(p_task uuid, p_step smallint) RETURNS boolean
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT EXISTS (SELECT FROM tasker.steps s WHERE s.task_id = p_task AND s.step = p_step AND s.state IN ('complete', 'skipped', 'discarded'));
END;

-- Ends those of these tasks that are undone. A child of a task that is being undone tells that one; of another it is dead: nobody has its result.
-- Returns how many.
-- Locks: the caller's, who has those of the tasks.
CREATE FUNCTION tasker.end_undo(p_tasks uuid[]) RETURNS int
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_undone   int;
    v_parents  uuid[];
    v_of_steps smallint[];
    v_undoing  smallint[];
BEGIN
    WITH ended AS (
        UPDATE tasker.tasks t SET state = t.undo_as, finished_at = clock_timestamp()
        WHERE t.id = ANY (p_tasks) AND NOT EXISTS (
            SELECT FROM tasker.template_steps u WHERE u.version_id = t.version_id AND u.undoes IS NOT NULL AND NOT tasker.is_undone(t.id, u.step))
        RETURNING t.parent_id, t.parent_step
    )
    SELECT count(*), array_agg(e.parent_id), array_agg(e.parent_step), array_agg((
        SELECT u.step FROM tasker.tasks p JOIN tasker.template_steps u ON u.version_id = p.version_id AND u.undoes = e.parent_step
        WHERE p.id = e.parent_id AND p.state = 'undoing'))
    INTO v_undone, v_parents, v_of_steps, v_undoing FROM ended e;
    PERFORM tasker.note_children(array_agg(c.parent), array_agg(coalesce(c.undoing, c.step)), 0, (c.undoing IS NULL)::int)
    FROM unnest(v_parents, v_of_steps, v_undoing) AS c(parent, step, undoing) WHERE c.parent IS NOT NULL GROUP BY c.undoing IS NULL;
    RETURN v_undone;
END
$$;

-- Has the children that a step had undone, at most p_room of them by this call, and completes the step that does so once all of them have ended.
-- Returns of how many. Of its row in fan_outs, created are those that were told, and ended those that were found to have ended, in their order.
-- Locks: the caller's, who has that of the task; then those of cancel_tasks, for its children.
CREATE FUNCTION tasker.undo_children(p_task tasker.tasks, p_step smallint, p_room int) RETURNS int
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_of      smallint;
    v_total   int;
    v_fan_out tasker.fan_outs;
    v_until   int;
    v_ended   int;
    v_done    boolean;
BEGIN
    SELECT u.undoes INTO v_of FROM tasker.template_steps u WHERE u.version_id = p_task.version_id AND u.step = p_step;
    IF v_of IS NULL THEN
        UPDATE tasker.fan_outs f SET look_at = NULL WHERE f.task_id = p_task.id AND f.step = p_step;
        RETURN 0;
    END IF;
    SELECT f.created INTO v_total FROM tasker.fan_outs f WHERE f.task_id = p_task.id AND f.step = v_of;
    SELECT * INTO v_fan_out FROM tasker.fan_outs f WHERE f.task_id = p_task.id AND f.step = p_step;
    v_until := least(v_total, v_fan_out.created + p_room);
    PERFORM tasker.cancel_tasks(ARRAY(
        SELECT c.id FROM tasker.tasks c
        WHERE c.parent_id = p_task.id AND c.parent_step = v_of AND c.item >= v_fan_out.created AND c.item < v_until), true);
    v_ended := least(v_until, v_fan_out.ended + p_room);
    v_ended := coalesce((
        SELECT c.item FROM tasker.tasks c
        WHERE c.parent_id = p_task.id AND c.parent_step = v_of AND c.item >= v_fan_out.ended AND c.item < v_ended AND c.finished_at IS NULL
        ORDER BY c.item LIMIT 1), v_ended);
    v_done := v_ended = v_total;
    -- Whoever ends tells us (end_undo), unless it began by itself, before us: so it is looked again from time to time.
    UPDATE tasker.fan_outs f
    SET created = v_until, ended = v_ended, look_at = CASE
        WHEN v_done THEN NULL
        WHEN v_until < v_total OR v_ended = v_fan_out.ended + p_room THEN clock_timestamp()
        ELSE clock_timestamp() + interval '5 seconds' END
    WHERE f.task_id = p_task.id AND f.step = p_step;
    IF v_done THEN
        UPDATE tasker.steps s SET state = 'complete', started_at = s.enqueued_at, finished_at = clock_timestamp()
        WHERE s.task_id = p_task.id AND s.step = p_step AND s.state = 'waiting';
        PERFORM tasker.advance_undo(ARRAY[p_task.id]);
    END IF;
    RETURN greatest(v_until - v_fan_out.created, v_ended - v_fan_out.ended);
END
$$;
