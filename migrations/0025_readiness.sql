-- Readiness: what becomes of a step when it is ready, where it is not simply sent. One whose condition is not true, or of which no predecessor ran, is
-- skipped, and with it what depends on nothing else; one with a delay waits first; one that sleeps only waits; one whose work is other tasks waits for
-- these (see 0026_children.sql), and one that is for a signal for that (see 0029_signals.sql).

-- Of steps that are ready, those that are to be sent now. The others are skipped, and returned as such, or wait for their time.
-- Locks: the caller's, who has those of their tasks; then it creates rows.
CREATE FUNCTION tasker.decide_steps(
    INOUT p_tasks uuid[], INOUT p_steps smallint[], INOUT p_queues text[], OUT skipped_tasks uuid[], OUT skipped_steps smallint[]
)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_tasks  uuid[];
    v_steps  smallint[];
    v_whys   text[];
    v_states tasker.step_state[];
    v_kinds  text[];
    v_waits  interval[];
BEGIN
    SELECT array_agg(d.task) FILTER (WHERE d.is_sent), array_agg(d.step) FILTER (WHERE d.is_sent), array_agg(d.queue) FILTER (WHERE d.is_sent),
           array_agg(d.task) FILTER (WHERE d.why IS NOT NULL), array_agg(d.step) FILTER (WHERE d.why IS NOT NULL),
           array_agg(d.task) FILTER (WHERE NOT d.is_sent), array_agg(d.step) FILTER (WHERE NOT d.is_sent), array_agg(d.why) FILTER (WHERE NOT d.is_sent),
           array_agg(CASE WHEN d.why IS NOT NULL THEN 'skipped' WHEN d.kind = 'handler' THEN 'waiting_retry' ELSE 'waiting' END::tasker.step_state)
               FILTER (WHERE NOT d.is_sent), array_agg(d.kind) FILTER (WHERE NOT d.is_sent),
           array_agg(CASE WHEN d.why IS NULL THEN d.delay END) FILTER (WHERE NOT d.is_sent)
    INTO p_tasks, p_steps, p_queues, skipped_tasks, skipped_steps, v_tasks, v_steps, v_whys, v_states, v_kinds, v_waits
    FROM (
        SELECT r.task, r.step, r.queue, ts.kind, ts.delay, w.why, w.why IS NULL AND ts.delay IS NULL AND ts.kind = 'handler' AS is_sent
        FROM unnest(p_tasks, p_steps, p_queues) WITH ORDINALITY AS r(task, step, queue, n)
        CROSS JOIN LATERAL (SELECT * FROM tasker.tasks WHERE id = r.task OFFSET 0) AS t
        CROSS JOIN LATERAL (SELECT * FROM tasker.template_steps WHERE version_id = t.version_id AND step = r.step OFFSET 0) AS ts
        CROSS JOIN LATERAL (
            SELECT coalesce(bool_or(ps.skipped_because IS NULL), false) AS ran,
                   coalesce(jsonb_object_agg(pts.name, ps.result) FILTER (WHERE ps.skipped_because IS NULL AND ts.condition IS NOT NULL), '{}') AS results
            FROM tasker.template_steps pts
            CROSS JOIN LATERAL (SELECT * FROM tasker.steps WHERE task_id = r.task AND step = pts.step OFFSET 0) AS ps
            WHERE pts.version_id = t.version_id AND pts.step = ANY (ts.parents)) AS b
        CROSS JOIN LATERAL (
            SELECT CASE
                WHEN ts.parents <> '{}' AND NOT b.ran THEN 'no step before it ran'
                WHEN ts.condition IS NOT NULL
                    AND NOT coalesce(jsonb_path_match(jsonb_build_object('input', t.input, 'results', b.results), ts.condition, '{}', true), false)
                THEN ts.condition || ' is not true' END AS why) AS w
        ORDER BY r.n) AS d;
    INSERT INTO tasker.steps (task_id, step, state, enqueued_at, finished_at, retry_at, wakes_at, skipped_because)
    SELECT s.task, s.step, s.state, n.now, CASE WHEN s.state = 'skipped' THEN n.now END, CASE WHEN s.state = 'waiting_retry' THEN n.now + s.wait END,
           CASE WHEN s.state = 'waiting' THEN CASE s.kind WHEN 'sleep' THEN n.now + s.wait WHEN 'wait' THEN 'infinity' END END, s.why
    FROM unnest(v_tasks, v_steps, v_states, v_kinds, v_waits, v_whys) AS s(task, step, state, kind, wait, why), clock_timestamp() AS n(now);
    INSERT INTO tasker.fan_outs (task_id, step, look_at)
    SELECT s.task, s.step, clock_timestamp() + coalesce(s.wait, '0') FROM unnest(v_tasks, v_steps, v_states, v_kinds, v_waits) AS s(task, step, state, kind, wait)
    WHERE s.state = 'waiting' AND s.kind IN ('each', 'workflow');
    INSERT INTO tasker.waits (task_id, step, look_at)
    SELECT s.task, s.step, clock_timestamp() + coalesce(s.wait, '0') FROM unnest(v_tasks, v_steps, v_states, v_kinds, v_waits) AS s(task, step, state, kind, wait)
    WHERE s.state = 'waiting' AND s.kind = 'wait';
    IF v_tasks IS DISTINCT FROM skipped_tasks THEN
        PERFORM tasker.notify('tasker_due', '');
    END IF;
    IF v_kinds && '{each, workflow}' THEN
        PERFORM tasker.notify('tasker_children', '');
    END IF;
END
$$;

-- Steps that have slept for their time are complete, and their tasks go on. Returns how many.
-- Locks: the tasks in id order, skipping those that somebody else has (the next call takes them); then the steps.
CREATE FUNCTION tasker.end_sleeps(p_limit int) RETURNS int
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_tasks uuid[];
    v_steps smallint[];
    v_held  uuid[];
BEGIN
    SELECT array_agg(d.task_id), array_agg(d.step) INTO v_tasks, v_steps
    FROM (SELECT s.task_id, s.step FROM tasker.steps s
          WHERE s.wakes_at <= (SELECT clock_timestamp()) ORDER BY s.wakes_at LIMIT p_limit) AS d;
    IF v_tasks IS NULL THEN
        RETURN 0;
    END IF;
    v_held := ARRAY(SELECT t.id FROM tasker.tasks t WHERE t.id = ANY (v_tasks) ORDER BY t.id FOR NO KEY UPDATE SKIP LOCKED);
    WITH ended AS (
        UPDATE tasker.steps s SET state = 'complete', wakes_at = NULL, started_at = s.enqueued_at, finished_at = clock_timestamp()
        FROM unnest(v_tasks, v_steps) AS d(task, step)
        WHERE d.task = ANY (v_held) AND s.task_id = d.task AND s.step = d.step AND s.wakes_at <= clock_timestamp()
        RETURNING s.task_id, s.step
    )
    SELECT array_agg(e.task_id), array_agg(e.step) INTO v_tasks, v_steps FROM ended e;
    PERFORM tasker.advance_tasks(v_tasks, v_steps);
    RETURN coalesce(cardinality(v_tasks), 0);
END
$$;
