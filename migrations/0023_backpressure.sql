-- Backpressure: a namespace whose backlog grows beyond what its rules allow is in the state warning, then critical, for the whole fleet at once.

-- When somebody last measured, so that the many do it no more often than one would.
CREATE TABLE tasker.measurements (measured_at timestamptz NOT NULL);
INSERT INTO tasker.measurements VALUES ('-infinity');

-- How much waits in a namespace and is not parked at critical, counted no further than p_count: tasks that are pending; and how long the first of
-- them waits, in seconds (null: none does).
CREATE FUNCTION tasker.load(p_namespace tasker.namespaces, p_count int, OUT depth bigint, OUT age float8)
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT coalesce(sum(h.pending), 0)::bigint, extract(epoch FROM max(h.waits))::float8
    FROM tasker.lanes(p_namespace.id, true) AS l
    CROSS JOIN LATERAL (
        SELECT count(*) AS pending, clock_timestamp() - min(t.claim_order) - l.priority * tasker.aging() AS waits
        FROM (SELECT w.claim_order FROM tasker.tasks w
              WHERE w.namespace_id = p_namespace.id AND w.priority = l.priority AND w.claim_order >= l.mark
              ORDER BY w.claim_order LIMIT p_count) AS t) AS h
    WHERE l.priority > 1 OR NOT p_namespace.shed_low_priority;
END;

-- The state of a namespace with that load. It becomes worse at a threshold, and better only below four fifths of it, so that it does not flap.
CREATE FUNCTION tasker.pressure(p_namespace tasker.namespaces, p_depth bigint, p_age float8) RETURNS text
LANGUAGE sql IMMUTABLE BEGIN ATOMIC
    SELECT CASE
        WHEN p_depth >= n.depth_critical * (CASE n.pressure WHEN 'critical' THEN 0.8 ELSE 1 END)
          OR p_age >= n.age_critical_seconds * (CASE n.pressure WHEN 'critical' THEN 0.8 ELSE 1 END) THEN 'critical'
        WHEN p_depth >= n.depth_warning * (CASE n.pressure WHEN 'normal' THEN 1 ELSE 0.8 END)
          OR p_age >= n.age_warning_seconds * (CASE n.pressure WHEN 'normal' THEN 1 ELSE 0.8 END) THEN 'warning'
        ELSE 'normal' END
    FROM (SELECT p_namespace.*) AS n;
END;

-- Measures the namespaces that have limits, unless somebody did within p_every, or is at it. Returns those that are not normal, or were not.
-- Locks: the row of measurements, or none; then the namespaces and marks that change.
CREATE FUNCTION tasker.measure_pressure(p_every interval) RETURNS TABLE (namespace text, was text, pressure text, depth bigint, age float8)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
    PERFORM FROM tasker.measurements m WHERE m.measured_at <= clock_timestamp() - p_every FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    UPDATE tasker.measurements SET measured_at = clock_timestamp();
    RETURN QUERY
    WITH measured AS MATERIALIZED (
        SELECT n.id, n.name, n.pressure AS was, tasker.pressure(n, l.depth, l.age) AS state, l.depth, l.age, n.shed_low_priority,
               (SELECT coalesce(sum(a.completed + a.failed), 0) / 60.0 FROM tasker.activity a
                WHERE a.namespace_id = n.id AND a.at >= clock_timestamp() - interval '1 minute') AS drain_rate
        FROM tasker.namespaces n
        CROSS JOIN LATERAL tasker.load(n, coalesce(greatest(n.depth_warning, n.depth_critical), 1)) AS l
        WHERE n.pressure <> 'normal'
           OR num_nonnulls(n.depth_warning, n.depth_critical, n.age_warning_seconds, n.age_critical_seconds) > 0
    ), changed AS (
        UPDATE tasker.namespaces n
        SET pressure = m.state, pressure_since = CASE WHEN m.state = m.was THEN n.pressure_since ELSE clock_timestamp() END, drain_rate = m.drain_rate
        FROM measured m
        WHERE n.id = m.id AND (m.state <> m.was OR m.state = 'critical' AND abs(n.drain_rate - m.drain_rate) > m.drain_rate / 10)
    ), parked AS (
        UPDATE tasker.marks k SET parked = CASE WHEN m.state = 'critical' AND m.shed_low_priority THEN 1 ELSE 0 END
        FROM measured m
        WHERE k.namespace_id = m.id AND k.parked <> CASE WHEN m.state = 'critical' AND m.shed_low_priority THEN 1 ELSE 0 END
        RETURNING m.name
    ), told AS (
        SELECT tasker.notify('tasker_tasks', p.name) FROM parked p
    )
    SELECT m.name, m.was, m.state, m.depth, m.age FROM measured m, (SELECT count(*) FROM told) AS t WHERE 'normal' <> ANY (ARRAY[m.state, m.was]);
END
$$;

-- Stands in the way of new tasks of a namespace that is critical: for as long as its rules want to wait that it is not any more, and with TK007,
-- whose DETAIL is how many seconds it will take at its present pace, at a guess: 1 to 60.
CREATE FUNCTION tasker.throttle(p_namespace tasker.namespaces) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_until timestamptz := clock_timestamp() + p_namespace.throttle_wait_seconds * interval '1 second';
    v_load  record;
BEGIN
    WHILE p_namespace.throttle_new_tasks = 'wait' AND clock_timestamp() < v_until LOOP
        PERFORM pg_sleep(least(0.2, extract(epoch FROM v_until - clock_timestamp())));
        IF (SELECT n.pressure FROM tasker.namespaces n WHERE n.id = p_namespace.id) <> 'critical' THEN
            RETURN;
        END IF;
    END LOOP;
    v_load := tasker.load(p_namespace, coalesce(p_namespace.depth_critical, 1));
    RAISE EXCEPTION 'namespace % takes no new tasks: too many wait', p_namespace.name USING ERRCODE = 'TK007',
        DETAIL = round(greatest(1, least(60, (v_load.depth - 0.8 * coalesce(p_namespace.depth_critical, v_load.depth))
                                             / nullif(p_namespace.drain_rate, 0))))::int,
        HINT = 'try again later: see tasker queue list, and throttle_new_tasks of the namespace';
END
$$;
