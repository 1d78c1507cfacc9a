-- What probes and operators ask of the whole fleet. Cheap whatever the backlog: heads of indexes, and counts that go no further than a bound.

-- The queues of these namespaces (null: all that are not asleep), of those that are there, that cannot be worked with: known to be broken, dropped, or
-- without the privileges.
CREATE FUNCTION tasker.unreachable_queues(p_namespaces text[]) RETURNS TABLE (queue text, why text)
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT b.queue, b.why FROM tasker.broken_queues b JOIN tasker.namespaces n ON n.id = b.namespace_id
    WHERE p_namespaces IS NULL OR n.name = ANY (p_namespaces)
    UNION ALL
    SELECT n.queue, 'it was dropped, or the rights on it are missing'
    FROM (SELECT * FROM tasker.awake_namespaces(0, NULL) WHERE p_namespaces IS NULL
          UNION ALL SELECT * FROM tasker.namespaces a WHERE a.name = ANY (p_namespaces)) AS n
    CROSS JOIN LATERAL to_regclass(format('pgmq.%I', pgmq.format_table_name(n.queue, 'q'))) AS q
    WHERE NOT coalesce(has_table_privilege(q, 'SELECT') AND has_table_privilege(q, 'INSERT')
                       AND has_table_privilege(q, 'UPDATE') AND has_table_privilege(q, 'DELETE'), false)
      AND NOT EXISTS (SELECT FROM tasker.broken_queues b WHERE b.queue = n.queue)
    ORDER BY 1;
END;

-- The pending tasks of a namespace by priority, counted no further than p_count each; how long the first of them waits, in seconds, and how many
-- priorities its age is worth by now.
CREATE FUNCTION tasker.backlog(p_namespace int, p_count int) RETURNS jsonb
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT jsonb_object_agg(p.name, jsonb_build_object(
        'pending', h.pending, 'oldest_seconds', extract(epoch FROM h.waits), 'escalation', (extract(epoch FROM h.waits) / extract(epoch FROM tasker.aging()))::float8))
    FROM unnest(ARRAY['low', 'normal', 'high', 'urgent']) WITH ORDINALITY AS p(name, priority)
    JOIN tasker.lanes(p_namespace, true) AS l ON l.priority = p.priority
    CROSS JOIN LATERAL (
        SELECT count(*) AS pending, clock_timestamp() - min(t.claim_order) - l.priority * tasker.aging() AS waits
        FROM (SELECT w.claim_order FROM tasker.tasks w
              WHERE w.namespace_id = p_namespace AND w.priority = l.priority AND w.claim_order >= l.mark
              ORDER BY w.claim_order LIMIT p_count) AS t) AS h;
END;

-- What workers did in a namespace, a second, over the last 1, 5 and 15 minutes. The newest ten seconds are not complete and do not count.
CREATE FUNCTION tasker.rates(p_namespace int) RETURNS jsonb
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT jsonb_object_agg(w.minutes || 'm', jsonb_build_object('completed', r.completed, 'failed', r.failed))
    FROM unnest(ARRAY[1, 5, 15]) AS w(minutes)
    CROSS JOIN date_bin('10 s', clock_timestamp(), 'epoch') AS now
    CROSS JOIN LATERAL (
        SELECT (coalesce(sum(a.completed), 0) / (w.minutes * 60.0))::float8 AS completed, (coalesce(sum(a.failed), 0) / (w.minutes * 60.0))::float8 AS failed
        FROM tasker.activity a
        WHERE a.namespace_id = p_namespace AND a.at >= now - w.minutes * interval '1 minute' AND a.at < now) AS r;
END;

-- The next p_limit namespaces after p_after that are not asleep or have dead letters, and whose queues can be worked with, in order: how they are.
CREATE FUNCTION tasker.fleet_namespaces(p_after int, p_limit int, p_count int DEFAULT 10000) RETURNS TABLE (id int, name text, namespace jsonb)
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT n.id, n.name, jsonb_build_object(
        'queue', tasker.queue_health(n.queue, m.message, p_count),
        'dead_letters', CASE WHEN EXISTS (SELECT FROM tasker.lettered l WHERE l.namespace_id = n.id)
            THEN tasker.queue_health(n.queue || '_dlq', 0, p_count)
            ELSE jsonb_build_object('queue', n.queue || '_dlq', 'depth', 0, 'oldest_seconds', NULL) END,
        'backlog', tasker.backlog(n.id, p_count),
        'rates', tasker.rates(n.id),
        'capacity', tasker.capacity(n),
        'pressure', jsonb_build_object('state', n.pressure, 'seconds', extract(epoch FROM clock_timestamp() - n.pressure_since),
                                       'parked', m.parked > 0),
        'orchestrators', tasker.orchestrators(n.name),
        'workers', (SELECT count(*) FROM tasker.members w WHERE w.kind = 'worker' AND w.left_at IS NULL
                    AND w.lease_until > clock_timestamp() AND n.name = ANY (w.namespaces)))
        -- What is here of a namespace that lives in another shard by now.
        || CASE WHEN n.lives_in <> tasker.shard() THEN jsonb_build_object('moved_to', n.lives_in) ELSE '{}' END
    FROM (
        SELECT f.id FROM (
            SELECT a.id FROM tasker.awake_namespaces(p_after, p_limit) AS a
            UNION SELECT l.namespace_id FROM tasker.lettered l
            WHERE l.namespace_id > p_after AND NOT EXISTS (SELECT FROM tasker.broken_queues b WHERE b.namespace_id = l.namespace_id)) AS f
        ORDER BY f.id LIMIT p_limit) AS l
    CROSS JOIN LATERAL (SELECT * FROM tasker.namespaces WHERE id = l.id OFFSET 0) AS n
    CROSS JOIN LATERAL (SELECT * FROM tasker.marks WHERE namespace_id = l.id OFFSET 0) AS m
    ORDER BY n.id;
END;

-- How one of them is; null: it is asleep.
CREATE FUNCTION tasker.fleet_namespace(p_name text) RETURNS jsonb
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT f.namespace FROM tasker.namespaces n CROSS JOIN LATERAL tasker.fleet_namespaces(n.id - 1, 1) AS f
    WHERE n.name = p_name AND f.id = n.id;
END;

-- How far each subscription was told (see 0043_deliveries.sql).
CREATE FUNCTION tasker.subscriptions_told() RETURNS jsonb
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN (SELECT coalesce(jsonb_agg(jsonb_build_object(
                'name', s.of -> 'name', 'lag', s.of -> 'lag', 'delivered', s.of -> 'delivered', 'failing_since', s.of -> 'failing_since', 'problem', s.of -> 'problem',
                'paused', s.of -> 'paused' <> 'null', 'disabled', s.of -> 'disabled' <> 'null')), '[]')
            FROM tasker.list_subscriptions() AS s(of));
END
$$;

-- The fleet but for its namespaces: members, limits, what went wrong, and the server.
CREATE FUNCTION tasker.fleet(p_count int DEFAULT 10000) RETURNS jsonb
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT jsonb_build_object(
        'counted_to', p_count,
        'asleep', (SELECT count(*) FROM tasker.namespaces) - (SELECT count(*) FROM tasker.marks m WHERE m.sleep < 4),
        'members', (
            SELECT coalesce(jsonb_agg(jsonb_build_object(
                'kind', m.kind, 'name', m.name, 'version', m.version, 'namespaces', m.namespaces,
                'up_seconds', extract(epoch FROM clock_timestamp() - m.started_at),
                'heartbeat_seconds', extract(epoch FROM clock_timestamp() - m.heartbeat_at), 'report', m.report) ORDER BY m.kind, m.name, m.id), '[]')
            FROM tasker.members m WHERE m.left_at IS NULL),
        'broken_queues', (SELECT coalesce(jsonb_object_agg(b.queue, jsonb_build_object(
            'why', b.why, 'seconds', extract(epoch FROM clock_timestamp() - b.since))), '{}') FROM tasker.broken_queues b),
        'unhandled', (SELECT coalesce(jsonb_agg(jsonb_build_object(
                'namespace', ts.namespace, 'handler', ts.handler, 'step', ts.name, 'template', ts.template, 'version', ts.version,
                'seconds', extract(epoch FROM clock_timestamp() - u.since)) ORDER BY u.since), '[]')
            FROM (SELECT * FROM tasker.unhandled WHERE NOT found ORDER BY since LIMIT 100) AS u JOIN tasker.template_steps ts USING (version_id, step)),
        'limits', (SELECT coalesce(jsonb_agg(l), '[]') FROM tasker.list_limits(p_count, false) AS l),
        'subscriptions', tasker.subscriptions_told(),
        'counters', (SELECT coalesce(jsonb_object_agg(c.name, c.value), '{}') FROM tasker.counters c),
        'database', jsonb_build_object(
            'version', current_setting('server_version'),
            'connections', (SELECT count(*) FROM pg_stat_activity a WHERE a.backend_type = 'client backend'),
            'max_connections', current_setting('max_connections')::int,
            -- The age of what holds back vacuum (see the marks).
            'oldest_transaction_seconds', (SELECT max(extract(epoch FROM clock_timestamp() - a.xact_start)) FROM pg_stat_activity a
                                           WHERE a.backend_xmin IS NOT NULL AND a.pid <> pg_backend_pid()),
            'in_recovery', pg_is_in_recovery(),
            'replicas', (SELECT coalesce(jsonb_agg(jsonb_build_object(
                             'name', r.application_name, 'state', r.state, 'lag_seconds', extract(epoch FROM r.replay_lag),
                             'lag_bytes', pg_wal_lsn_diff(r.sent_lsn, r.replay_lsn)) ORDER BY r.application_name), '[]')
                         FROM pg_stat_replication r)));
END;
