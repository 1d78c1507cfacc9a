-- Conditions: whether a step runs is decided where it becomes ready, in the same transaction. One whose condition is not true, or of which no
-- predecessor ran, is skipped, and with it what depends on nothing else.

-- Of steps that are ready, those that run. The others are skipped at once, and returned as such.
-- Locks: the caller's, who has those of their tasks; then it creates rows.
CREATE FUNCTION tasker.decide_steps(
    INOUT p_tasks uuid[], INOUT p_steps smallint[], INOUT p_queues text[], OUT skipped_tasks uuid[], OUT skipped_steps smallint[]
)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_why text[];
BEGIN
    SELECT array_agg(d.task) FILTER (WHERE d.why IS NULL), array_agg(d.step) FILTER (WHERE d.why IS NULL), array_agg(d.queue) FILTER (WHERE d.why IS NULL),
           array_agg(d.task) FILTER (WHERE d.why IS NOT NULL), array_agg(d.step) FILTER (WHERE d.why IS NOT NULL),
           array_agg(d.why) FILTER (WHERE d.why IS NOT NULL)
    INTO p_tasks, p_steps, p_queues, skipped_tasks, skipped_steps, v_why
    FROM (
        SELECT r.task, r.step, r.queue, CASE
            WHEN ts.parents <> '{}' AND NOT b.ran THEN 'no step before it ran'
            WHEN ts.condition IS NOT NULL
                AND NOT coalesce(jsonb_path_match(jsonb_build_object('input', t.input, 'results', b.results), ts.condition, '{}', true), false)
            THEN ts.condition || ' is not true' END AS why
        FROM unnest(p_tasks, p_steps, p_queues) WITH ORDINALITY AS r(task, step, queue, n)
        CROSS JOIN LATERAL (SELECT * FROM tasker.tasks WHERE id = r.task OFFSET 0) AS t
        CROSS JOIN LATERAL (SELECT * FROM tasker.template_steps WHERE version_id = t.version_id AND step = r.step OFFSET 0) AS ts
        CROSS JOIN LATERAL (
            SELECT coalesce(bool_or(ps.skipped_because IS NULL), false) AS ran,
                   coalesce(jsonb_object_agg(pts.name, ps.result) FILTER (WHERE ps.skipped_because IS NULL AND ts.condition IS NOT NULL), '{}') AS results
            FROM tasker.template_steps pts
            CROSS JOIN LATERAL (SELECT * FROM tasker.steps WHERE task_id = r.task AND step = pts.step OFFSET 0) AS ps
            WHERE pts.version_id = t.version_id AND pts.step = ANY (ts.parents)) AS b
        ORDER BY r.n) AS d;
    INSERT INTO tasker.steps (task_id, step, state, enqueued_at, finished_at, skipped_because)
    SELECT s.task, s.step, 'skipped', clock_timestamp(), clock_timestamp(), s.why
    FROM unnest(skipped_tasks, skipped_steps, v_why) AS s(task, step, why);
END
$$;
