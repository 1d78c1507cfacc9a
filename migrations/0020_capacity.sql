-- Capacity: how many workers a namespace wants, from what comes in, how long its steps take, and what waits already.

-- What waited in each namespace, every ten seconds, in steps.
CREATE TABLE tasker.traffic (
    at           timestamptz,
    namespace_id int REFERENCES tasker.namespaces,
    waiting      bigint NOT NULL,
    PRIMARY KEY (at, namespace_id)
);

-- What workers did in each namespace, every minute, for two hours: the sum of their activity.
CREATE TABLE tasker.minutes (
    at           timestamptz,
    namespace_id int REFERENCES tasker.namespaces,
    completed    bigint NOT NULL,
    failed       bigint NOT NULL,
    -- for how long handlers had them, in seconds
    seconds      float8 NOT NULL,
    PRIMARY KEY (at, namespace_id)
);

-- How many steps came in, for fifteen days: for what is usual at a time of day.
CREATE TABLE tasker.arrivals (
    -- five minutes from here on
    at           timestamptz,
    namespace_id int REFERENCES tasker.namespaces,
    steps        float8 NOT NULL,
    PRIMARY KEY (namespace_id, at)
);

-- How many messages a queue has from p_mark on, counted no further than p_count, and how long the first of them is there, in seconds.
CREATE FUNCTION tasker.queue_health(p_queue text, p_mark bigint, p_count int) RETURNS jsonb
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
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

-- How many steps wait in a namespace: messages in its queue, and what its pending tasks will be, by what the first hundred of them are. Counted no
-- further than p_count of each.
CREATE FUNCTION tasker.waiting_steps(p_namespace tasker.namespaces, p_count int) RETURNS bigint
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT (tasker.queue_health(p_namespace.queue, m.message, p_count) ->> 'depth')::bigint + (p.pending * coalesce(s.steps, 1))::bigint
    FROM tasker.marks m
    CROSS JOIN LATERAL (
        SELECT sum(c.pending) AS pending FROM tasker.lanes(p_namespace.id, true) AS l
        CROSS JOIN LATERAL (
            SELECT count(*) AS pending FROM (
                SELECT FROM tasker.tasks t WHERE t.namespace_id = p_namespace.id AND t.priority = l.priority AND t.claim_order >= l.mark
                LIMIT p_count) AS t) AS c) AS p
    CROSS JOIN LATERAL (
        SELECT avg((SELECT count(*) FROM tasker.template_steps ts WHERE ts.version_id = h.version_id AND ts.namespace = p_namespace.name AND ts.undoes IS NULL)) AS steps
        FROM (SELECT t.version_id FROM tasker.lanes(p_namespace.id, true) AS l
              CROSS JOIN LATERAL (
                  SELECT version_id FROM tasker.tasks
                  WHERE namespace_id = p_namespace.id AND priority = l.priority AND claim_order >= l.mark LIMIT 100) AS t
              LIMIT 100) AS h) AS s
    WHERE m.namespace_id = p_namespace.id;
END;

-- How many steps come in a second, over the last minute: what was done, and what waits more than before.
CREATE FUNCTION tasker.arrival_rate(p_namespace int, p_now timestamptz) RETURNS float8
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT greatest(0, (
        (SELECT coalesce(sum(r.completed + r.failed), 0) FROM tasker.activity r
         WHERE r.namespace_id = p_namespace AND r.at >= p_now - interval '1 minute' AND r.at < p_now)
        + (SELECT coalesce((array_agg(t.waiting ORDER BY t.at DESC))[1] - (array_agg(t.waiting ORDER BY t.at))[1], 0) FROM tasker.traffic t
           WHERE t.namespace_id = p_namespace AND t.at >= p_now - interval '1 minute')) / 60.0)::float8;
END;

-- How many handlers of a namespace's workers run at once, and how many workers there are; one that has just started is taken to have eight.
CREATE FUNCTION tasker.handlers(p_namespace text, OUT workers bigint, OUT handlers float8)
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT count(*), coalesce(sum(coalesce((m.report -> 'busy' ->> 'slots')::float8, 8)), 0)
    FROM tasker.members m
    WHERE m.kind = 'worker' AND m.left_at IS NULL AND m.lease_until > clock_timestamp() AND p_namespace = ANY (m.namespaces);
END;

-- How many orchestrators there are that look after a namespace.
CREATE FUNCTION tasker.orchestrators(p_namespace text) RETURNS bigint
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT count(*) FROM tasker.members m
    WHERE m.kind = 'orchestrator' AND m.left_at IS NULL AND m.lease_until > clock_timestamp()
      AND (m.namespaces = '{}' OR p_namespace = ANY (m.namespaces));
END;

-- What is missing beside a member, [{namespace, ...}]: of a worker's namespaces those that no orchestrator looks after; of an orchestrator's those that
-- no worker is there for, though something has waited for ten seconds, with how many steps wait (waiting); of both the kinds of step that no worker
-- has a handler for (handler, step, template, version). Null: nothing.
CREATE FUNCTION tasker.lacking(p_member int) RETURNS jsonb
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT jsonb_agg(l.lack ORDER BY l.lack) FROM tasker.members m CROSS JOIN LATERAL (
        SELECT jsonb_build_object('namespace', w.name) AS lack FROM unnest(m.namespaces) AS w(name)
        WHERE m.kind = 'worker' AND tasker.orchestrators(w.name) = 0
        UNION ALL
        SELECT jsonb_build_object('namespace', n.name, 'waiting', tasker.waiting_steps(n, 10000)) FROM tasker.awake_namespaces(0, 1000) AS n
        WHERE m.kind = 'orchestrator' AND (m.namespaces = '{}' OR n.name = ANY (m.namespaces))
          AND NOT EXISTS (SELECT FROM tasker.members w WHERE w.kind = 'worker' AND w.left_at IS NULL AND w.lease_until > clock_timestamp()
                          AND n.name = ANY (w.namespaces))
          AND (tasker.queue_health(n.queue, (SELECT k.message FROM tasker.marks k WHERE k.namespace_id = n.id), 1) ->> 'oldest_seconds')::float8 > 10
        UNION ALL
        (SELECT jsonb_build_object('namespace', ts.namespace, 'handler', ts.handler, 'step', ts.name, 'template', ts.template, 'version', ts.version)
         FROM tasker.unhandled u JOIN tasker.template_steps ts USING (version_id, step)
         WHERE NOT u.found AND (m.namespaces = '{}' OR ts.namespace = ANY (m.namespaces)) ORDER BY u.since LIMIT 20)) AS l
    WHERE m.id = p_member;
END;

-- Takes down what waits and what came in in the next p_limit namespaces after p_after that are not asleep, once every ten seconds whoever asks, and
-- forgets what is too old; and how many messages a queue may hold for the workers that there are: as many as they have handlers, and finish in 200
-- ms.
-- Returns the last namespace that it looked at (null: there are no more, or somebody else is at it).
-- Locks: its turn; then marks in order.
CREATE FUNCTION tasker.note_traffic(p_after int DEFAULT 0, p_limit int DEFAULT 100) RETURNS int
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_now  timestamptz := date_bin('10 s', clock_timestamp(), 'epoch');
    v_ids  int[];
    v_last int;
    -- the last that all workers have told of by now
    v_minute timestamptz := date_bin('1 minute', v_now - interval '80 s', 'epoch');
BEGIN
    IF NOT tasker.take_turn('tasker.turn_traffic') THEN
        RETURN NULL;
    END IF;
    v_ids := ARRAY(SELECT a.id FROM tasker.awake_namespaces(p_after, p_limit) AS a);
    v_last := CASE WHEN cardinality(v_ids) = p_limit THEN v_ids[p_limit] END;
    v_ids := ARRAY(SELECT i.id FROM unnest(v_ids) AS i(id)
                   WHERE NOT EXISTS (SELECT FROM tasker.traffic t WHERE t.at = v_now AND t.namespace_id = i.id) ORDER BY i.id);
    IF v_ids = '{}' THEN
        RETURN v_last;
    END IF;
    INSERT INTO tasker.traffic (at, namespace_id, waiting)
    SELECT v_now, n.id, tasker.waiting_steps(n, 200000) FROM tasker.namespaces n WHERE n.id = ANY (v_ids);
    INSERT INTO tasker.arrivals AS a (at, namespace_id, steps)
    SELECT date_bin('5 minutes', v_now, 'epoch'), n.id, 10 * tasker.arrival_rate(n.id, v_now) FROM tasker.namespaces n
    WHERE n.id = ANY (v_ids)
    ON CONFLICT (namespace_id, at) DO UPDATE SET steps = a.steps + excluded.steps;
    INSERT INTO tasker.minutes (at, namespace_id, completed, failed, seconds)
    SELECT v_minute, a.namespace_id, sum(a.completed), sum(a.failed), sum(a.seconds) FROM tasker.activity a
    WHERE a.at >= v_minute AND a.at < v_minute + interval '1 minute' AND a.namespace_id = ANY (v_ids) GROUP BY a.namespace_id
    ON CONFLICT DO NOTHING;
    UPDATE tasker.marks m SET room = d.room
    FROM (
        SELECT n.id, ceil(h.handlers + 0.2 * coalesce((
                   SELECT sum(r.completed + r.failed) / 30 FROM tasker.activity r
                   WHERE r.namespace_id = n.id AND r.at >= v_now - interval '30 s' AND r.at < v_now), 0))::int AS room
        FROM tasker.namespaces n CROSS JOIN LATERAL tasker.handlers(n.name) AS h WHERE n.id = ANY (v_ids)) AS d
    WHERE m.namespace_id = d.id AND m.room IS DISTINCT FROM d.room;
    DELETE FROM tasker.traffic t WHERE t.at < v_now - interval '20 minutes';
    DELETE FROM tasker.minutes i WHERE i.at < v_now - interval '2 hours';
    DELETE FROM tasker.arrivals a WHERE a.at < v_now - interval '15 days';
    RETURN v_last;
END
$$;

-- What was done in each of the last p_minutes minutes, the oldest first, in a namespace (null: in all): {at, completed, failed, seconds}. The newest minute
-- or two are not in it yet.
CREATE FUNCTION tasker.read_minutes(p_minutes int, p_namespace text) RETURNS SETOF jsonb
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT jsonb_build_object('at', i.at, 'completed', coalesce(d.completed, 0), 'failed', coalesce(d.failed, 0), 'seconds', coalesce(d.seconds, 0))
    FROM date_bin('1 minute', clock_timestamp() - interval '80 s', 'epoch') AS last
    CROSS JOIN LATERAL generate_series(last - (p_minutes - 1) * interval '1 minute', last, '1 minute') AS i(at)
    CROSS JOIN LATERAL (
        SELECT sum(m.completed) AS completed, sum(m.failed) AS failed, sum(m.seconds) AS seconds FROM tasker.minutes m
        WHERE m.at = i.at AND (p_namespace IS NULL OR m.namespace_id = (SELECT n.id FROM tasker.namespaces n WHERE n.name = p_namespace))) AS d
    ORDER BY i.at;
END;

-- A guess at how many steps will come in a second, p_ahead from p_now, when it is p_rate now; from how many days it knows what is usual then.
--   trend  the slope of the last half hour (least squares), continued; to no less than half, and no more than twice of what it is
--   daily  by what it usually grows at this time: the median of the last fourteen days that have something to say; by four at most
-- Of both, where at least two days say something, the mean; else the trend.
CREATE FUNCTION tasker.forecast_rate(p_namespace int, p_rate float8, p_now timestamptz, p_ahead interval, OUT rate float8, OUT days int)
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT CASE WHEN d.days >= 2 THEN (t.rate + p_rate * least(4, greatest(0.25, d.growth))) / 2 ELSE t.rate END, d.days
    FROM (
        SELECT greatest(p_rate / 2, least(p_rate * 2, p_rate + extract(epoch FROM p_ahead) * coalesce(
            regr_slope(a.steps / 300, extract(epoch FROM a.at - p_now)), 0))) AS rate
        FROM tasker.arrivals a
        WHERE a.namespace_id = p_namespace AND a.at >= p_now - interval '30 minutes' AND a.at <= p_now - interval '5 minutes') AS t,
    (
        SELECT count(*)::int AS days, percentile_cont(0.5) WITHIN GROUP (ORDER BY w.later / w.then) AS growth
        FROM (
            SELECT avg(a.steps) FILTER (WHERE a.at < b.at + interval '15 minutes') AS then,
                   avg(a.steps) FILTER (WHERE a.at >= b.at + p_ahead) AS later
            FROM generate_series(1, 14) AS n(day)
            CROSS JOIN LATERAL (SELECT p_now - n.day * interval '1 day' - interval '10 minutes' AS at) AS b
            JOIN tasker.arrivals a ON a.namespace_id = p_namespace AND a.at >= b.at AND a.at < b.at + p_ahead + interval '15 minutes'
            GROUP BY n.day) AS w
        WHERE w.then > 0 AND w.later IS NOT NULL) AS d;
END;

-- How many handlers, and workers, are wanted for p_rate steps a second that take p_service seconds each, while p_waiting wait.
CREATE FUNCTION tasker.wanted_workers(
    p_rate float8, p_service float8, p_waiting bigint, p_workers bigint, p_handlers float8, OUT handlers float8, OUT workers float8)
LANGUAGE sql IMMUTABLE BEGIN ATOMIC
    SELECT h.wanted, CASE
        WHEN p_waiting = 0 AND p_rate = 0 THEN 0
        WHEN p_service IS NULL THEN greatest(1, p_workers)
        ELSE greatest(1, ceil(h.wanted / coalesce(nullif(p_handlers / nullif(p_workers, 0), 0), 8))) END
    FROM (SELECT round((p_rate * p_service / 0.8 + p_waiting * p_service / 60)::numeric, 3)::float8 AS wanted) AS h;
END;

-- What a namespace needs. Little's law (J. D. C. Little, 1961): as many handlers are busy as steps come in a second, times the seconds that each
-- takes. To that comes what has to be done within a minute of what waits already; and handlers should be busy for four fifths of the time.
-- arrival_rate: steps a second, over the last minute; service_seconds: how long a handler has a step (null: none was done within fifteen minutes);
-- handlers: those of the workers that live; desired_handlers, desired_workers: such workers as there are now, or of eight handlers. forecast: the
-- same in ten minutes, by what forecast_rate guesses, and what the guess is based on.
CREATE FUNCTION tasker.capacity(p_namespace tasker.namespaces) RETURNS jsonb
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT jsonb_build_object(
        'arrival_rate', round(a.rate::numeric, 3), 'service_seconds', round(d.service::numeric, 6), 'waiting', w.waiting, 'workers', f.workers,
        'handlers', f.handlers, 'desired_handlers', now_wants.handlers, 'desired_workers', now_wants.workers,
        'forecast', jsonb_build_object(
            'seconds_ahead', 600, 'arrival_rate', round(g.rate::numeric, 3), 'desired_workers', then_wants.workers,
            'basis', CASE WHEN g.days >= 2 THEN 'trend and time of day, ' || g.days || ' days' ELSE 'trend' END))
    FROM date_bin('10 s', clock_timestamp(), 'epoch') AS now
    CROSS JOIN LATERAL tasker.arrival_rate(p_namespace.id, now) AS a(rate)
    CROSS JOIN LATERAL tasker.forecast_rate(p_namespace.id, a.rate, now, interval '10 minutes') AS g
    CROSS JOIN LATERAL (
        SELECT coalesce(sum(r.seconds) FILTER (WHERE r.at >= now - interval '1 minute')
                        / nullif(sum(r.completed + r.failed) FILTER (WHERE r.at >= now - interval '1 minute'), 0),
                        sum(r.seconds) / nullif(sum(r.completed + r.failed), 0)) AS service
        FROM tasker.activity r
        WHERE r.namespace_id = p_namespace.id AND r.at >= now - interval '15 minutes' AND r.at < now) AS d
    CROSS JOIN LATERAL (
        SELECT coalesce((array_agg(t.waiting ORDER BY t.at DESC))[1], 0) AS waiting
        FROM tasker.traffic t WHERE t.namespace_id = p_namespace.id AND t.at >= now - interval '1 minute') AS w
    CROSS JOIN LATERAL tasker.handlers(p_namespace.name) AS f
    CROSS JOIN LATERAL tasker.wanted_workers(a.rate, d.service, w.waiting, f.workers, f.handlers) AS now_wants
    CROSS JOIN LATERAL tasker.wanted_workers(g.rate, d.service, w.waiting, f.workers, f.handlers) AS then_wants;
END;
