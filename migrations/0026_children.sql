-- Children: tasks that do the work of another task's step, one for every element of a list (each), or one (workflow). They are ordinary tasks. The step
-- waits for counts (see 0027_child_counts.sql). Children are created in slices, each a transaction.

-- The SQL/JSON value that the paths of a step are about: {input, results}, without the results of steps that were skipped.
CREATE FUNCTION tasker.seen_by(p_task uuid, p_step smallint) RETURNS jsonb
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT jsonb_build_object('input', t.input, 'results', (
        SELECT coalesce(jsonb_object_agg(pts.name, ps.result) FILTER (WHERE ps.skipped_because IS NULL), '{}')
        FROM tasker.template_steps pts
        CROSS JOIN LATERAL (SELECT * FROM tasker.steps WHERE task_id = p_task AND step = pts.step OFFSET 0) AS ps
        WHERE pts.version_id = t.version_id AND pts.step = ANY (ts.parents)))
    FROM tasker.tasks t JOIN tasker.template_steps ts ON ts.version_id = t.version_id AND ts.step = p_step WHERE t.id = p_task;
END;

-- The elements that a step is for, as one array; null where its path does not find one. A path with [*] finds elements, any other the array. Those that it
-- is given page by page are not known yet.
CREATE FUNCTION tasker.items_of(p_spawn jsonb, p_seen jsonb) RETURNS jsonb
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_over  text := p_spawn ->> 'over';
    v_found jsonb;
BEGIN
    IF p_spawn ? 'pages' THEN
        RETURN '[]';
    ELSIF v_over IS NULL THEN
        RETURN '[null]';
    END IF;
    v_found := jsonb_path_query_array(p_seen, v_over::jsonpath, '{}', true);
    IF position('[*]' IN v_over) = 0 THEN
        v_found := CASE WHEN jsonb_array_length(v_found) = 1 AND jsonb_typeof(v_found -> 0) = 'array' THEN v_found -> 0 END;
    END IF;
    RETURN v_found;
END
$$;

-- Of these elements those from p_from to p_until - 1. A path that has nothing but names is followed in the input, or the result, that it begins with: to put
-- a list of 100,000 elements into one value takes 30 ms, and this is asked for each slice.
CREATE FUNCTION tasker.slice_of_items(p_task tasker.tasks, p_step smallint, p_spawn jsonb, p_from int, p_until int) RETURNS jsonb
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_names text[] := regexp_match(p_spawn ->> 'over', '^\$\.(?:input|results\.(\w+))((?:\.\w+)*)$');
    v_slice text := format('[%s to %s]', p_from, p_until - 1);
    v_about jsonb;
BEGIN
    IF v_names IS NULL THEN
        RETURN jsonb_path_query_array(tasker.items_of(p_spawn, tasker.seen_by(p_task.id, p_step)), ('$' || v_slice)::jsonpath);
    ELSIF v_names[1] IS NULL THEN
        v_about := p_task.input;
    ELSE
        SELECT s.result INTO v_about FROM tasker.template_steps ts JOIN tasker.steps s ON s.task_id = p_task.id AND s.step = ts.step
        WHERE ts.version_id = p_task.version_id AND ts.name = v_names[1];
    END IF;
    RETURN jsonb_path_query_array(v_about, ('$' || v_names[2] || v_slice)::jsonpath, '{}', true);
END
$$;

-- The input of a child. Without input in p_spawn: of each the element, as {item: …} where it is no object, or {items: […]} where they come in batches;
-- of a workflow its parent's. Else what its path finds, or of each of its names what the path there finds ($item and $index are the element and its
-- number).
CREATE FUNCTION tasker.child_input(p_spawn jsonb, p_seen jsonb, p_item jsonb, p_index int) RETURNS jsonb
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_vars jsonb;
BEGIN
    IF NOT p_spawn ? 'input' THEN
        RETURN CASE
            WHEN NOT p_spawn ?| '{over, pages}' THEN p_seen -> 'input'
            WHEN p_spawn ? 'batch' THEN jsonb_build_object('items', p_item)
            WHEN jsonb_typeof(p_item) = 'object' THEN p_item
            ELSE jsonb_build_object('item', p_item) END;
    END IF;
    v_vars := jsonb_build_object('item', p_item, 'index', p_index);
    IF jsonb_typeof(p_spawn -> 'input') = 'string' THEN
        RETURN jsonb_path_query_first(p_seen, (p_spawn ->> 'input')::jsonpath, v_vars, true);
    END IF;
    RETURN (SELECT coalesce(jsonb_object_agg(e.name, jsonb_path_query_first(p_seen, e.path::jsonpath, v_vars, true)), '{}')
            FROM jsonb_each_text(p_spawn -> 'input') AS e(name, path));
END
$$;

-- What a task has to say: what its template names as its output, or the result of its only step, or the results by step.
CREATE FUNCTION tasker.task_output(p_task uuid) RETURNS jsonb
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT CASE
        WHEN t.state <> 'complete' THEN NULL
        WHEN tv.definition ? 'output' THEN jsonb_path_query_first(
            jsonb_build_object('input', t.input, 'results', r.results), (tv.definition ->> 'output')::jsonpath, '{}', true)
        WHEN jsonb_array_length(tv.definition -> 'steps') = 1 THEN r.only
        ELSE r.results END
    FROM tasker.tasks t JOIN tasker.template_versions tv ON tv.id = t.version_id
    CROSS JOIN LATERAL (
        SELECT coalesce(jsonb_object_agg(ts.name, s.result) FILTER (WHERE s.skipped_because IS NULL), '{}') AS results, (array_agg(s.result))[1] AS only
        FROM tasker.template_steps ts
        CROSS JOIN LATERAL (SELECT * FROM tasker.steps WHERE task_id = p_task AND step = ts.step OFFSET 0) AS s
        WHERE ts.version_id = t.version_id) AS r
    WHERE t.id = p_task;
END;

-- Decides of which version the children of a step are, and how many there will be; or why it cannot have any.
CREATE FUNCTION tasker.begin_fan_out(p_task tasker.tasks, p_spawn jsonb, p_seen jsonb, p_items jsonb, INOUT p_fan_out tasker.fan_outs, OUT reason text, OUT problem text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_version tasker.template_versions;
    v_found   jsonb;
    v_depth   int;
BEGIN
    IF p_items IS NULL THEN
        v_found := jsonb_path_query_array(p_seen, (p_spawn ->> 'over')::jsonpath, '{}', true);
        reason := 'not_a_list';
        problem := (p_spawn ->> 'over') || ' finds ' || CASE jsonb_array_length(v_found)
            WHEN 0 THEN 'nothing' WHEN 1 THEN 'a value of the type ' || jsonb_typeof(v_found -> 0) ELSE jsonb_array_length(v_found) || ' values' END
            || ': expected one array (or a path with [*], which finds its elements)';
        RETURN;
    END IF;
    BEGIN
        v_version := tasker.find_template(p_spawn ->> 'template', p_spawn ->> 'version');
    EXCEPTION WHEN SQLSTATE 'TK002' OR SQLSTATE 'TK003' THEN
        reason := 'unknown_template';
        problem := SQLERRM;
        RETURN;
    END;
    IF v_version.definition ? 'max_depth' THEN
        WITH RECURSIVE above AS (
            SELECT p_task.template_id AS template_id, p_task.parent_id AS parent_id
            UNION ALL SELECT t.template_id, t.parent_id FROM above a JOIN tasker.tasks t ON t.id = a.parent_id
        )
        SELECT count(*) INTO v_depth FROM above a WHERE a.template_id = v_version.template_id;
        IF v_depth >= (v_version.definition ->> 'max_depth')::int THEN
            reason := 'max_depth';
            problem := (p_spawn ->> 'template') || ' is ' || v_depth || ' deep already, and its max_depth is ' || (v_version.definition ->> 'max_depth');
            RETURN;
        END IF;
    END IF;
    p_fan_out.version_id := v_version.id;
    p_fan_out.at_once := p_spawn ->> 'limit';
    IF p_spawn ? 'pages' THEN
        -- A share is one of all: how many that is shows with the last page.
        p_fan_out.tolerated := CASE WHEN p_spawn ? 'tolerate_share' THEN 2147483647 ELSE coalesce((p_spawn ->> 'tolerate')::int, 0) END;
        RETURN;
    END IF;
    p_fan_out.total := ceil(jsonb_array_length(p_items)::numeric / coalesce((p_spawn ->> 'batch')::int, 1));
    p_fan_out.tolerated := CASE WHEN p_spawn ? 'tolerate_share' THEN floor(p_fan_out.total * (p_spawn ->> 'tolerate_share')::numeric)
        ELSE coalesce((p_spawn ->> 'tolerate')::int, 0) END;
END
$$;

-- Creates tasks of this version that do parts of a step, with these inputs; p_first is the number of the first part. They inherit what children do.
-- Locks: none; it creates rows.
CREATE FUNCTION tasker.insert_children(p_task tasker.tasks, p_step smallint, p_version int, p_inputs jsonb[], p_first int) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO tasker.tasks (id, template_id, version_id, namespace_id, priority, state, claim_order, input, tags, trace, parent_id, parent_step, item,
                              deadline_at, look_at, created_at)
    SELECT tasker.uuidv7(), tv.template_id, tv.id, tp.namespace_id, p_task.priority, 'pending', clock_timestamp() - p_task.priority * tasker.aging(),
           w.input, CASE WHEN tv.definition ? 'tags' THEN tasker.tags_of(tv.definition, w.input, p_task.tags) ELSE p_task.tags END, p_task.trace,
           p_task.id, p_step, p_first + w.n - 1, d.deadline_at, least(d.deadline_at, now() + tasker.shortest_limit(tv)), now()
    FROM tasker.template_versions tv
    JOIN tasker.templates tp ON tp.id = tv.template_id
    CROSS JOIN LATERAL (SELECT least(p_task.deadline_at, now() + tv.deadline) AS deadline_at) AS d
    CROSS JOIN unnest(p_inputs) WITH ORDINALITY AS w(input, n)
    WHERE tv.id = p_version;
END
$$;

-- Creates the children of a step from the last that there is to p_until - 1, for p_items, of which the first is for the child p_first. Returns why it
-- cannot; null: it has.
-- Locks: the caller's, who has that of the task; then it creates rows.
CREATE FUNCTION tasker.create_children(
    p_task tasker.tasks, p_fan_out tasker.fan_outs, p_spawn jsonb, p_seen jsonb, p_items jsonb, p_until int, p_first int
) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_from   int := p_fan_out.created;
    v_batch  int := p_spawn ->> 'batch';
    v_inputs jsonb[];
    v_bad    text;
BEGIN
    v_inputs := ARRAY(
        SELECT tasker.child_input(p_spawn, p_seen, CASE WHEN v_batch IS NULL THEN p_items -> (i.n - p_first) ELSE (
                   SELECT jsonb_agg(p_items -> b.n)
                   FROM generate_series((i.n - p_first) * v_batch, least((i.n - p_first + 1) * v_batch, jsonb_array_length(p_items)) - 1) AS b(n)) END, i.n)
        FROM generate_series(v_from, p_until - 1) AS i(n) ORDER BY i.n);
    SELECT 'the input of task ' || (v_from + w.n - 1) || CASE WHEN jsonb_typeof(w.input) IS DISTINCT FROM 'object'
               THEN ' is ' || coalesce('of the type ' || jsonb_typeof(w.input), 'not there') || ': expected an object' ELSE ' has ' || tasker.excess(w.input) END
    INTO v_bad FROM unnest(v_inputs) WITH ORDINALITY AS w(input, n)
    WHERE jsonb_typeof(w.input) IS DISTINCT FROM 'object' OR pg_column_size(w.input) > 1000 AND tasker.excess(w.input) IS NOT NULL ORDER BY w.n LIMIT 1;
    IF v_bad IS NULL THEN
        PERFORM tasker.insert_children(p_task, p_fan_out.step, p_fan_out.version_id, v_inputs, v_from);
    END IF;
    RETURN v_bad;
END
$$;

-- Of these steps, which were replayed, holds those back that are of children of which their parents have only so many at once: free_replays lets them go.
-- One whose task is still blocked is not under way, and is not held.
-- Locks: the caller's, who has those of the tasks.
CREATE FUNCTION tasker.hold_replays(p_tasks uuid[], p_steps smallint[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_parents uuid[];
    v_steps   smallint[];
BEGIN
    WITH held AS (
        INSERT INTO tasker.held_replays AS r (parent_id, parent_step, task_id, steps, due_at)
        SELECT t.parent_id, t.parent_step, a.task, array_agg(a.step), max(s.retry_at) FROM unnest(p_tasks, p_steps) AS a(task, step)
        CROSS JOIN LATERAL (SELECT parent_id, parent_step FROM tasker.tasks WHERE id = a.task AND state = 'running' OFFSET 0) AS t
        CROSS JOIN LATERAL (SELECT FROM tasker.fan_outs WHERE task_id = t.parent_id AND step = t.parent_step AND at_once IS NOT NULL OFFSET 0) AS f
        CROSS JOIN LATERAL (SELECT FROM tasker.steps WHERE task_id = t.parent_id AND step = t.parent_step AND state = 'waiting' OFFSET 0) AS p
        CROSS JOIN LATERAL (SELECT retry_at FROM tasker.steps WHERE task_id = a.task AND step = a.step AND state = 'waiting_retry' OFFSET 0) AS s
        GROUP BY t.parent_id, t.parent_step, a.task ORDER BY max(s.retry_at), a.task
        ON CONFLICT (task_id) DO UPDATE SET steps = r.steps || excluded.steps, due_at = greatest(r.due_at, excluded.due_at)
        RETURNING r.parent_id, r.parent_step, r.task_id, r.steps
    ), later AS (
        UPDATE tasker.steps s SET retry_at = 'infinity'
        FROM (SELECT k.place FROM held h CROSS JOIN unnest(h.steps) AS u(step)
              CROSS JOIN LATERAL (SELECT ctid AS place FROM tasker.steps WHERE task_id = h.task_id AND step = u.step OFFSET 0) AS k) AS k
        WHERE s.ctid = k.place AND s.state = 'waiting_retry'
    )
    SELECT array_agg(h.parent_id), array_agg(h.parent_step) INTO v_parents, v_steps FROM held h;
    PERFORM tasker.note_children(v_parents, v_steps, 0, 0);
END
$$;

-- Lets children go whose dead letters were replayed, as many as there is room for under what their step allows at once; all of them, where that does not
-- wait for them any more (p_at_once null).
-- Locks: the caller's, who has that of the parent; then steps that are held back.
CREATE FUNCTION tasker.free_replays(p_fan_out tasker.fan_outs, p_at_once int) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_room int;
BEGIN
    -- Those that are replayed are counted in child_ends first.
    SELECT CASE WHEN h.held > 0 THEN p_at_once - (p_fan_out.created + p_fan_out.pages - p_fan_out.ended - p_fan_out.dead - h.held
               - coalesce((SELECT sum(c.ended + c.dead) FROM tasker.child_ends c WHERE c.task_id = p_fan_out.task_id AND c.step = p_fan_out.step), 0)) ELSE 0 END
    INTO v_room
    FROM (SELECT count(*) AS held FROM tasker.held_replays r WHERE r.parent_id = p_fan_out.task_id AND r.parent_step = p_fan_out.step) AS h;
    IF v_room <= 0 THEN
        RETURN;
    END IF;
    WITH freed AS (
        DELETE FROM tasker.held_replays r WHERE r.n = ANY (ARRAY(
            SELECT k.n FROM tasker.held_replays k WHERE k.parent_id = p_fan_out.task_id AND k.parent_step = p_fan_out.step ORDER BY k.n LIMIT v_room))
          AND r.parent_id = p_fan_out.task_id AND r.parent_step = p_fan_out.step
        RETURNING r.task_id, r.steps, r.due_at
    )
    UPDATE tasker.steps s SET retry_at = greatest(k.due_at, clock_timestamp())
    FROM (SELECT k.place, f.due_at FROM freed f CROSS JOIN unnest(f.steps) AS u(step)
          CROSS JOIN LATERAL (SELECT ctid AS place FROM tasker.steps WHERE task_id = f.task_id AND step = u.step AND retry_at = 'infinity' OFFSET 0) AS k) AS k
    WHERE s.ctid = k.place AND s.state = 'waiting_retry';
    PERFORM tasker.notify('tasker_due', '');
END
$$;

-- A step cannot have the children that it is to have.
-- Locks: the caller's, who has that of the task; then those of kill_step.
CREATE FUNCTION tasker.refuse_fan_out(p_task uuid, p_step smallint, p_reason text, p_problem text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    UPDATE tasker.fan_outs f SET look_at = NULL WHERE f.task_id = p_task AND f.step = p_step;
    PERFORM tasker.kill_step(p_task, p_step, p_reason, p_problem);
END
$$;

-- Does what is to be done about the children of one step: creates at most p_room of them; or, where nobody waits for them any more, cancels as many.
-- Returns how many. Locks: the caller's, who has that of the task; then those of cancel_tasks, for its children.
CREATE FUNCTION tasker.move_fan_out(p_task uuid, p_step smallint, p_room int) RETURNS int
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_task    tasker.tasks;
    v_state   tasker.step_state;
    v_spawn   jsonb;
    v_seen    jsonb;
    v_items   jsonb;
    v_fan_out tasker.fan_outs;
    v_batch   int;
    v_until   int;
    v_begun   record;
    v_reason  text;
    v_problem text;
BEGIN
    SELECT * INTO v_task FROM tasker.tasks t WHERE t.id = p_task;
    SELECT * INTO v_fan_out FROM tasker.fan_outs f WHERE f.task_id = p_task AND f.step = p_step;
    SELECT s.state, ts.spawn INTO v_state, v_spawn FROM tasker.steps s
    JOIN tasker.template_steps ts ON ts.version_id = v_task.version_id AND ts.step = p_step WHERE s.task_id = p_task AND s.step = p_step;
    v_batch := coalesce((v_spawn ->> 'batch')::int, 1);

    IF v_task.state = 'undoing' THEN
        RETURN tasker.undo_children(v_task, p_step, p_room);
    ELSIF v_task.state IN ('running', 'blocked', 'failed') AND v_state IN ('complete', 'dead') THEN
        PERFORM tasker.free_replays(v_fan_out, NULL);
        UPDATE tasker.fan_outs f SET look_at = NULL WHERE f.task_id = p_task AND f.step = p_step;
        RETURN 0;
    ELSIF v_task.state NOT IN ('running', 'blocked', 'failed') OR v_state <> 'waiting' THEN
        v_until := least(v_fan_out.created, v_fan_out.cancelled + p_room);
        PERFORM tasker.cancel_tasks(ARRAY(
            SELECT c.id FROM tasker.tasks c
            WHERE c.parent_id = p_task AND c.parent_step = p_step AND c.finished_at IS NULL
              AND (c.item >= v_fan_out.cancelled AND c.item < v_until OR c.item = -v_fan_out.pages)));
        UPDATE tasker.fan_outs f SET cancelled = v_until, pages_read = f.pages, look_at = CASE WHEN v_until < f.created THEN clock_timestamp() END
        WHERE f.task_id = p_task AND f.step = p_step;
        RETURN v_until - v_fan_out.cancelled;
    ELSE
        IF v_fan_out.at_once IS NOT NULL THEN
            PERFORM tasker.free_replays(v_fan_out, v_fan_out.at_once);
        END IF;
        IF v_fan_out.version_id IS NULL OR v_spawn ?| '{pages, input}' THEN
            v_seen := tasker.seen_by(p_task, p_step);
        END IF;
        IF v_fan_out.version_id IS NULL THEN
            v_items := tasker.items_of(v_spawn, v_seen);
            SELECT * INTO v_begun FROM tasker.begin_fan_out(v_task, v_spawn, v_seen, v_items, v_fan_out);
            v_fan_out := v_begun.p_fan_out;
            v_reason := v_begun.reason;
            v_problem := v_begun.problem;
        END IF;
        IF v_problem IS NULL AND v_spawn ? 'pages' THEN
            SELECT m.moved, m.problem INTO v_until, v_problem FROM tasker.move_pages(v_task, v_fan_out, v_spawn, v_seen, p_room) AS m;
            IF v_problem IS NULL THEN
                RETURN v_until;
            END IF;
        END IF;
        v_until := least(v_fan_out.total, v_fan_out.created + p_room, v_fan_out.at_once + v_fan_out.ended + v_fan_out.dead);
        IF v_problem IS NULL AND v_until > v_fan_out.created THEN
            v_items := coalesce(v_items, tasker.slice_of_items(v_task, p_step, v_spawn, v_fan_out.created * v_batch, v_until * v_batch));
            v_problem := tasker.create_children(v_task, v_fan_out, v_spawn, v_seen, v_items, v_until, v_fan_out.created);
        END IF;
        IF v_problem IS NOT NULL THEN
            PERFORM tasker.refuse_fan_out(p_task, p_step, coalesce(v_reason, 'bad_input'), v_problem);
            RETURN 1;
        END IF;
    END IF;
    v_until := greatest(v_until, v_fan_out.created);
    UPDATE tasker.fan_outs f
    SET version_id = v_fan_out.version_id, total = v_fan_out.total, at_once = v_fan_out.at_once, tolerated = v_fan_out.tolerated, created = v_until,
        look_at = CASE WHEN v_until < least(v_fan_out.total, v_fan_out.at_once + f.ended + f.dead) THEN clock_timestamp() END
    WHERE f.task_id = p_task AND f.step = p_step;
    RETURN v_until - v_fan_out.created;
END
$$;

-- Looks at the steps whose children are to be created, or cancelled, those first that have waited longest; for p_limit children at most.
-- Returns for how many (at least 1 where there are any), whether there may be more, and which tasks it created whose template has an input_schema: the
-- caller checks their inputs before it commits, and refuses them (refuse_children) after it has rolled back.
-- Locks: the tasks in id order, skipping those that somebody else has; then those of move_fan_out.
CREATE FUNCTION tasker.move_fan_outs(p_limit int, OUT moved int, OUT more boolean, OUT unchecked uuid[])
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_tasks uuid[];
    v_held  uuid[];
    v_task  uuid;
    v_step  smallint;
    v_created int;
    v_seen_tasks uuid[] := '{}';
    v_seen_steps smallint[] := '{}';
    v_seen_created int[] := '{}';
    v_namespaces int[];
BEGIN
    moved := 0;
    unchecked := '{}';
    SELECT array_agg(d.task_id), count(*) = 200 INTO v_tasks, more
    FROM (SELECT f.task_id FROM tasker.fan_outs f WHERE f.look_at <= (SELECT clock_timestamp()) ORDER BY f.look_at LIMIT 200) AS d;
    IF v_tasks IS NOT NULL THEN
        v_held := ARRAY(SELECT t.id FROM tasker.tasks t WHERE t.id = ANY (v_tasks) ORDER BY t.id FOR NO KEY UPDATE SKIP LOCKED);
        DELETE FROM tasker.fan_outs f WHERE f.task_id = ANY (v_tasks) AND NOT EXISTS (SELECT FROM tasker.tasks t WHERE t.id = f.task_id);
        FOR v_task, v_step, v_created IN
            SELECT f.task_id, f.step, f.created FROM tasker.fan_outs f
            WHERE f.task_id = ANY (v_held) AND f.look_at <= clock_timestamp() ORDER BY f.look_at
        LOOP
            EXIT WHEN moved >= p_limit;
            moved := moved + tasker.move_fan_out(v_task, v_step, p_limit - moved);
            v_seen_tasks := v_seen_tasks || v_task;
            v_seen_steps := v_seen_steps || v_step;
            v_seen_created := v_seen_created || v_created;
        END LOOP;
        more := more OR moved >= p_limit;
        moved := greatest(moved, 1);
        PERFORM tasker.settle_fan_outs(v_seen_tasks, v_seen_steps);
        v_namespaces := ARRAY(
            SELECT DISTINCT tp.namespace_id FROM tasker.fan_outs f
            JOIN tasker.template_versions tv ON tv.id = f.version_id JOIN tasker.templates tp ON tp.id = tv.template_id
            WHERE f.task_id = ANY (v_seen_tasks) AND f.created > 0);
        PERFORM tasker.wake_namespaces(v_namespaces);
        PERFORM tasker.notify('tasker_tasks', n.name) FROM tasker.namespaces n WHERE n.id = ANY (v_namespaces);
        unchecked := ARRAY(
            SELECT c.id FROM unnest(v_seen_tasks, v_seen_steps, v_seen_created) AS p(task, step, created)
            CROSS JOIN LATERAL (SELECT version_id FROM tasker.fan_outs WHERE task_id = p.task AND step = p.step AND created > p.created OFFSET 0) AS f
            JOIN tasker.template_versions tv ON tv.id = f.version_id AND tv.definition ? 'input_schema'
            CROSS JOIN LATERAL (
                SELECT id FROM tasker.tasks WHERE parent_id = p.task AND parent_step = p.step AND item >= p.created OFFSET 0) AS c);
    END IF;
END
$$;

-- What is to be checked of these tasks, which are children, by step and in the order of their elements: their inputs, as JSON, against the input_schema
-- of their version.
CREATE FUNCTION tasker.unchecked_inputs(p_tasks uuid[])
RETURNS TABLE (task uuid, step smallint, item int, version int, template text, input text)
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT t.parent_id, t.parent_step, t.item, t.version_id, n.name || '/' || tp.name, t.input::text
    FROM tasker.tasks t JOIN tasker.templates tp ON tp.id = t.template_id JOIN tasker.namespaces n ON n.id = tp.namespace_id
    WHERE t.id = ANY (p_tasks) ORDER BY t.parent_id, t.parent_step, t.item;
END;

-- These steps cannot have the children that they are to have, for these reasons.
-- Locks: the tasks in id order, then those of kill_step.
CREATE FUNCTION tasker.refuse_children(p_tasks uuid[], p_steps smallint[], p_problems text[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM 1 FROM tasker.tasks t WHERE t.id = ANY (p_tasks) ORDER BY t.id FOR NO KEY UPDATE;
    PERFORM tasker.refuse_fan_out(r.task, r.step, 'bad_input', r.problem)
    FROM unnest(p_tasks, p_steps, p_problems) AS r(task, step, problem)
    JOIN tasker.steps s ON s.task_id = r.task AND s.step = r.step AND s.state = 'waiting'
    JOIN tasker.tasks t ON t.id = r.task AND t.state IN ('running', 'blocked', 'failed');
END
$$;
