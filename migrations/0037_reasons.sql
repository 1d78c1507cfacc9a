-- Why what does not run does not: the facts behind it. src/engine/reasons.rs makes sentences of them.

-- Of a namespace: its queue, how many live workers and orchestrators it has, the last worker that left, its pressure, and up to which priority tasks are
-- parked (0: none is).
CREATE FUNCTION tasker.namespace_facts(p_namespace tasker.namespaces) RETURNS jsonb
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT jsonb_build_object(
        'queue', p_namespace.queue, 'workers', h.workers, 'orchestrators', tasker.orchestrators(p_namespace.name),
        'pressure', p_namespace.pressure, 'parked', (SELECT m.parked FROM tasker.marks m WHERE m.namespace_id = p_namespace.id),
        'last_worker', (SELECT jsonb_build_object('name', w.name, 'left_at', w.left_at) FROM tasker.members w
                        WHERE w.kind = 'worker' AND w.left_at IS NOT NULL AND p_namespace.name = ANY (w.namespaces) ORDER BY w.id DESC LIMIT 1))
    FROM tasker.handlers(p_namespace.name) AS h;
END;

-- How many messages are before this one in a queue, of those from p_mark on; counted to a thousand.
CREATE FUNCTION tasker.messages_before(p_queue text, p_mark bigint, p_message bigint) RETURNS bigint
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_before bigint;
BEGIN
    EXECUTE format('SELECT count(*) FROM (SELECT FROM pgmq.%I WHERE msg_id >= $1 AND msg_id < $2 LIMIT 1000) AS m', pgmq.format_table_name(p_queue, 'q'))
    INTO v_before USING p_mark, p_message;
    RETURN v_before;
END
$$;

-- Of a task: {namespaces: {name: facts}, before: how many tasks are to begin before it (null: it is not pending), steps: {name: {before: messages,
-- permits: [{limit, namespace, key, concurrency, rate, before, granted}]}}}. Each is counted to a thousand; of the steps, the first two hundred that wait in
-- a queue or for a permit. Null: there is no such task.
CREATE FUNCTION tasker.read_facts(p_task uuid) RETURNS jsonb
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT jsonb_build_object(
        'namespaces', (
            SELECT jsonb_object_agg(n.name, tasker.namespace_facts(n)) FROM tasker.namespaces n
            WHERE n.id = t.namespace_id OR n.name IN (SELECT ts.namespace FROM tasker.template_steps ts WHERE ts.version_id = t.version_id)),
        'before', CASE WHEN t.claim_order IS NOT NULL THEN (
            SELECT count(*) FROM (
                SELECT FROM tasker.lanes(t.namespace_id, true) AS l
                JOIN tasker.tasks w ON w.namespace_id = t.namespace_id AND w.priority = l.priority AND w.claim_order >= l.mark AND w.claim_order < t.claim_order
                WHERE l.priority = t.priority LIMIT 1000) AS b) END,
        'steps', (
            SELECT jsonb_object_agg(s.name, jsonb_build_object(
                'before', CASE WHEN s.state = 'enqueued' THEN tasker.messages_before(s.queue, s.mark, s.msg_id) END,
                'permits', (
                    SELECT jsonb_agg(jsonb_build_object(
                        'limit', l.name, 'namespace', l.namespace, 'key', nullif(p.key, ''), 'concurrency', l.concurrency, 'rate', l.rate,
                        'before', (SELECT count(*) FROM (SELECT FROM tasker.permits o WHERE o.limit_id = p.limit_id AND o.key = p.key
                                                         AND o.granted_at IS NULL AND o.place < p.place LIMIT 1000) AS b),
                        'granted', (SELECT count(*) FROM (SELECT FROM tasker.permits o WHERE o.limit_id = p.limit_id AND o.key = p.key
                                                          AND o.granted_at IS NOT NULL LIMIT 1000) AS g)) ORDER BY l.name)
                    FROM tasker.permits p JOIN tasker.limits l ON l.id = p.limit_id
                    WHERE p.task_id = p_task AND p.step = s.step AND p.granted_at IS NULL)))
            FROM (SELECT e.step, e.state, e.msg_id, ts.name, ts.queue, m.message AS mark
                  FROM tasker.steps e
                  JOIN tasker.template_steps ts ON ts.version_id = t.version_id AND ts.step = e.step
                  JOIN tasker.namespaces n ON n.name = ts.namespace
                  JOIN tasker.marks m ON m.namespace_id = n.id
                  WHERE e.task_id = p_task AND e.state IN ('enqueued', 'waiting_retry')
                    AND NOT EXISTS (SELECT FROM tasker.broken_queues b WHERE b.queue = ts.queue)
                  ORDER BY e.step LIMIT 200) AS s))
    FROM tasker.tasks t WHERE t.id = p_task;
END;
