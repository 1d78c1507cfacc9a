-- Child counts: how many of a step's children have ended, and how. Who ends a child leaves a row in child_ends, and waits for nobody; whoever comes next
-- adds these rows up, under the lock of the parent.

-- Adds up what children have left in child_ends. Returns how many tasks have such children; it has counted those that nobody else has.
-- Locks: the tasks, skipping those that somebody else has; then those of settle_fan_outs.
CREATE FUNCTION tasker.tally_children(p_limit int) RETURNS int
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_tallied int;
    v_places  tid[];
    v_tasks   uuid[];
    v_steps   smallint[];
BEGIN
    SELECT count(*) FILTER (WHERE u.n = 1), array_agg(u.place) FILTER (WHERE h.id IS NOT NULL OR NOT EXISTS (SELECT FROM tasker.tasks t WHERE t.id = g.task_id))
    INTO v_tallied, v_places
    FROM (SELECT c.task_id, array_agg(c.ctid) AS places FROM (SELECT task_id, ctid FROM tasker.child_ends LIMIT p_limit) AS c GROUP BY c.task_id) AS g
    LEFT JOIN LATERAL (SELECT t.id FROM tasker.tasks t WHERE t.id = g.task_id FOR NO KEY UPDATE SKIP LOCKED) AS h ON true
    CROSS JOIN LATERAL unnest(g.places) WITH ORDINALITY AS u(place, n);
    IF v_places IS NULL THEN
        RETURN v_tallied;
    END IF;
    WITH taken AS (
        DELETE FROM tasker.child_ends c WHERE c.ctid = ANY (v_places) RETURNING c.task_id, c.step, c.ended, c.dead
    ), counted AS (
        UPDATE tasker.fan_outs f
        SET ended = f.ended + s.ended, dead = f.dead + s.dead,
            look_at = CASE WHEN (f.created < f.total OR f.total IS NULL OR f.at_once IS NOT NULL AND EXISTS (
                SELECT FROM tasker.held_replays r WHERE r.parent_id = f.task_id AND r.parent_step = f.step)) AND f.cancelled = 0
                THEN clock_timestamp() ELSE f.look_at END
        -- By its place, which its key finds, as in complete_steps.
        FROM (SELECT k.ended, k.dead, h.place FROM (
                  SELECT task_id, step, sum(ended) AS ended, sum(dead) AS dead FROM taken GROUP BY task_id, step) AS k
              CROSS JOIN LATERAL (SELECT ctid AS place FROM tasker.fan_outs WHERE task_id = k.task_id AND step = k.step OFFSET 0) AS h) AS s
        WHERE f.ctid = s.place
        RETURNING f.task_id, f.step
    )
    SELECT array_agg(c.task_id), array_agg(c.step) INTO v_tasks, v_steps FROM counted c;
    PERFORM tasker.settle_fan_outs(v_tasks, v_steps);
    RETURN v_tallied;
END
$$;

-- When there is something to do about anybody's children; null: it is not known.
CREATE FUNCTION tasker.children_due() RETURNS timestamptz
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT CASE WHEN EXISTS (SELECT FROM tasker.child_ends) THEN now() 
        ELSE (SELECT f.look_at FROM tasker.fan_outs f WHERE f.look_at IS NOT NULL ORDER BY f.look_at LIMIT 1) END;
END;

-- What the counts of these steps' children mean for their tasks: a step is complete when all have ended, but for those that may be dead; a task is
-- blocked while more are; one that was cancelled has ended when its children have.
-- Locks: the caller's, who has those of the tasks.
CREATE FUNCTION tasker.settle_fan_outs(p_tasks uuid[], p_steps smallint[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_tasks uuid[];
    v_steps smallint[];
BEGIN
    PERFORM tasker.end_cancelling(array_agg(DISTINCT t.id)) FROM tasker.tasks t
    WHERE t.id = ANY (p_tasks) AND t.state = 'cancelling' HAVING count(*) > 0;
    PERFORM tasker.block_tasks(ARRAY(SELECT p.task FROM unnest(p_tasks) AS p(task) WHERE tasker.has_too_many_dead(p.task)));
    PERFORM tasker.unblock_tasks(p_tasks);
    WITH done AS (
        UPDATE tasker.steps s
        SET state = 'complete', started_at = s.enqueued_at, finished_at = clock_timestamp(), result = d.result, result_bytes = octet_length(d.result::text)
        FROM (
            SELECT s.ctid AS place, CASE ts.kind
                WHEN 'each' THEN jsonb_build_object('size', f.total, 'errors', f.dead)
                ELSE (SELECT tasker.task_output(c.id) FROM tasker.tasks c WHERE c.parent_id = f.task_id AND c.parent_step = f.step) END AS result
            FROM unnest(p_tasks, p_steps) AS p(task, step)
            CROSS JOIN LATERAL (SELECT * FROM tasker.fan_outs WHERE task_id = p.task AND step = p.step OFFSET 0) AS f
            CROSS JOIN LATERAL (SELECT * FROM tasker.tasks WHERE id = p.task OFFSET 0) AS t
            CROSS JOIN LATERAL (SELECT * FROM tasker.template_steps WHERE version_id = t.version_id AND step = p.step OFFSET 0) AS ts
            CROSS JOIN LATERAL (SELECT ctid FROM tasker.steps WHERE task_id = p.task AND step = p.step AND state = 'waiting' OFFSET 0) AS s
            WHERE f.created = f.total AND f.ended + f.dead >= f.total + f.pages AND f.dead <= f.tolerated AND t.state IN ('running', 'blocked', 'failed')) AS d
        WHERE s.ctid = d.place AND s.state = 'waiting'
        RETURNING s.task_id, s.step
    )
    SELECT array_agg(d.task_id), array_agg(d.step) INTO v_tasks, v_steps FROM done d;
    IF v_tasks IS NOT NULL THEN
        PERFORM tasker.advance_tasks(v_tasks, v_steps);
    END IF;
END
$$;

-- The other part of reconcile, for these tasks: counts the children of their steps again; and cancels those tasks that are children nobody waits for,
-- since their parent was cancelled, or is not there. (One that is complete may have tolerated that they are dead.)
-- Returns how many counts were wrong, and how many were cancelled.
-- Locks: the tasks in id order; then those of settle_fan_outs and of cancel_tasks.
CREATE FUNCTION tasker.recount_children(p_tasks uuid[]) RETURNS int
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_parents uuid[] := ARRAY(SELECT DISTINCT f.task_id FROM tasker.fan_outs f WHERE f.task_id = ANY (p_tasks) AND f.version_id IS NOT NULL);
    v_orphans uuid[];
    v_tasks   uuid[];
    v_steps   smallint[];
BEGIN
    IF v_parents <> '{}' THEN
        PERFORM 1 FROM tasker.tasks t WHERE t.id = ANY (v_parents) ORDER BY t.id FOR NO KEY UPDATE;
        WITH counted AS (
            SELECT f.place, c.created, c.ended - e.ended AS ended, c.dead - e.dead AS dead
            FROM unnest(v_parents) AS p(task)
            CROSS JOIN LATERAL (SELECT *, ctid AS place FROM tasker.fan_outs WHERE task_id = p.task AND version_id IS NOT NULL OFFSET 0) AS f
            CROSS JOIN LATERAL (
                SELECT count(*) FILTER (WHERE t.item >= 0) AS created, count(*) FILTER (WHERE t.state IN ('complete', 'discarded')) AS ended,
                       count(*) FILTER (WHERE t.state IN ('blocked', 'failed', 'cancelled')) AS dead
                FROM tasker.tasks t WHERE t.parent_id = f.task_id AND t.parent_step = f.step) AS c
            CROSS JOIN LATERAL (
                SELECT coalesce(sum(n.ended), 0) AS ended, coalesce(sum(n.dead), 0) AS dead FROM tasker.child_ends n
                WHERE n.task_id = f.task_id AND n.step = f.step) AS e
            WHERE EXISTS (SELECT FROM tasker.steps s WHERE s.task_id = f.task_id AND s.step = f.step AND s.state IN ('waiting', 'cancelling'))
        ), mended AS (
            UPDATE tasker.fan_outs f SET created = c.created, ended = c.ended, dead = c.dead,
                look_at = CASE WHEN (c.created < f.total OR f.total IS NULL) AND f.cancelled = 0 THEN clock_timestamp() ELSE f.look_at END
            FROM counted c
            WHERE f.ctid = c.place AND (f.created, f.ended, f.dead) IS DISTINCT FROM (c.created, c.ended, c.dead)
            RETURNING f.task_id, f.step
        )
        SELECT array_agg(m.task_id), array_agg(m.step) INTO v_tasks, v_steps FROM mended m;
        PERFORM tasker.settle_fan_outs(v_tasks, v_steps);
    END IF;
    v_orphans := ARRAY(
        SELECT t.id FROM tasker.tasks t
        WHERE t.id = ANY (p_tasks) AND t.parent_id IS NOT NULL AND t.finished_at IS NULL
          AND NOT EXISTS (SELECT FROM tasker.tasks p WHERE p.id = t.parent_id AND p.state NOT IN ('cancelled', 'discarded')));
    IF v_orphans <> '{}' THEN
        PERFORM tasker.cancel_tasks(v_orphans);
    END IF;
    RETURN coalesce(cardinality(v_tasks), 0) + cardinality(v_orphans);
END
$$;

-- A task with the tasks below it, whose work theirs is, by generations: at most p_limit of them, the first p_each of each parent.
CREATE FUNCTION tasker.read_family(p_task uuid, p_each int, p_limit int) RETURNS SETOF jsonb
LANGUAGE sql STABLE BEGIN ATOMIC
    WITH RECURSIVE family AS (
        SELECT t.id, t.version_id, t.template_id, NULL::uuid AS parent, NULL::smallint AS step, NULL::int AS item, 0 AS depth
        FROM tasker.tasks t WHERE t.id = p_task
        UNION ALL
        SELECT c.id, c.version_id, c.template_id, f.id, c.parent_step, c.item, f.depth + 1
        FROM family f CROSS JOIN LATERAL (
            SELECT * FROM tasker.tasks WHERE parent_id = f.id AND item >= 0 ORDER BY parent_step, item LIMIT p_each) AS c
        WHERE f.depth < 20
    ), seen AS (SELECT * FROM family LIMIT p_limit)
    SELECT jsonb_build_object(
        'id', s.id, 'parent', s.parent, 'step', (SELECT ts.name FROM tasker.template_steps ts WHERE ts.version_id = p.version_id AND ts.step = s.step),
        'item', s.item, 'depth', s.depth, 'template', tp.name, 'state', tasker.visible_state(t))
    FROM seen s
    JOIN tasker.tasks t ON t.id = s.id
    JOIN tasker.templates tp ON tp.id = s.template_id
    LEFT JOIN tasker.tasks p ON p.id = s.parent;
END;

-- A page of what became of the children of a step, in order: those after p_after (null: from the first; of the dead ones, from the pages), p_limit at most, and no more than p_bytes of
-- results once there is one; with p_dead only those that are dead. p_before: for the handler of that step, which depends on it.
CREATE FUNCTION tasker.read_children(
    p_task uuid, p_before smallint, p_name text, p_after int, p_limit int, p_dead boolean DEFAULT false, p_bytes bigint DEFAULT 1048576
) RETURNS TABLE (item int, id uuid, state text, result text, error jsonb)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_step  smallint;
    v_of    uuid;
    v_bytes bigint := 0;
BEGIN
    IF NOT (CASE WHEN p_before IS NULL THEN tasker.is_one_of('{tasker_read, tasker_worker, tasker_operate}')
            ELSE tasker.may_work_on(p_task, p_before) END) THEN
        RETURN;
    END IF;
    SELECT ts.step INTO v_step FROM tasker.tasks t JOIN tasker.template_steps ts ON ts.version_id = t.version_id AND ts.name = p_name
    WHERE t.id = p_task AND (p_before IS NULL OR EXISTS (
        SELECT FROM tasker.template_steps b WHERE b.version_id = t.version_id AND b.step = p_before AND ts.step = ANY (b.parents)));
    v_of := coalesce((SELECT f.children_of FROM tasker.fan_outs f WHERE f.task_id = p_task AND f.step = v_step), p_task);
    FOR item, id, state, result, error IN
        SELECT c.item, c.id, tasker.visible_state(c)::text, tasker.task_output(c.id)::text, CASE WHEN c.state IN ('blocked', 'failed') THEN (
                   SELECT s.errors -> -1 FROM tasker.steps s WHERE s.task_id = c.id AND s.state = 'dead' ORDER BY s.step LIMIT 1) END
        FROM tasker.tasks c
        WHERE c.parent_id = v_of AND c.parent_step = v_step AND c.item > coalesce(p_after, CASE WHEN p_dead THEN -2147483648 ELSE -1 END)
          AND (NOT p_dead OR c.state IN ('blocked', 'failed', 'cancelled'))
        ORDER BY c.item LIMIT p_limit
    LOOP
        v_bytes := v_bytes + coalesce(octet_length(result), 0);
        EXIT WHEN v_bytes > p_bytes AND v_bytes > octet_length(result);
        RETURN NEXT;
    END LOOP;
END
$$;
