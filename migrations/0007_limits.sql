-- Limits: how many of some steps may be under way at once, and how many may start in a stretch of time, across all workers.
-- A step that limits concern is not sent until it has a permit of each. It waits as a row here: no worker holds it, none asks for it, and its
-- queue stays short.

CREATE TABLE tasker.limits (
    id           int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    namespace    text NOT NULL,
    name         text NOT NULL,
    -- whose steps: of this handler, of this template; null: any
    handler      text,
    template     text,
    -- Where in the task's input: each value found there is limited by itself, and a task without one is not. Null: all together.
    key          text[],
    concurrency  int CHECK (concurrency > 0),
    -- starts in any stretch of that length
    rate         int CHECK (rate > 0),
    per          interval NOT NULL,
    -- when steps wait that would probably fail (see 0008_breakers.sql); null: never
    failure_rate float8,
    minimum      int NOT NULL,
    look_back    interval NOT NULL,
    stays_open   interval NOT NULL,
    probes       int NOT NULL,
    -- It is gone from the configuration: who waits for it is let go.
    removed      boolean NOT NULL DEFAULT false
);
CREATE UNIQUE INDEX limits_name ON tasker.limits (namespace, name) WHERE NOT removed;

-- What a step waits for (granted_at is null), or has.
CREATE TABLE tasker.permits (
    task_id    uuid NOT NULL,
    step       smallint NOT NULL,
    limit_id   int NOT NULL,
    -- '': the limit has none
    key        text NOT NULL,
    -- their order: as tasks.claim_order
    place      timestamptz NOT NULL,
    granted_at timestamptz,
    started_at timestamptz,
    -- the newest limit that there was when this was seen to be the last permit that its step wants; null: it wants others after it
    seen_limit int,
    PRIMARY KEY (task_id, step, limit_id)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX permits_waiting ON tasker.permits (limit_id, key, place) WHERE granted_at IS NULL;
CREATE INDEX permits_granted ON tasker.permits (limit_id, key) WHERE granted_at IS NOT NULL;

-- Starts of steps under a limit with a rate, as long as they count.
CREATE TABLE tasker.limited_starts (limit_id int NOT NULL, key text NOT NULL, at timestamptz NOT NULL);
CREATE INDEX limited_starts_at ON tasker.limited_starts (limit_id, key, at);

-- When to look again whether permits can be granted: something has happened, or a time has come. Who writes here waits for nobody.
CREATE TABLE tasker.limit_events (
    limit_id   int NOT NULL,
    key        text NOT NULL,
    at         timestamptz NOT NULL,
    -- of permits that came back, parallel: when they had been granted, and whether their steps failed
    granted    timestamptz[],
    failed     boolean[]
);
CREATE INDEX limit_events_at ON tasker.limit_events (at);
CREATE INDEX limit_events_key ON tasker.limit_events (limit_id, key);

-- The limits that a configuration has.
CREATE FUNCTION tasker.configured_limits(p_overrides jsonb) RETURNS TABLE (
    namespace text, name text, handler text, template text, key text[], concurrency int, rate int, per interval,
    failure_rate float8, minimum int, look_back interval, stays_open interval, probes int
)
LANGUAGE sql IMMUTABLE BEGIN ATOMIC
    SELECT n.key, l.key, r.handler, r.template, string_to_array(r.key, '.'), r.concurrency, r.rate, coalesce(r.per_seconds, 1) * interval '1 second',
           CASE WHEN r.breaker IS NOT NULL THEN coalesce(b.failure_rate, 0.5) END, coalesce(b.minimum, 10),
           coalesce(b.window_seconds, 60) * interval '1 second', coalesce(b.open_seconds, 30) * interval '1 second', coalesce(b.probes, 1)
    FROM jsonb_each(p_overrides -> 'namespaces') AS n, jsonb_each(n.value -> 'limits') AS l,
         jsonb_to_record(l.value) AS r(handler text, template text, key text, concurrency int, rate int, per_seconds float8, breaker jsonb),
         jsonb_to_record(coalesce(r.breaker, '{}')) AS b(failure_rate float8, minimum int, window_seconds float8, open_seconds float8, probes int);
END;

-- The limits that there are to be: those of a configuration, and those that the current versions of templates bring along, but for those that the
-- configuration has by their name, which is '<template>:<limit>'.
CREATE FUNCTION tasker.wanted_limits(p_overrides jsonb) RETURNS TABLE (
    namespace text, name text, handler text, template text, key text[], concurrency int, rate int, per interval,
    failure_rate float8, minimum int, look_back interval, stays_open interval, probes int
)
LANGUAGE sql STABLE BEGIN ATOMIC
    WITH own AS (
        SELECT n.name AS namespace, jsonb_object_agg(tp.name || ':' || l.key, l.value || jsonb_build_object('template', tp.name)) AS limits
        FROM tasker.templates tp
        JOIN tasker.namespaces n ON n.id = tp.namespace_id
        JOIN tasker.template_versions tv ON tv.id = tp.current_version_id
        CROSS JOIN LATERAL jsonb_each(tv.definition -> 'limits') AS l GROUP BY n.name
    )
    SELECT c.* FROM tasker.configured_limits(p_overrides) AS c
    UNION ALL
    SELECT o.* FROM (SELECT jsonb_build_object('namespaces', jsonb_object_agg(own.namespace, jsonb_build_object('limits', own.limits))) AS all
                     FROM own HAVING count(*) > 0) AS d
    CROSS JOIN LATERAL tasker.configured_limits(d.all) AS o
    WHERE NOT EXISTS (SELECT FROM tasker.configured_limits(p_overrides) AS c WHERE c.namespace = o.namespace AND c.name = o.name);
END;

-- Makes the limits what they are to be under a configuration. What is new there counts from now on, also for steps that wait for others already; what is gone, or
-- concerns other steps by now, lets go who waits for it.
-- Locks: the caller's, who has the turn of ensure_namespaces; then the limits.
CREATE FUNCTION tasker.apply_limits(p_overrides jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    UPDATE tasker.limits l SET removed = true
    WHERE NOT l.removed AND NOT EXISTS (
        SELECT FROM tasker.wanted_limits(p_overrides) w
        WHERE w.namespace = l.namespace AND w.name = l.name AND (w.handler, w.template, w.key) IS NOT DISTINCT FROM (l.handler, l.template, l.key));
    INSERT INTO tasker.limits
        (namespace, name, handler, template, key, concurrency, rate, per, failure_rate, minimum, look_back, stays_open, probes)
    SELECT w.* FROM tasker.wanted_limits(p_overrides) w ORDER BY w.namespace, w.name
    ON CONFLICT (namespace, name) WHERE NOT removed DO UPDATE
    SET concurrency = excluded.concurrency, rate = excluded.rate, per = excluded.per, failure_rate = excluded.failure_rate,
        minimum = excluded.minimum, look_back = excluded.look_back, stays_open = excluded.stays_open, probes = excluded.probes;
    INSERT INTO tasker.limit_events (limit_id, key, at)
    SELECT DISTINCT p.limit_id, p.key, clock_timestamp() FROM tasker.permits p WHERE p.granted_at IS NULL;
    PERFORM tasker.notify('tasker_due', '');
END
$$;
