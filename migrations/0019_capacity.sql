-- Capacity: how many workers a namespace wants, from what comes in, how long its steps take, and what waits already.

-- What waited in each namespace, every ten seconds, in steps.
CREATE TABLE tasker.traffic (
    at           timestamptz,
    namespace_id smallint REFERENCES tasker.namespaces,
    waiting      bigint NOT NULL,
    PRIMARY KEY (at, namespace_id)
);

-- How many messages a queue has from p_mark on, counted no further than p_count, and how long the first of them is there, in seconds.
CREATE FUNCTION tasker.queue_health(p_queue text, p_mark bigint, p_count int) RETURNS jsonb
LANGUAGE plpgsql STABLE AS $$
DECLARE
    v_health jsonb;
BEGIN
    EXECUTE format($f$
        SELECT jsonb_build_object('queue', $1, 'depth', count(*), 'oldest_seconds', extract(epoch FROM clock_timestamp() - min(m.enqueued_at)))
        FROM (SELECT q.enqueued_at FROM pgmq.%I q WHERE q.msg_id >= $2 ORDER BY q.msg_id LIMIT $3) AS m
    $f$, pgmq.format_table_name(p_queue, 'q')) INTO v_health USING p_queue, p_mark, p_count;
    RETURN v_health;
END
$$;

-- How many steps wait in a namespace: messages in its queue, and what its pending tasks will be, by what the first hundred of them are. Counted no further
-- than p_count of each.
CREATE FUNCTION tasker.waiting_steps(p_namespace tasker.namespaces, p_count int) RETURNS bigint
LANGUAGE sql STABLE AS $$
    SELECT (tasker.queue_health(p_namespace.queue, m.message, p_count) ->> 'depth')::bigint + (p.pending * coalesce(s.steps, 1))::bigint
    FROM tasker.marks m
    CROSS JOIN LATERAL (
        SELECT sum(c.pending) AS pending FROM tasker.lanes(p_namespace.id, true) AS l
        CROSS JOIN LATERAL (
            SELECT count(*) AS pending FROM (
                SELECT FROM tasker.tasks t WHERE t.namespace_id = p_namespace.id AND t.priority = l.priority AND t.claim_order >= l.mark
                LIMIT p_count) AS t) AS c) AS p
    CROSS JOIN LATERAL (
        SELECT avg((SELECT count(*) FROM tasker.template_steps ts WHERE ts.version_id = h.version_id AND ts.namespace = p_namespace.name)) AS steps
        FROM (SELECT t.version_id FROM tasker.tasks t WHERE t.namespace_id = p_namespace.id AND t.claim_order IS NOT NULL LIMIT 100) AS h) AS s
    WHERE m.namespace_id = p_namespace.id
$$;

-- Takes down what waits, once every ten seconds whoever asks, and forgets what is older than twenty minutes.
CREATE FUNCTION tasker.note_traffic() RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    v_now timestamptz := date_bin('10 s', clock_timestamp(), 'epoch');
BEGIN
    IF EXISTS (SELECT FROM tasker.traffic t WHERE t.at >= v_now) OR NOT pg_try_advisory_xact_lock(hashtext('tasker.traffic')) THEN
        RETURN;
    END IF;
    INSERT INTO tasker.traffic (at, namespace_id, waiting)
    SELECT v_now, n.id, tasker.waiting_steps(n, 200000) FROM tasker.namespaces n
    ON CONFLICT DO NOTHING;
    DELETE FROM tasker.traffic t WHERE t.at < v_now - interval '20 minutes';
END
$$;

-- What a namespace needs. Little's law (J. D. C. Little, 1961): as many handlers are busy as steps come in a second, times the seconds that each takes.
-- To that comes what has to be done within a minute of what waits already; and handlers should be busy for four fifths of the time.
-- arrival_rate: steps a second, over the last minute; service_seconds: how long a handler has a step (null: none was done within fifteen minutes);
-- handlers: those of the workers that live; desired_handlers, desired_workers: such workers as there are now, or of eight handlers.
CREATE FUNCTION tasker.capacity(p_namespace tasker.namespaces) RETURNS jsonb
LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object(
        'arrival_rate', round(a.rate::numeric, 3), 'service_seconds', round(d.service::numeric, 6), 'waiting', w.waiting, 'workers', f.workers,
        'handlers', f.handlers, 'desired_handlers', h.desired,
        'desired_workers', CASE WHEN w.waiting = 0 AND a.rate = 0 THEN 0
                                WHEN d.service IS NULL THEN greatest(1, f.workers)
                                ELSE greatest(1, ceil(h.desired / coalesce(nullif(f.handlers / nullif(f.workers, 0), 0), 8))) END)
    FROM date_bin('10 s', clock_timestamp(), 'epoch') AS now
    CROSS JOIN LATERAL (
        SELECT coalesce(sum(r.completed + r.failed) FILTER (WHERE r.at >= now - interval '1 minute'), 0) AS done,
               coalesce(sum(r.seconds) FILTER (WHERE r.at >= now - interval '1 minute')
                        / nullif(sum(r.completed + r.failed) FILTER (WHERE r.at >= now - interval '1 minute'), 0),
                        sum(r.seconds) / nullif(sum(r.completed + r.failed), 0)) AS service
        FROM tasker.activity r
        WHERE r.namespace_id = p_namespace.id AND r.at >= now - interval '15 minutes' AND r.at < now) AS d
    CROSS JOIN LATERAL (
        SELECT coalesce((array_agg(t.waiting ORDER BY t.at DESC))[1], 0) AS waiting, coalesce((array_agg(t.waiting ORDER BY t.at))[1], 0) AS before
        FROM tasker.traffic t WHERE t.namespace_id = p_namespace.id AND t.at >= now - interval '1 minute') AS w
    CROSS JOIN LATERAL (SELECT greatest(0, (d.done + w.waiting - w.before) / 60.0)::float8 AS rate) AS a
    CROSS JOIN LATERAL (
        SELECT count(*) AS workers, coalesce(sum((m.report -> 'busy' ->> 'slots')::float8), 0) AS handlers
        FROM tasker.members m
        WHERE m.kind = 'worker' AND m.left_at IS NULL AND m.lease_until > clock_timestamp() AND p_namespace.name = ANY (m.namespaces)) AS f
    CROSS JOIN LATERAL (SELECT round((a.rate * d.service / 0.8 + w.waiting * d.service / 60)::numeric, 3)::float8 AS desired) AS h
$$;
