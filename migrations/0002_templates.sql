-- Templates: what a task will do. A registered version never changes; a running task keeps the version it began with.

CREATE TABLE tasker.templates (
    id                 bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    namespace_id       int NOT NULL REFERENCES tasker.namespaces,
    name               text NOT NULL,
    current_version_id int,
    UNIQUE (namespace_id, name)
);

-- A template may be named without its namespace.
CREATE INDEX templates_name ON tasker.templates (name);

CREATE TABLE tasker.template_versions (
    id           int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    template_id  bigint NOT NULL REFERENCES tasker.templates,
    version      text NOT NULL,
    -- named by us (1, 2, …) because the author gave none
    automatic    boolean NOT NULL,
    digest       text NOT NULL,
    definition   jsonb NOT NULL,
    priority     smallint NOT NULL,
    -- the steps that none depends on, and how many depend on none
    sinks        smallint[] NOT NULL,
    roots        smallint NOT NULL,
    -- what a task becomes when a step is dead: blocked, failed or undoing
    dead_state   tasker.task_state NOT NULL,
    -- null: its tasks may take as long as they take
    deadline     interval,
    -- how long a task may be pending, and its steps enqueued or in progress, before they are given up; null: as long as it takes
    pending_limit     interval,
    enqueued_limit    interval,
    in_progress_limit interval,
    created_at   timestamptz NOT NULL DEFAULT now(),
    UNIQUE (template_id, version)
);
ALTER TABLE tasker.templates ADD FOREIGN KEY (current_version_id) REFERENCES tasker.template_versions;

CREATE TABLE tasker.template_steps (
    version_id   int NOT NULL REFERENCES tasker.template_versions,
    step         smallint NOT NULL,
    name         text NOT NULL,
    -- the names of its template and version, so that a lease finds all of a step in one row
    template     text NOT NULL,
    version      text NOT NULL,
    kind         text NOT NULL CHECK (kind IN ('handler', 'sleep', 'wait', 'each', 'workflow', 'undo')),
    -- null: it is of another kind
    handler      text,
    namespace    text NOT NULL,
    queue        text NOT NULL,
    parents      smallint[] NOT NULL,
    children     smallint[] NOT NULL,
    -- whose effect it takes back (see 0032_undo.sql): its children are those that do so after it; null: nobody's
    undoes       smallint,
    -- where it is not true, the step is skipped (see 0025_readiness.sql); null: it runs
    condition    jsonpath,
    -- how long it waits once it is ready, or sleeps; null: not at all
    delay        interval,
    -- of which tasks, where its work is other tasks: {template, version, over, input, limit, batch, tolerate} (see 0026_children.sql)
    spawn        jsonb,
    -- for which signal, where it waits for one: {signal, key, timeout, on_timeout, assignees, due}, with seconds (see 0029_signals.sql)
    wait         jsonb,
    -- the names of those before it that are each of many tasks; null: none is
    fan_outs     text[],
    -- It is not simply sent when it is ready: it may be skipped, waits, or has other tasks do it.
    decided      boolean NOT NULL,
    -- Its completion reads or changes what a sibling's may: a child with several parents, or a task with several last steps.
    -- Only then does completing it need the task's lock.
    shared       boolean NOT NULL,
    -- null: the namespace's
    max_attempts    int,
    backoff         text CHECK (backoff IN ('fixed', 'linear', 'exponential')),
    multiplier      float8,
    base_seconds    float8,
    max_seconds     float8,
    jitter          float8,
    retention_days  int,
    alert_threshold int,
    transactional   boolean NOT NULL,
    timeout_ms      bigint,
    config       jsonb NOT NULL,
    PRIMARY KEY (version_id, step),
    -- Not the version first: a plan made while the table is small would be as glad of this index as of the key, and read all of a version.
    UNIQUE (name, version_id)
);
CREATE INDEX template_steps_alerts ON tasker.template_steps (namespace) WHERE alert_threshold IS NOT NULL;

-- What a version's inputs must satisfy; null: anything.
CREATE FUNCTION tasker.input_schema(p_version int) RETURNS jsonb
LANGUAGE sql STABLE BEGIN ATOMIC SELECT tv.definition -> 'input_schema' FROM tasker.template_versions tv WHERE tv.id = p_version; END;

-- Errors with TK009 if tasks of this version would have tasks of its template below them, as the current versions are, and it names no max_depth.
CREATE FUNCTION tasker.refuse_endless(p_version int) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_way text;
BEGIN
    WITH RECURSIVE names AS (
        SELECT t.id, n.name || '/' || t.name AS name, t.current_version_id FROM tasker.templates t JOIN tasker.namespaces n ON n.id = t.namespace_id
    ), below AS (
        SELECT ts.spawn ->> 'template' AS name, ARRAY[ts.spawn ->> 'template'] AS way
        FROM tasker.template_steps ts WHERE ts.version_id = p_version AND ts.spawn IS NOT NULL
        UNION ALL
        SELECT ts.spawn ->> 'template', b.way || (ts.spawn ->> 'template')
        FROM below b JOIN names n ON n.name = b.name JOIN tasker.template_steps ts ON ts.version_id = n.current_version_id AND ts.spawn IS NOT NULL
        WHERE NOT (ts.spawn ->> 'template') = ANY (b.way)
    )
    SELECT array_to_string(n.name || b.way, ' → ') INTO v_way
    FROM tasker.template_versions tv JOIN names n ON n.id = tv.template_id JOIN below b ON b.name = n.name
    WHERE tv.id = p_version AND NOT tv.definition ? 'max_depth' LIMIT 1;
    IF v_way IS NOT NULL THEN
        RAISE EXCEPTION 'its tasks would contain tasks of the same template: %', v_way
            USING ERRCODE = 'TK009', HINT = 'if each is to come to an end by itself, say how deep they may be at most (max_depth: 10)';
    END IF;
END
$$;

-- Registers a template, already validated by the library. A new version becomes the current one, for callers that name none; one that was there
-- before only with p_use: a process of an old release that starts again must not take everybody back.
-- p_version null: the version that has this digest, or a new one numbered after the last.
-- Errors: TK001 when the version exists with other content; TK009 when it contains itself (see refuse_endless); TK011 (see refuse_moved).
-- Locks: where it has limits, or had, the turn of ensure_namespaces; the template, so that each version has its own number.
CREATE FUNCTION tasker.register_template(
    p_namespace text, p_name text, p_version text, p_digest text, p_definition jsonb, p_priority smallint, p_steps jsonb, p_use boolean DEFAULT true,
    OUT version_id int, OUT version text, OUT created boolean
)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_template_id bigint;
    v_known       tasker.template_versions;
    v_sinks       smallint[];
    v_roots       smallint;
    v_limited     boolean := p_definition ? 'limits' OR EXISTS (
        SELECT FROM tasker.templates t JOIN tasker.namespaces n ON n.id = t.namespace_id
        JOIN tasker.template_versions tv ON tv.id = t.current_version_id
        WHERE n.name = p_namespace AND t.name = p_name AND tv.definition ? 'limits');
BEGIN
    PERFORM tasker.refuse_moved(p_namespace);
    IF v_limited THEN
        PERFORM tasker.await_turn('tasker.turn_namespaces');
    END IF;
    PERFORM tasker.ensure_namespaces(ARRAY(
        SELECT p_namespace UNION SELECT s.namespace FROM jsonb_to_recordset(p_steps) AS s(namespace text)));
    INSERT INTO tasker.templates (namespace_id, name)
    SELECT n.id, p_name FROM tasker.namespaces n
    WHERE n.name = p_namespace AND NOT EXISTS (SELECT FROM tasker.templates t WHERE t.namespace_id = n.id AND t.name = p_name)
    ON CONFLICT DO NOTHING;
    SELECT t.id INTO v_template_id
    FROM tasker.templates t JOIN tasker.namespaces n ON n.id = t.namespace_id
    WHERE n.name = p_namespace AND t.name = p_name FOR NO KEY UPDATE OF t;

    SELECT tv.* INTO v_known FROM tasker.template_versions tv
    WHERE tv.template_id = v_template_id
      AND CASE WHEN p_version IS NULL THEN tv.automatic AND tv.digest = p_digest ELSE tv.version = p_version END;
    created := v_known.id IS NULL;

    IF NOT created AND v_known.digest <> p_digest THEN
        RAISE EXCEPTION 'template %/% version % is registered with other content', p_namespace, p_name, p_version
            USING ERRCODE = 'TK001', HINT = 'a registered version never changes: give the new content a new version';
    END IF;

    IF created THEN
        SELECT array_agg(s.step ORDER BY s.step) FILTER (WHERE s.children = '{}'), count(*) FILTER (WHERE s.parents = '{}') INTO v_sinks, v_roots
        FROM jsonb_to_recordset(p_steps) AS s(step smallint, parents smallint[], children smallint[], undoes smallint) WHERE s.undoes IS NULL;
        version := coalesce(p_version, (
            SELECT (coalesce(max(tv.version::int), 0) + 1)::text FROM tasker.template_versions tv
            WHERE tv.template_id = v_template_id AND tv.version ~ '^[0-9]{1,9}$'));
        INSERT INTO tasker.template_versions AS tv (template_id, version, automatic, digest, definition, priority, sinks, roots, dead_state, deadline,
            pending_limit, enqueued_limit, in_progress_limit)
        VALUES (v_template_id, version, p_version IS NULL, p_digest, p_definition, p_priority, v_sinks, v_roots,
                CASE p_definition ->> 'on_failure' WHEN 'fail' THEN 'failed' WHEN 'undo' THEN 'undoing' ELSE 'blocked' END::tasker.task_state,
                tasker.duration(p_definition -> 'deadline'),
                tasker.duration(p_definition -> 'stuck_after' -> 'pending'), tasker.duration(p_definition -> 'stuck_after' -> 'enqueued'),
                tasker.duration(p_definition -> 'stuck_after' -> 'in_progress'))
        RETURNING tv.id INTO version_id;
        INSERT INTO tasker.template_steps
        SELECT register_template.version_id, s.step, s.name, p_name, register_template.version, s.kind, s.handler, s.namespace, s.namespace || '_queue',
               s.parents, s.children, s.undoes, s.condition::jsonpath, s.delay_seconds * interval '1 second', s.spawn, s.wait, s.fan_outs, s.decided,
               -- What is skipped, or has slept, may make anything ready.
               cardinality(v_sinks) > 1 AND s.children = '{}' OR s.joins OR s.undoes IS NOT NULL OR bool_or(s.decided) OVER (),
               s.max_attempts, s.backoff, s.multiplier, s.base_seconds, s.max_seconds, s.jitter, s.retention_days, s.alert_threshold,
               s.transactional, s.timeout_ms, s.config
        FROM jsonb_to_recordset(p_steps) AS s(
            step smallint, name text, kind text, handler text, namespace text, parents smallint[], children smallint[], undoes smallint, joins boolean,
            condition text, delay_seconds float8, spawn jsonb, wait jsonb, fan_outs text[], decided boolean, max_attempts int, backoff text, multiplier float8, base_seconds float8, max_seconds float8, jitter float8,
            retention_days int, alert_threshold int, transactional boolean, timeout_ms bigint, config jsonb);
    ELSE
        version_id := v_known.id;
        version := v_known.version;
    END IF;

    UPDATE tasker.templates t SET current_version_id = register_template.version_id
    WHERE t.id = v_template_id AND (created OR p_use) AND t.current_version_id IS DISTINCT FROM register_template.version_id;
    IF FOUND AND v_limited THEN
        PERFORM tasker.apply_limits((SELECT c.overrides FROM tasker.configurations c ORDER BY c.version DESC LIMIT 1));
    END IF;
    IF created THEN
        PERFORM tasker.refuse_endless(version_id);
    END IF;
    PERFORM tasker.keep_schedules(v_template_id, p_namespace || '/' || p_name);
END
$$;
