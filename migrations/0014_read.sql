-- Reading: what operators and clients see. Two states are not stored but seen: a task waits (not only for its time) when all that is left of
-- it waits for a retry, and a step is in progress while its message is leased.

CREATE FUNCTION tasker.visible_state(p_task tasker.tasks) RETURNS tasker.task_state
LANGUAGE sql STABLE AS $$
    SELECT CASE
        WHEN p_task.state = 'running'
            AND EXISTS (SELECT 1 FROM tasker.steps s WHERE s.task_id = p_task.id AND s.state = 'waiting_retry')
            AND NOT EXISTS (SELECT 1 FROM tasker.steps s WHERE s.task_id = p_task.id AND s.state = 'enqueued')
        THEN 'waiting' ELSE p_task.state END
$$;

-- The lease of a step's message, if it has one: who holds it and until when.
CREATE FUNCTION tasker.lease_of(p_queue text, p_message bigint, OUT worker int, OUT leased_at timestamptz)
LANGUAGE plpgsql STABLE AS $$
BEGIN
    EXECUTE format('SELECT (headers ->> ''worker'')::int, last_read_at FROM pgmq.%I WHERE msg_id = $1 AND read_ct > 0 AND vt > clock_timestamp()',
                   pgmq.format_table_name(p_queue, 'q'))
    INTO worker, leased_at USING p_message;
END
$$;

-- A task with its steps, in the template's order; null when there is no such task.
CREATE FUNCTION tasker.read_task(p_task uuid) RETURNS jsonb
LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object(
        'id', t.id, 'template', tp.name, 'namespace', n.name, 'version', tv.version,
        'state', tasker.visible_state(t), 'priority', (ARRAY['low', 'normal', 'high', 'urgent'])[t.priority],
        'key', t.key, 'input', t.input, 'created_at', t.created_at, 'run_at', t.run_at, 'started_at', t.started_at, 'finished_at', t.finished_at,
        'steps', (
            SELECT jsonb_agg(jsonb_build_object(
                'name', ts.name, 'handler', ts.handler, 'namespace', ts.namespace,
                'depends_on', coalesce((SELECT jsonb_agg(p.name ORDER BY p.step) FROM tasker.template_steps p
                                        WHERE p.version_id = t.version_id AND p.step = ANY (ts.parents)), '[]'),
                'state', CASE
                    WHEN s.state IS NULL AND t.state = 'cancelled' THEN 'cancelled'
                    WHEN s.state IS NULL THEN 'pending'
                    WHEN l.worker IS NOT NULL THEN 'in_progress'
                    ELSE s.state END,
                'attempt', CASE WHEN s.state IS NULL THEN 0 WHEN s.state IN ('dead', 'waiting_retry') THEN s.failures ELSE s.failures + 1 END,
                'max_attempts', coalesce(s.max_attempts, ts.max_attempts, sn.max_attempts),
                'worker', (SELECT m.name FROM tasker.members m WHERE m.id = coalesce(l.worker, s.worker)),
                'waits_for', (SELECT l.name FROM tasker.permits p JOIN tasker.limits l ON l.id = p.limit_id
                              WHERE p.task_id = t.id AND p.step = ts.step AND p.granted_at IS NULL LIMIT 1),
                'result', s.result, 'progress', s.progress, 'errors', coalesce(s.errors, '[]'),
                'enqueued_at', s.enqueued_at, 'started_at', coalesce(l.leased_at, s.started_at),
                'finished_at', s.finished_at, 'retry_at', s.retry_at
            ) ORDER BY ts.step)
            FROM tasker.template_steps ts
            JOIN tasker.namespaces sn ON sn.name = ts.namespace
            LEFT JOIN tasker.steps s ON s.task_id = t.id AND s.step = ts.step
            LEFT JOIN LATERAL tasker.lease_of(ts.queue, s.msg_id) AS l ON s.state = 'enqueued'
            WHERE ts.version_id = t.version_id))
    FROM tasker.tasks t
    JOIN tasker.templates tp ON tp.id = t.template_id
    JOIN tasker.template_versions tv ON tv.id = t.version_id
    JOIN tasker.namespaces n ON n.id = t.namespace_id
    WHERE t.id = p_task
$$;

-- The newest tasks first, those before p_before; a null filter filters nothing.
CREATE FUNCTION tasker.list_tasks(p_namespace text, p_template text, p_state text, p_before uuid, p_limit int) RETURNS SETOF jsonb
LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object(
        'id', t.id, 'template', tp.name, 'namespace', n.name, 'version', tv.version, 'state', tasker.visible_state(t),
        'priority', (ARRAY['low', 'normal', 'high', 'urgent'])[t.priority], 'key', t.key,
        'created_at', t.created_at, 'started_at', t.started_at, 'finished_at', t.finished_at)
    FROM tasker.tasks t
    JOIN tasker.templates tp ON tp.id = t.template_id
    JOIN tasker.template_versions tv ON tv.id = t.version_id
    JOIN tasker.namespaces n ON n.id = t.namespace_id
    WHERE (p_namespace IS NULL OR n.name = p_namespace)
      AND (p_template IS NULL OR tp.name = p_template)
      AND (p_state IS NULL OR tasker.visible_state(t)::text = p_state)
      AND (p_before IS NULL OR t.id < p_before)
    ORDER BY t.id DESC LIMIT p_limit
$$;

-- The stored states of many tasks at once, for those who wait for them.
CREATE FUNCTION tasker.task_states(p_tasks uuid[]) RETURNS TABLE (id uuid, state text)
LANGUAGE sql STABLE AS $$
    SELECT t.id, tasker.visible_state(t)::text FROM tasker.tasks t WHERE t.id = ANY (p_tasks)
$$;

CREATE FUNCTION tasker.list_templates() RETURNS SETOF jsonb
LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object(
        'namespace', n.name, 'name', tp.name, 'version', tv.version, 'registered_at', tv.created_at,
        'steps', (SELECT count(*) FROM tasker.template_steps ts WHERE ts.version_id = tv.id),
        'versions', (SELECT count(*) FROM tasker.template_versions v WHERE v.template_id = tp.id))
    FROM tasker.templates tp
    JOIN tasker.namespaces n ON n.id = tp.namespace_id
    JOIN tasker.template_versions tv ON tv.id = tp.current_version_id
    ORDER BY n.name, tp.name
$$;
