-- Pages: elements of a step that are not listed first. A handler says page by page what there is to do; each page is a child of the step with a number
-- below 0, and the step's children (see 0026_children.sql) come out of its result.

-- Begins the next page of a step's elements: a task that is given the cursor where the page before left off.
-- Locks: the caller's, who has that of the task; then it creates a row.
CREATE FUNCTION tasker.begin_page(p_task tasker.tasks, p_fan_out tasker.fan_outs, p_spawn jsonb, p_seen jsonb, p_cursor jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_version tasker.template_versions := tasker.find_template(p_spawn #>> '{pages, template}', p_spawn #>> '{pages, version}');
BEGIN
    PERFORM tasker.insert_children(p_task, p_fan_out.step, v_version.id, ARRAY[p_seen || jsonb_build_object('cursor', p_cursor)], -(p_fan_out.pages + 1));
    UPDATE tasker.fan_outs f SET pages = f.pages + 1 WHERE f.task_id = p_task.id AND f.step = p_fan_out.step;
    PERFORM tasker.wake_namespaces(ARRAY[tp.namespace_id]), tasker.notify('tasker_tasks', n.name)
    FROM tasker.templates tp JOIN tasker.namespaces n ON n.id = tp.namespace_id WHERE tp.id = v_version.template_id;
END
$$;

-- What there is to do of a step whose elements come page by page: reads the page that has ended, creates at most p_room children for its elements, and
-- begins the next one when all have been created; so never more is known than is under way. Returns how many it created, and why it cannot go on.
-- Locks: the caller's, who has that of the task; then it creates rows.
CREATE FUNCTION tasker.move_pages(p_task tasker.tasks, p_fan_out tasker.fan_outs, p_spawn jsonb, p_seen jsonb, p_room int, OUT moved int, OUT problem text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_page  jsonb;
    v_state tasker.task_state;
    v_items jsonb;
    v_count int;
    v_until int;
BEGIN
    moved := 0;
    UPDATE tasker.fan_outs f
    SET version_id = p_fan_out.version_id, at_once = p_fan_out.at_once, tolerated = p_fan_out.tolerated, look_at = NULL
    WHERE f.task_id = p_task.id AND f.step = p_fan_out.step;
    IF p_fan_out.pages = 0 THEN
        PERFORM tasker.begin_page(p_task, p_fan_out, p_spawn, p_seen, NULL);
        RETURN;
    END IF;
    SELECT c.state, tasker.task_output(c.id) INTO v_state, v_page FROM tasker.tasks c
    WHERE c.parent_id = p_task.id AND c.parent_step = p_fan_out.step AND c.item = -p_fan_out.pages;
    IF v_state IS DISTINCT FROM 'complete' THEN
        RETURN;
    END IF;
    v_items := v_page -> 'items';
    IF jsonb_typeof(v_items) IS DISTINCT FROM 'array' THEN
        problem := 'page ' || p_fan_out.pages || ' is no { items: [ … ], next: … }';
        RETURN;
    END IF;
    v_count := ceil(jsonb_array_length(v_items)::numeric / coalesce((p_spawn ->> 'batch')::int, 1));
    IF p_fan_out.pages_read < p_fan_out.pages THEN
        p_fan_out.known := p_fan_out.known + v_count;
        p_fan_out.pages_read := p_fan_out.pages;
    END IF;
    v_until := greatest(least(p_fan_out.known, p_fan_out.created + p_room,
                              p_fan_out.at_once + p_fan_out.ended + p_fan_out.dead - p_fan_out.pages), p_fan_out.created);
    IF v_until > p_fan_out.created THEN
        problem := tasker.create_children(p_task, p_fan_out, p_spawn, p_seen, v_items, v_until, p_fan_out.known - v_count);
        IF problem IS NOT NULL THEN
            RETURN;
        END IF;
    END IF;
    moved := v_until - p_fan_out.created;
    p_fan_out.created := v_until;
    IF v_until = p_fan_out.known AND coalesce(v_page -> 'next', 'null') = 'null' THEN
        p_fan_out.total := p_fan_out.known;
        p_fan_out.tolerated := CASE WHEN p_spawn ? 'tolerate_share' THEN floor(p_fan_out.total * (p_spawn ->> 'tolerate_share')::numeric)
            ELSE p_fan_out.tolerated END;
    END IF;
    UPDATE tasker.fan_outs f
    SET known = p_fan_out.known, pages_read = p_fan_out.pages_read, created = p_fan_out.created, total = p_fan_out.total, tolerated = p_fan_out.tolerated,
        look_at = CASE WHEN v_until < least(p_fan_out.known, p_fan_out.at_once + f.ended + f.dead - f.pages) THEN clock_timestamp() END
    WHERE f.task_id = p_task.id AND f.step = p_fan_out.step;
    IF v_until = p_fan_out.known AND p_fan_out.total IS NULL THEN
        PERFORM tasker.begin_page(p_task, p_fan_out, p_spawn, p_seen, v_page -> 'next');
        moved := moved + 1;
    END IF;
END
$$;
