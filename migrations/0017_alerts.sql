-- Alerts: once for each time that the dead letters of a step (or, where neither it nor its template has a threshold of its own, of a
-- namespace) reach their threshold; not for every letter. And when a subscription was disabled (see 0043_deliveries.sql).

CREATE TABLE tasker.alerts (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    namespace    text NOT NULL,
    -- empty: the namespace's own threshold
    template     text NOT NULL,
    step         text NOT NULL,
    threshold    int,
    letters      bigint,
    -- which subscription was disabled, and why; empty: it is about letters
    subscription text NOT NULL DEFAULT '',
    problem      text,
    raised_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- when the letters were fewer again; the next crossing is another alert
    cleared_at   timestamptz,
    delivered_at timestamptz,
    tries        int NOT NULL DEFAULT 0,
    next_try_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE UNIQUE INDEX alerts_open ON tasker.alerts (namespace, template, step, subscription) WHERE cleared_at IS NULL;
CREATE INDEX alerts_undelivered ON tasker.alerts (next_try_at) WHERE delivered_at IS NULL;

-- The namespaces whose letters may raise an alert, or clear one, and whose queues can be worked with, in order.
CREATE FUNCTION tasker.alerting_namespaces() RETURNS SETOF text
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT a.name FROM (
        SELECT n.name FROM tasker.lettered l JOIN tasker.namespaces n ON n.id = l.namespace_id
        WHERE n.alert_threshold IS NOT NULL
           OR EXISTS (SELECT FROM tasker.template_steps ts WHERE ts.namespace = n.name AND ts.alert_threshold IS NOT NULL)
        UNION SELECT a.namespace FROM tasker.alerts a WHERE a.cleared_at IS NULL) AS a
    WHERE NOT EXISTS (SELECT FROM tasker.broken_queues b WHERE b.queue = a.name || '_queue')
    ORDER BY 1;
END;

-- Counts the letters of these namespaces against the thresholds, raises and clears their alerts, and returns those it raised.
-- Locks: its turn; who does not get it leaves the work to the one who has it.
CREATE FUNCTION tasker.check_alerts(p_namespaces text[]) RETURNS SETOF jsonb
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT tasker.take_turn('tasker.turn_alerts') THEN
        RETURN;
    END IF;
    RETURN QUERY
    WITH counted AS MATERIALIZED (
        SELECT f.namespace, coalesce(own.template, '') AS template, coalesce(own.step, '') AS step,
               coalesce(own.threshold, n.alert_threshold) AS threshold, count(*) AS letters
        FROM tasker.find_dead_letters(jsonb_build_object('namespaces', p_namespaces), NULL) f
        JOIN tasker.namespaces n ON n.name = f.namespace
        LEFT JOIN LATERAL (
            SELECT f.letter ->> 'template' AS template, ts.name AS step, ts.alert_threshold AS threshold
            FROM tasker.tasks t JOIN tasker.template_steps ts ON ts.version_id = t.version_id AND ts.name = f.letter ->> 'step'
            WHERE t.id = (f.letter ->> 'task')::uuid AND ts.alert_threshold IS NOT NULL) AS own ON true
        GROUP BY 1, 2, 3, 4
    ), reached AS MATERIALIZED (
        SELECT c.namespace, c.template, c.step, min(c.threshold) AS threshold, sum(c.letters)::bigint AS letters
        FROM counted c WHERE c.threshold IS NOT NULL
        GROUP BY c.namespace, c.template, c.step HAVING sum(c.letters) >= min(c.threshold)
    ), cleared AS (
        UPDATE tasker.alerts a SET cleared_at = clock_timestamp()
        WHERE a.cleared_at IS NULL AND a.namespace = ANY (p_namespaces) AND NOT EXISTS (
            SELECT 1 FROM reached r WHERE (r.namespace, r.template, r.step) = (a.namespace, a.template, a.step))
    ), raised AS (
        INSERT INTO tasker.alerts AS a (namespace, template, step, threshold, letters)
        SELECT r.namespace, r.template, r.step, r.threshold, r.letters FROM reached r
        ON CONFLICT (namespace, template, step, subscription) WHERE cleared_at IS NULL DO NOTHING
        RETURNING a.*
    ), counted_event AS (
        SELECT tasker.count_event('dead_letter_alerts', (SELECT count(*) FROM raised))
    )
    SELECT to_jsonb(r) FROM raised r, counted_event;
END
$$;

-- Takes an alert that is to be delivered now, if there is one, and schedules the next try in case this one fails.
-- Locks: the alert it takes, skipping those that another orchestrator is taking.
CREATE FUNCTION tasker.take_alert() RETURNS jsonb
LANGUAGE sql BEGIN ATOMIC
    UPDATE tasker.alerts a
    SET tries = a.tries + 1, next_try_at = clock_timestamp() + least(600, 5 * power(2, least(a.tries, 10))) * interval '1 second'
    WHERE a.id = (
        SELECT u.id FROM tasker.alerts u WHERE u.delivered_at IS NULL AND u.next_try_at <= clock_timestamp()
        ORDER BY u.next_try_at LIMIT 1 FOR UPDATE SKIP LOCKED)
    RETURNING to_jsonb(a);
END;

CREATE FUNCTION tasker.alert_delivered(p_id bigint) RETURNS void
LANGUAGE sql BEGIN ATOMIC UPDATE tasker.alerts SET delivered_at = clock_timestamp() WHERE id = p_id; END;
