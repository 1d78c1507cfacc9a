-- Reading: what operators and clients see. Three states are not stored but seen: a task waits (not only for its time) when all that is left of
-- it waits for a retry, or sleeps, it is paused while it would otherwise go on, and a step is in progress while its message is leased.

-- The pause of a task, or of its namespace (see 0034_pauses.sql); null: it is not paused, or has ended.
CREATE FUNCTION tasker.read_pause(p_task tasker.tasks) RETURNS jsonb
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_own int;
BEGIN
    IF p_task.finished_at IS NOT NULL OR NOT EXISTS (SELECT FROM tasker.pauses) THEN
        RETURN NULL;
    END IF;
    v_own := tasker.pause_of(p_task.id);
    RETURN (
        SELECT jsonb_build_object('kind', p.kind, 'name', p.name, 'who', p.who, 'why', p.why, 'since', p.since)
        FROM tasker.pauses p
        WHERE p.id = v_own OR p.kind = 'namespace' AND p.resumed_at IS NULL AND p.name = (
            SELECT n.name FROM tasker.namespaces n WHERE n.id = p_task.namespace_id)
        ORDER BY p.id LIMIT 1);
END
$$;

CREATE FUNCTION tasker.visible_state(p_task tasker.tasks) RETURNS tasker.task_state
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN CASE
        WHEN p_task.state IN ('pending', 'running', 'waiting') AND tasker.read_pause(p_task) IS NOT NULL THEN 'paused'
        WHEN p_task.state = 'running'
            AND EXISTS (SELECT 1 FROM tasker.steps s WHERE s.task_id = p_task.id AND (s.state = 'waiting_retry' OR s.wakes_at IS NOT NULL))
            AND NOT EXISTS (SELECT 1 FROM tasker.steps s
                            WHERE s.task_id = p_task.id AND (s.state = 'enqueued' OR s.state = 'waiting' AND s.wakes_at IS NULL))
        THEN 'waiting' ELSE p_task.state END;
END
$$;

-- The leases of a queue's messages, as far as they have one: who holds them and since when.
CREATE FUNCTION tasker.leases_of(p_queue text, p_messages bigint[]) RETURNS TABLE (msg_id bigint, worker int, leased_at timestamptz)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN QUERY EXECUTE format('SELECT msg_id, (headers ->> ''worker'')::int, last_read_at FROM pgmq.%I '
                                'WHERE msg_id = ANY ($1) AND read_ct > 0 AND vt > clock_timestamp()', pgmq.format_table_name(p_queue, 'q'))
    USING p_messages;
END
$$;

-- A task without its steps; null when there is no such task.
CREATE FUNCTION tasker.read_task(p_task uuid) RETURNS jsonb
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT jsonb_build_object(
        'id', t.id, 'template', tp.name, 'namespace', n.name, 'version', tv.version,
        'state', tasker.visible_state(t), 'priority', (ARRAY['low', 'normal', 'high', 'urgent'])[t.priority],
        'key', t.key, 'tags', coalesce(t.tags, '{}'), 'input', t.input, 'parent', CASE WHEN t.parent_id IS NOT NULL THEN jsonb_build_object(
            'task', t.parent_id, 'item', t.item, 'step', (
                SELECT ps.name FROM tasker.tasks p JOIN tasker.template_steps ps ON ps.version_id = p.version_id AND ps.step = t.parent_step
                WHERE p.id = t.parent_id)) END,
        'created_at', t.created_at, 'run_at', t.run_at, 'started_at', t.started_at, 'finished_at', t.finished_at,
        'pause', tasker.read_pause(t), 'trace_id', nullif(split_part(t.trace ->> 'traceparent', '-', 2), ''), 'forked_from', t.forked_from,
        -- All of them first: the first by id of all tasks would be looked for else.
        'forks', ARRAY(SELECT f.id FROM (SELECT f.id FROM tasker.tasks f WHERE f.forked_from = t.id OFFSET 0) AS f ORDER BY f.id LIMIT 100))
    FROM tasker.tasks t
    JOIN tasker.templates tp ON tp.id = t.template_id
    JOIN tasker.template_versions tv ON tv.id = t.version_id
    JOIN tasker.namespaces n ON n.id = t.namespace_id
    WHERE t.id = p_task;
END;

-- A task's steps, in the template's order, a row each. Results, in that order, come along as long as they have no more than p_bytes altogether; the
-- others say only how many bytes they have, and are read by their names (read_results). Everything is joined by what is the same in both, each side
-- read once, however many steps there are: our sessions would not by themselves.
CREATE FUNCTION tasker.read_steps(p_task uuid, p_bytes bigint) RETURNS SETOF jsonb
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET enable_hashjoin = on SET plan_cache_mode = force_custom_plan AS $$
DECLARE
    v_task  tasker.tasks;
    v_names text[];
BEGIN
    SELECT * INTO v_task FROM tasker.tasks WHERE id = p_task;
    v_names := ARRAY(SELECT ts.name FROM tasker.template_steps ts WHERE ts.version_id = v_task.version_id ORDER BY ts.step);
    RETURN QUERY
    WITH step AS MATERIALIZED (
        SELECT ts.step AS number, ts.name, ts.kind, ts.handler, ts.namespace, ts.queue, ts.parents, ts.undoes, ts.max_attempts AS own_attempts, s.*,
               sum(s.result_bytes) OVER (ORDER BY ts.step) AS bytes
        FROM tasker.template_steps ts
        LEFT JOIN (SELECT * FROM tasker.steps WHERE task_id = p_task) AS s ON s.step = ts.step
        WHERE ts.version_id = v_task.version_id AND (ts.undoes IS NULL OR s.step IS NOT NULL OR v_task.state = 'undoing')
    ), lease AS MATERIALIZED (
        SELECT q.queue, l.* FROM (SELECT e.queue, array_agg(e.msg_id) AS ids FROM step e
                                  WHERE e.state IN ('enqueued', 'cancelling') AND NOT EXISTS (SELECT FROM tasker.broken_queues b WHERE b.queue = e.queue)
                                  GROUP BY e.queue) AS q
        CROSS JOIN LATERAL tasker.leases_of(q.queue, q.ids) AS l
    ), permit AS MATERIALIZED (
        SELECT DISTINCT ON (p.step) p.step, l.name FROM tasker.permits p JOIN tasker.limits l ON l.id = p.limit_id
        WHERE p.task_id = p_task AND p.granted_at IS NULL ORDER BY p.step, l.name
    )
    SELECT jsonb_build_object(
        'name', s.name, 'kind', s.kind, 'handler', s.handler, 'namespace', s.namespace,
        'depends_on', to_jsonb(ARRAY(SELECT v_names[b.step + 1] FROM unnest(s.parents) AS b(step) ORDER BY b.step)),
        'undoes', v_names[s.undoes + 1],
        'state', CASE
            WHEN s.state IS NULL AND v_task.undo_as IS NOT NULL AND s.undoes IS NULL THEN 'cancelled'
            WHEN s.state IS NULL AND v_task.finished_by IS NOT NULL THEN 'skipped'
            WHEN s.state IS NULL AND v_task.state IN ('cancelling', 'cancelled', 'discarded') THEN 'cancelled'
            WHEN s.state IS NULL THEN 'pending'
            WHEN s.state = 'enqueued' AND l.worker IS NOT NULL THEN 'in_progress'
            WHEN s.state = 'waiting_retry' AND s.failures = 0 AND s.errors IS NULL THEN 'waiting'
            ELSE s.state END,
        'attempt', CASE WHEN s.state IS NULL THEN 0 WHEN s.state IN ('dead', 'waiting_retry', 'waiting') THEN s.failures ELSE s.failures + 1 END,
        'max_attempts', coalesce(s.max_attempts, s.own_attempts, sn.max_attempts),
        'worker', m.name, 'waits_for', coalesce(p.name, d.kind || ' ' || d.name || ' to be resumed', CASE
            WHEN s.state = 'enqueued' AND l.worker IS NULL AND tasker.is_paused(s.namespace) THEN 'namespace ' || s.namespace || ' to be resumed'
            WHEN s.state = 'waiting' AND s.kind = 'undo' THEN (
                SELECT o.created - f.ended || ' of ' || o.created || ' tasks to be undone' FROM tasker.fan_outs o WHERE o.task_id = p_task AND o.step = s.undoes)
            WHEN s.state = 'waiting' AND f.total IS NULL AND f.pages > 0 THEN 'page ' || f.pages || ' of what is to be done, or its tasks'
                || CASE WHEN f.dead > 0 THEN ', of which some are dead' ELSE '' END
            WHEN s.state = 'waiting' AND f.dead > f.tolerated THEN f.dead || ' of ' || f.total || CASE f.dead WHEN 1 THEN ' tasks, which is dead' ELSE ' tasks, which are dead' END
            WHEN s.state = 'waiting' AND f.total IS NOT NULL THEN f.total + f.pages - f.ended - f.dead || ' of ' || f.total || ' tasks'
            WHEN s.retry_at = 'infinity' AND EXISTS (SELECT FROM tasker.held_replays r WHERE r.task_id = p_task AND s.number = ANY (r.steps))
                THEN 'room: its parent has no more than so many tasks at once'
            WHEN w.since IS NOT NULL THEN 'the signal ' || w.name || coalesce(' (key ' || w.key || ')', '') END, 'the queue ' || b.queue || ', which cannot be worked with: ' || b.why,
                                                'a worker that has the handler ' || u.handler),
        'result', CASE WHEN coalesce(s.bytes, 0) <= p_bytes THEN s.result END, 'result_bytes', s.result_bytes,
        'skipped_because', coalesce(s.skipped_because, CASE WHEN s.state IS NULL THEN 'step ' || v_names[v_task.finished_by + 1] || ' finished the task' END), 'after_cancel', s.after_cancel, 'progress', s.progress, 'errors', coalesce(s.errors, '[]'),
        'enqueued_at', s.enqueued_at, 'started_at', coalesce(l.leased_at, s.started_at),
        'finished_at', s.finished_at, 'children', CASE WHEN f.step IS NOT NULL AND s.kind <> 'undo' THEN jsonb_build_object(
            'total', f.total, 'created', f.created, 'ended', f.ended, 'dead', f.dead, 'tolerated', f.tolerated) END, 'retry_at', coalesce(nullif(s.retry_at, 'infinity'), nullif(s.wakes_at, 'infinity'), w.times_out_at))
    FROM step s
    JOIN tasker.namespaces sn ON sn.name = s.namespace
    LEFT JOIN lease l ON l.queue = s.queue AND l.msg_id = s.msg_id
    LEFT JOIN permit p ON p.step = s.number
    LEFT JOIN (SELECT * FROM tasker.fan_outs WHERE task_id = p_task) AS f ON f.step = s.number
    LEFT JOIN (SELECT DISTINCT ON (step) * FROM tasker.waits WHERE task_id = p_task AND since IS NOT NULL ORDER BY step, since DESC) AS w
        ON w.step = s.number AND s.state = 'waiting'
    LEFT JOIN (SELECT DISTINCT ON (h.step) h.step, o.kind, o.name FROM tasker.pauses o
               CROSS JOIN LATERAL (SELECT step FROM tasker.paused_steps WHERE pause_id = o.id AND task_id = p_task OFFSET 0) AS h) AS d
        ON d.step = s.number AND s.state = 'waiting_retry'
    LEFT JOIN tasker.broken_queues b ON b.queue = s.queue AND s.state IN ('enqueued', 'waiting_retry')
    LEFT JOIN (SELECT h.step, s.handler FROM tasker.unhandled h JOIN step s ON s.number = h.step
               WHERE h.version_id = v_task.version_id AND s.retry_at = 'infinity') AS u ON u.step = s.number
    LEFT JOIN tasker.members m ON m.id = coalesce(l.worker, s.worker)
    ORDER BY s.number;
END
$$;

-- A task as a list has it.
CREATE FUNCTION tasker.listed(p_task tasker.tasks) RETURNS jsonb
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT jsonb_build_object(
        'id', p_task.id, 'template', tp.name, 'namespace', n.name, 'version', tv.version, 'state', tasker.visible_state(p_task),
        'priority', (ARRAY['low', 'normal', 'high', 'urgent'])[p_task.priority], 'key', p_task.key, 'tags', coalesce(p_task.tags, '{}'),
        'created_at', p_task.created_at, 'started_at', p_task.started_at, 'finished_at', p_task.finished_at)
    FROM tasker.templates tp, tasker.template_versions tv, tasker.namespaces n
    WHERE tp.id = p_task.template_id AND tv.id = p_task.version_id AND n.id = p_task.namespace_id;
END;

-- Whether a filter's state and error let this task through, for which more than its row must be read.
CREATE FUNCTION tasker.is_listed(p_task tasker.tasks, p_filter jsonb) RETURNS boolean
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT (NOT p_filter ? 'state' OR tasker.visible_state(p_task)::text = p_filter ->> 'state')
       AND (NOT p_filter ? 'error' OR p_task.state NOT IN ('pending', 'complete') AND EXISTS (
           SELECT FROM tasker.steps s WHERE s.task_id = p_task.id AND s.state = 'dead' AND s.errors -> -1 ->> 'class' = p_filter ->> 'error'));
END;

-- The ids of the tasks with these tags, in no order; null where that are more than p_most.
CREATE FUNCTION tasker.tagged_tasks(p_tags jsonb, p_most int) RETURNS uuid[]
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET enable_bitmapscan = on AS $$
DECLARE
    v_ids uuid[] := ARRAY(SELECT t.id FROM tasker.tasks t WHERE t.tags @> p_tags LIMIT p_most + 1);
BEGIN
    RETURN CASE WHEN cardinality(v_ids) <= p_most THEN v_ids END;
END
$$;

-- The ids of the newest tasks first that a filter lets through: {namespace, template, state, error (the class of the last error of a dead step), before (a
-- task's id), since, key, tags}; what it lacks filters nothing. p_open: only those that have not ended. With a key, or with tags that no more than two
-- thousand tasks have, they are found by these; else the ids, which begin with the time, say where since is, and tasks are looked at for p_patience, two thousand of
-- them at least: a list may be short, or empty, and yet not be the last. next: before which it continues; null: nowhere.
CREATE FUNCTION tasker.find_tasks(p_filter jsonb, p_limit int, p_open boolean, p_patience interval, OUT ids uuid[], OUT next uuid)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_until  timestamptz := clock_timestamp() + p_patience;
    v_before uuid := coalesce((p_filter ->> 'before')::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff');
    v_first  uuid := coalesce((lpad(to_hex((extract(epoch FROM (p_filter ->> 'since')::timestamptz) * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid,
                              '00000000-0000-0000-0000-000000000000');
    -- What is stored of tasks that are seen in this state (see visible_state).
    v_states tasker.task_state[] := CASE WHEN p_filter ? 'state' THEN ARRAY(
        SELECT e.state FROM unnest(enum_range(NULL::tasker.task_state)) AS e(state)
        WHERE e.state::text = p_filter ->> 'state' OR p_filter ->> 'state' = 'waiting' AND e.state = 'running'
           OR p_filter ->> 'state' = 'paused' AND e.state IN ('pending', 'running', 'waiting')) END;
    v_templates bigint[] := CASE WHEN p_filter ?| '{namespace, template}' THEN ARRAY(
        SELECT tp.id FROM tasker.templates tp JOIN tasker.namespaces n ON n.id = tp.namespace_id
        WHERE n.name = coalesce(p_filter ->> 'namespace', n.name) AND tp.name = coalesce(p_filter ->> 'template', tp.name)) END;
    v_tags   jsonb := p_filter -> 'tags';
    v_tagged uuid[] := CASE WHEN v_tags IS NOT NULL AND NOT p_filter ? 'key' THEN tasker.tagged_tasks(v_tags, 2000) END;
    v_from   uuid;
BEGIN
    ids := '{}';
    IF p_filter ? 'key' OR v_tagged IS NOT NULL THEN
        ids := ARRAY(
            SELECT t.id FROM (
                SELECT k.* FROM tasker.templates tp
                CROSS JOIN LATERAL (SELECT * FROM tasker.tasks WHERE template_id = tp.id AND key = p_filter ->> 'key' OFFSET 0) AS k
                UNION ALL
                SELECT g.* FROM unnest(v_tagged) AS i(id) CROSS JOIN LATERAL (SELECT * FROM tasker.tasks WHERE id = i.id OFFSET 0) AS g) AS t
            WHERE coalesce(t.tags @> v_tags, v_tags IS NULL) AND t.id >= v_first AND t.id < v_before
              AND (v_templates IS NULL OR t.template_id = ANY (v_templates)) AND (v_states IS NULL OR t.state = ANY (v_states))
              AND NOT (p_open AND t.finished_at IS NOT NULL) AND tasker.is_listed(t, p_filter)
            ORDER BY t.id DESC LIMIT p_limit);
        next := CASE WHEN cardinality(ids) = p_limit THEN ids[p_limit] END;
        RETURN;
    END IF;
    LOOP
        v_from := (SELECT t.id FROM tasker.tasks t WHERE t.id >= v_first AND t.id < v_before ORDER BY t.id DESC OFFSET 1999 LIMIT 1);
        ids := ids || ARRAY(
            SELECT t.id FROM tasker.tasks t
            WHERE t.id >= coalesce(v_from, v_first) AND t.id < v_before AND (v_tags IS NULL OR t.tags @> v_tags)
              AND (v_templates IS NULL OR t.template_id = ANY (v_templates)) AND (v_states IS NULL OR t.state = ANY (v_states))
              AND NOT (p_open AND t.finished_at IS NOT NULL) AND tasker.is_listed(t, p_filter)
            ORDER BY t.id DESC LIMIT p_limit - cardinality(ids));
        next := CASE WHEN cardinality(ids) = p_limit THEN ids[p_limit] ELSE v_from END;
        EXIT WHEN cardinality(ids) = p_limit OR v_from IS NULL OR clock_timestamp() >= v_until;
        v_before := v_from;
    END LOOP;
END
$$;

-- The same as a list has them.
CREATE FUNCTION tasker.list_tasks(p_filter jsonb, p_limit int, p_patience interval, OUT tasks jsonb, OUT next uuid)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_ids uuid[];
BEGIN
    SELECT f.ids, f.next INTO v_ids, next FROM tasker.find_tasks(p_filter, p_limit, false, p_patience) AS f;
    tasks := to_jsonb(ARRAY(
        SELECT tasker.listed(t) FROM unnest(v_ids) AS i(id) CROSS JOIN LATERAL (SELECT * FROM tasker.tasks WHERE id = i.id OFFSET 0) AS t ORDER BY t.id DESC));
END
$$;

-- The stored states of many tasks at once, for those who wait for them.
CREATE FUNCTION tasker.task_states(p_tasks uuid[]) RETURNS TABLE (id uuid, state text)
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT t.id, tasker.visible_state(t)::text FROM tasker.tasks t WHERE t.id = ANY (p_tasks);
END;

CREATE FUNCTION tasker.list_templates() RETURNS SETOF jsonb
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT jsonb_build_object(
        'namespace', n.name, 'name', tp.name, 'version', tv.version, 'registered_at', tv.created_at,
        'steps', (SELECT count(*) FROM tasker.template_steps ts WHERE ts.version_id = tv.id AND ts.undoes IS NULL),
        'versions', (SELECT count(*) FROM tasker.template_versions v WHERE v.template_id = tp.id))
    FROM tasker.templates tp
    JOIN tasker.namespaces n ON n.id = tp.namespace_id
    JOIN tasker.template_versions tv ON tv.id = tp.current_version_id
    -- A name with a point is that of a step's children, and of its template.
    WHERE position('.' IN tp.name) = 0
    ORDER BY n.name, tp.name;
END;

-- The newest 1,000 versions of a template, the newest first. Errors: those of find_template.
CREATE FUNCTION tasker.list_template_versions(p_template text) RETURNS SETOF jsonb
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_current tasker.template_versions := tasker.find_template(p_template, NULL);
BEGIN
    RETURN QUERY
    SELECT jsonb_build_object('version', tv.version, 'registered_at', tv.created_at, 'current', tv.id = v_current.id,
        'steps', jsonb_array_length(tv.definition -> 'steps'))
    FROM tasker.template_versions tv WHERE tv.template_id = v_current.template_id ORDER BY tv.id DESC LIMIT 1000;
END
$$;

-- Which database of which server this is, and whose installation is there. A copy of it has the same installation's id, but is another database or
-- another server's (its system identifier), or a standby, which nobody writes through.
CREATE FUNCTION tasker.which_installation() RETURNS text
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT concat_ws('/', i.id, c.system_identifier, d.oid, CASE WHEN pg_is_in_recovery() THEN 'standby' END)
    FROM tasker.installation i, pg_control_system() AS c, pg_database d WHERE d.datname = current_database();
END;
