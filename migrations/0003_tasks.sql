-- Tasks and their steps: the rows that hold the truth, and the door through which tasks come in.

CREATE TABLE tasker.tasks (
    id           uuid PRIMARY KEY,
    template_id  bigint NOT NULL,
    version_id   int NOT NULL,
    namespace_id int NOT NULL,
    priority     smallint NOT NULL,
    state        tasker.task_state NOT NULL,
    -- Set only while the task is pending: when it came in - priority * aging. Ordering by it is ordering by priority + age / aging,
    -- and it never changes. The claim's partial index is on this column and not on state, so that later changes of state stay HOT.
    claim_order  timestamptz CHECK (isfinite(claim_order)),
    claimed_by   int,
    -- null: none, or it is over
    deadline_at  timestamptz,
    -- when to look whether its deadline or another limit of its template is over; null: it has none
    look_at      timestamptz,
    input        jsonb NOT NULL,
    key          text,
    -- by which it can be found: {"customer": "42"}; null: by none
    tags         jsonb,
    -- what W3C Trace Context propagates: {"traceparent": ..., "tracestate": ...}; null: it is part of no trace
    trace        jsonb,
    created_at   timestamptz NOT NULL,
    -- not before; null: at once. due_at is the same, as long as the task waits for it, and may be looked for.
    run_at       timestamptz,
    due_at       timestamptz,
    started_at   timestamptz,
    finished_at  timestamptz,
    -- which step of which task it does a part of, and which part, from 0 (a page of these has a number below 0); null: it is nobody's child
    parent_id    uuid,
    parent_step  smallint,
    item         int,
    -- the step whose handler ended it early, with success; null: none has
    finished_by  smallint,
    -- what it is to be once it is undone, and what it is then; null: nobody wants it undone
    undo_as      tasker.task_state,
    -- which task it is a fork of (see 0035_forks.sql); null: of none
    forked_from  uuid
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX tasks_claim ON tasker.tasks (namespace_id, priority, claim_order) WHERE claim_order IS NOT NULL;
CREATE INDEX tasks_due ON tasker.tasks (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX tasks_look ON tasker.tasks (look_at) WHERE look_at IS NOT NULL;
CREATE UNIQUE INDEX tasks_key ON tasker.tasks (template_id, key) WHERE key IS NOT NULL;
CREATE INDEX tasks_tags ON tasker.tasks USING gin (tags jsonb_path_ops) WHERE tags IS NOT NULL;
CREATE INDEX tasks_forked ON tasker.tasks (forked_from) WHERE forked_from IS NOT NULL;
CREATE UNIQUE INDEX tasks_item ON tasker.tasks (parent_id, parent_step, item) WHERE parent_id IS NOT NULL;

-- A row exists from the moment a step is enqueued; before that the template version says all there is to say.
-- No foreign keys: checking one would lock the task's row for every step.
CREATE TABLE tasker.steps (
    task_id      uuid NOT NULL,
    step         smallint NOT NULL,
    state        tasker.step_state NOT NULL,
    -- attempts that ended in an error
    failures     smallint NOT NULL DEFAULT 0,
    -- in place of the template's, since a replay said so
    max_attempts smallint,
    -- leases of the current message that were handed back before the handler began
    released     smallint NOT NULL DEFAULT 0,
    -- how often a worker died while it ran this step as a suspect, and the fence under which it last did (see begin_suspect)
    kills        smallint NOT NULL DEFAULT 0,
    suspected    int,
    worker       int,
    msg_id       bigint,
    enqueued_at  timestamptz NOT NULL,
    started_at   timestamptz,
    finished_at  timestamptz,
    retry_at     timestamptz,
    -- until when it sleeps; infinity: it waits for a signal
    wakes_at     timestamptz,
    -- how many bytes the result has, as it was reported
    result_bytes int,
    result       jsonb,
    errors       jsonb,
    -- what became of the run that was under way when its task was cancelled (its result, or its error, is kept); null: none was
    after_cancel text CHECK (after_cancel IN ('complete', 'failed', 'unknown')),
    -- why it was skipped, where that was its template's decision and nobody's
    skipped_because text,
    -- what the handler says of its progress, and where its next attempt resumes
    progress     jsonb,
    checkpoint   jsonb,
    -- It was done by the task that this one is a fork of; null: it was not.
    taken_over   boolean,
    PRIMARY KEY (task_id, step)
) WITH (fillfactor = 60, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX steps_retry ON tasker.steps (retry_at) WHERE retry_at IS NOT NULL;
CREATE INDEX steps_wake ON tasker.steps (wakes_at) WHERE wakes_at IS NOT NULL;

-- Steps whose work is other tasks, from when they are ready (see 0026_children.sql).
CREATE TABLE tasker.fan_outs (
    task_id    uuid NOT NULL,
    step       smallint NOT NULL,
    -- the version that all its children have, how many there are to be, and how many at once; null: it is not decided, or as many as there are
    version_id int,
    total      int,
    at_once    int,
    -- how many may be dead without blocking its task
    tolerated  int NOT NULL DEFAULT 0,
    -- how many there are; of these, how many have ended, and are dead, as far as they were counted
    created    int NOT NULL DEFAULT 0,
    ended      int NOT NULL DEFAULT 0,
    dead       int NOT NULL DEFAULT 0,
    -- of a step that is given its elements page by page: how many pages there are (they end, and are dead, like its other tasks), how many of them were
    -- read, and of how many elements these are
    pages      int NOT NULL DEFAULT 0,
    pages_read int NOT NULL DEFAULT 0,
    known      int NOT NULL DEFAULT 0,
    -- how many of them were cancelled, or had no need to be
    cancelled  int NOT NULL DEFAULT 0,
    -- when there is something to do but to count
    look_at    timestamptz,
    -- of which task they are the children, where this one is its fork; null: its own
    children_of uuid,
    PRIMARY KEY (task_id, step)
) WITH (fillfactor = 60, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX fan_outs_look ON tasker.fan_outs (look_at) WHERE look_at IS NOT NULL;

-- What steps wait for that somebody says (see 0029_signals.sql); each stays, since it knows which signal its task has had.
CREATE TABLE tasker.waits (
    task_id      uuid NOT NULL,
    step         smallint NOT NULL,
    -- which of a handler's waits it is (see 0030_memories.sql); '': the step is nothing else
    place        text NOT NULL DEFAULT '',
    -- the signal's name, and by which key it may come beside the task's id (null: by none); no name: it was not looked at yet
    name         text,
    key          text,
    -- who is to send it, as far as that is known, and until when they should
    assignees    text[],
    due_at       timestamptz,
    -- since when it waits; null: not yet, or not any more
    since        timestamptz,
    times_out_at timestamptz,
    -- when there is something to do about it
    look_at      timestamptz,
    -- the one that ended it
    signal_id    bigint,
    PRIMARY KEY (task_id, step, place)
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX waits_look ON tasker.waits (look_at) WHERE look_at IS NOT NULL;
CREATE INDEX waits_open ON tasker.waits (since) WHERE since IS NOT NULL;
CREATE INDEX waits_key ON tasker.waits (key, name) WHERE key IS NOT NULL AND since IS NOT NULL;

-- Children whose dead letters were replayed, of steps that have no more than so many at once: they wait for room, in this order.
CREATE TABLE tasker.held_replays (
    parent_id   uuid NOT NULL,
    parent_step smallint NOT NULL,
    n           bigint GENERATED ALWAYS AS IDENTITY,
    task_id     uuid NOT NULL UNIQUE,
    -- which of its steps, and when they are due
    steps       smallint[] NOT NULL,
    due_at      timestamptz NOT NULL,
    PRIMARY KEY (parent_id, parent_step, n)
);

-- Children that have ended or died, or live again, and are not counted yet: so many of that step. Whoever reports them waits for nobody.
CREATE TABLE tasker.child_ends (
    task_id uuid NOT NULL,
    step    smallint NOT NULL,
    ended   int NOT NULL,
    dead    int NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);

-- Children of these steps, as often as each is named, have ended, or are dead.
CREATE FUNCTION tasker.note_children(p_parents uuid[], p_steps smallint[], p_ended int, p_dead int) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO tasker.child_ends (task_id, step, ended, dead)
    SELECT c.task, c.step, count(*) * p_ended, count(*) * p_dead FROM unnest(p_parents, p_steps) AS c(task, step) WHERE c.task IS NOT NULL GROUP BY c.task, c.step;
    IF FOUND THEN
        PERFORM tasker.notify('tasker_children', '');
    END IF;
END
$$;

-- Whether more children of a step that waits for them are dead than it tolerates; or the page of which it is to learn what there is to do.
CREATE FUNCTION tasker.has_too_many_dead(p_task uuid) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN EXISTS (
        SELECT FROM tasker.fan_outs f JOIN tasker.steps s ON s.task_id = f.task_id AND s.step = f.step AND s.state = 'waiting'
        WHERE f.task_id = p_task AND (f.dead > f.tolerated OR f.dead > 0 AND f.pages > f.pages_read AND EXISTS (
            SELECT FROM tasker.tasks c
            WHERE c.parent_id = p_task AND c.parent_step = f.step AND c.item = -f.pages AND c.state IN ('blocked', 'failed', 'cancelled'))));
END
$$;

-- Has somebody look at what is to be done about the children of these steps, of those that have any.
CREATE FUNCTION tasker.look_at_children(p_tasks uuid[], p_steps smallint[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    UPDATE tasker.fan_outs f SET look_at = clock_timestamp()
    WHERE f.ctid = ANY (ARRAY(
        SELECT h.place FROM unnest(p_tasks, p_steps) AS p(task, step)
        CROSS JOIN LATERAL (SELECT ctid AS place FROM tasker.fan_outs WHERE task_id = p.task AND step = p.step OFFSET 0) AS h));
    IF FOUND THEN
        PERFORM tasker.notify('tasker_children', '');
    END IF;
END
$$;

-- What may be large is compressed by lz4, where PostgreSQL is built with it: several times as fast as its own.
DO $$
BEGIN
    ALTER TABLE tasker.tasks ALTER COLUMN input SET COMPRESSION lz4;
    ALTER TABLE tasker.steps ALTER COLUMN result SET COMPRESSION lz4, ALTER COLUMN checkpoint SET COMPRESSION lz4;
EXCEPTION WHEN feature_not_supported THEN
    NULL;
END
$$;

-- Which shard this database is: 0 to 4095, the default one is 0. tasker.become_shard replaces it, so that it costs nothing to know: plans have the number in
-- them, and are made again, as they would not be if it were called immutable.
CREATE FUNCTION tasker.shard() RETURNS int
LANGUAGE sql STABLE PARALLEL SAFE BEGIN ATOMIC SELECT 0; END;

-- Has the ids of tasks say from now on that they are in this shard. Errors: TK001 for a number that is none, or where there are tasks already whose ids say
-- something else.
CREATE FUNCTION tasker.become_shard(p_number int) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_letters text;
BEGIN
    IF p_number IS NULL OR p_number NOT BETWEEN 0 AND 4095 THEN
        RAISE EXCEPTION 'a shard has a number from 0 to 4095, not %', p_number USING ERRCODE = 'TK001';
    END IF;
    IF p_number = tasker.shard() THEN
        RETURN;
    END IF;
    -- Whoever creates a task meanwhile would have an id of before.
    LOCK TABLE tasker.tasks IN SHARE MODE;
    IF EXISTS (SELECT FROM tasker.tasks) THEN
        RAISE EXCEPTION 'this database has tasks whose ids say that it is shard %', tasker.shard() USING ERRCODE = 'TK001';
    END IF;
    EXECUTE format('CREATE OR REPLACE FUNCTION tasker.shard() RETURNS int LANGUAGE sql STABLE PARALLEL SAFE BEGIN ATOMIC SELECT %s; END', p_number);
    EXECUTE format('ALTER TABLE tasker.bulk_actions ALTER COLUMN id RESTART WITH %s', p_number * 1000000000000 + 1);
    FOR v_letters IN SELECT pgmq.format_table_name(n.queue || '_dlq', 'q') FROM tasker.namespaces n LOOP
        EXECUTE format('ALTER TABLE pgmq.%I ALTER COLUMN msg_id RESTART WITH %s', v_letters, p_number * 1000000000000 + 1);
    END LOOP;
END
$$;

-- RFC 9562 UUID version 7: 48 bits of Unix milliseconds, the version; in the 12 bits of rand_a the shard, and 62 random bits.
CREATE FUNCTION tasker.uuidv7() RETURNS uuid
LANGUAGE sql VOLATILE PARALLEL SAFE BEGIN ATOMIC
    SELECT encode(overlay(uuid_send(gen_random_uuid())
        PLACING substring(int8send((extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3) || int2send((28672 + tasker.shard())::smallint)
        FROM 1 FOR 8), 'hex')::uuid;
END;

CREATE FUNCTION tasker.priority_number(p_name text) RETURNS smallint
LANGUAGE sql IMMUTABLE BEGIN ATOMIC
    SELECT (CASE p_name WHEN 'low' THEN 1 WHEN 'normal' THEN 2 WHEN 'high' THEN 3 WHEN 'urgent' THEN 4 END)::smallint;
END;

-- How many bytes an input may have, as text.
CREATE FUNCTION tasker.max_payload() RETURNS int
LANGUAGE sql IMMUTABLE BEGIN ATOMIC SELECT 1048576; END;

-- What this has too much of, if anything: bytes, or digits in a number. Measured as text, since a number of a few bytes may have 131,072 digits.
CREATE FUNCTION tasker.excess(p_json jsonb) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_text text := p_json;
BEGIN
    RETURN CASE
        WHEN octet_length(v_text) > tasker.max_payload() THEN 'more than ' || tasker.max_payload() || ' bytes'
        -- The pattern first, which may be deceived but is quick.
        WHEN v_text ~ '([0-9]{250}){2}' AND EXISTS (
            SELECT FROM jsonb_path_query(p_json, '$.** ? (@.type() == "number")') AS n(number) WHERE length(n.number::text) > 1000)
        THEN 'a number of more than 1000 digits' END;
END
$$;

-- How long a waiting task needs to gain one priority.
CREATE FUNCTION tasker.aging() RETURNS interval
LANGUAGE sql IMMUTABLE BEGIN ATOMIC SELECT interval '60 seconds'; END;

-- The shortest of a template's limits on single states; null when it has none.
CREATE FUNCTION tasker.shortest_limit(p_version tasker.template_versions) RETURNS interval
LANGUAGE sql IMMUTABLE BEGIN ATOMIC
    SELECT least(p_version.pending_limit, p_version.enqueued_limit, p_version.in_progress_limit);
END;

-- The version that p_template ('name' or 'namespace/name') means: p_version, or the current one.
-- Errors: TK002 when there is none, TK003 when the bare name is in several namespaces.
CREATE FUNCTION tasker.find_template(p_template text, p_version text) RETURNS tasker.template_versions
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_ids   int[];
    v_found tasker.template_versions;
BEGIN
    -- Each by a key of its own: there may be thousands of templates, and of one ten thousand versions.
    v_ids := ARRAY(
        SELECT v.id FROM (SELECT * FROM tasker.templates WHERE name = substr(p_template, strpos(p_template, '/') + 1) OFFSET 0) AS t
        CROSS JOIN LATERAL (SELECT name FROM tasker.namespaces WHERE id = t.namespace_id OFFSET 0) AS n
        CROSS JOIN LATERAL (
            SELECT t.current_version_id AS id WHERE p_version IS NULL AND t.current_version_id IS NOT NULL
            UNION ALL
            SELECT tv.id FROM tasker.template_versions tv WHERE tv.template_id = t.id AND tv.version = p_version) AS v
        WHERE p_template IN (t.name, n.name || '/' || t.name));
    IF cardinality(v_ids) > 1 THEN
        RAISE EXCEPTION 'template % exists in several namespaces', p_template
            USING ERRCODE = 'TK003', HINT = 'name it as namespace/name';
    ELSIF cardinality(v_ids) = 0 THEN
        RAISE EXCEPTION 'no template %', p_template || coalesce(' version ' || p_version, '')
            USING ERRCODE = 'TK002', HINT = 'register it first: tasker template register FILE, or start a worker that defines it';
    END IF;
    SELECT tv.* INTO v_found FROM tasker.template_versions tv WHERE tv.id = v_ids[1];
    RETURN v_found;
END
$$;

-- Whether this is what tasks.trace may be: strings, of no more than 1 kB altogether (W3C wants 512 bytes of tracestate to be passed on).
CREATE FUNCTION tasker.is_trace(p_trace jsonb) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN jsonb_typeof(p_trace) = 'object' AND octet_length(p_trace::text) <= 1024
       AND NOT EXISTS (SELECT FROM jsonb_each(p_trace) AS e(key, value) WHERE jsonb_typeof(e.value) <> 'string');
END
$$;

-- Whether spans of this trace are wanted: the last bit of its flags (W3C Trace Context, 3.2.2.5).
CREATE FUNCTION tasker.is_sampled(p_trace jsonb) RETURNS boolean
LANGUAGE sql IMMUTABLE BEGIN ATOMIC SELECT right(p_trace ->> 'traceparent', 1) IN ('1', '3', '5', '7', '9', 'b', 'd', 'f'); END;

-- The tags of a task: those that its template finds in the input (tags: {name: path}), and above them p_tags; all as text. Null: it has none.
CREATE FUNCTION tasker.tags_of(p_definition jsonb, p_input jsonb, p_tags jsonb) RETURNS jsonb
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN (
        SELECT jsonb_object_agg(f.name, f.value) FROM (
            SELECT e.name, jsonb_path_query_first(jsonb_build_object('input', p_input), e.path::jsonpath, '{}', true) #>> '{}' AS value
            FROM jsonb_each_text(coalesce(p_definition -> 'tags', '{}')) AS e(name, path) WHERE NOT coalesce(p_tags ? e.name, false)
            UNION ALL SELECT e.name, e.value FROM jsonb_each_text(coalesce(p_tags, '{}')) AS e(name, value)) AS f
        WHERE length(f.value) BETWEEN 1 AND 200);
END
$$;

-- Whether this is what tasks.tags may be: a flat object of at most 20 names of 1 to 50 characters, each with a text of 1 to 200, or a number, or a boolean.
CREATE FUNCTION tasker.are_tags(p_tags jsonb) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN jsonb_typeof(p_tags) = 'object' AND (
        SELECT count(*) <= 20 AND coalesce(bool_and(length(e.key) BETWEEN 1 AND 50 AND jsonb_typeof(e.value) IN ('string', 'number', 'boolean')
            AND length(e.value #>> '{}') BETWEEN 1 AND 200), true)
        FROM jsonb_each(p_tags) AS e(key, value));
END
$$;

-- Accepts tasks, in the caller's transaction: they exist, and start, if and only if it commits.
-- p_traces (may be null, as may each): the trace that each is part of.
-- p_run_ats (may be null, as may each): when each may start; until then it waits. Its deadline and its limits count from there.
-- p_keys (may be null, as may each key): a task of this template that already has the key is returned instead of a new one.
-- p_priorities: low, normal, high, urgent; null means the template's.
-- p_tags (may be null, as may each): by which they can be found; above those that their template finds in the input.
-- p_checked: the digest of the version that the inputs were checked against, if the caller has only remembered it.
-- p_uniques (may be null, as may each): in place of the template's rule, of which tasks there is one at a time (see 0033_unique.sql). Another one that
-- is there may be returned instead of a new one.
-- Errors: TK002, TK003 (see find_template), TK004 bad argument, TK005 the version is another by now than was checked, TK006 an input is too large,
-- TK007 (see throttle), TK010 (see settle_uniques), TK011 (see refuse_moved). input_schema is enforced by the libraries and the CLI, not here.
-- Locks: where tasks are unique, those of settle_uniques; then nothing but its own rows; keys are inserted in order, so that batches that share keys
-- cannot deadlock.
CREATE FUNCTION tasker.create_tasks(
    p_template text, p_inputs jsonb[], p_keys text[] DEFAULT NULL, p_priorities text[] DEFAULT NULL,
    p_version text DEFAULT NULL, p_traces jsonb[] DEFAULT NULL, p_run_ats timestamptz[] DEFAULT NULL,
    p_checked text DEFAULT NULL, p_tags jsonb[] DEFAULT NULL, p_uniques jsonb[] DEFAULT NULL
) RETURNS TABLE (ordinal int, id uuid, created boolean)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    v_version   tasker.template_versions := tasker.find_template(p_template, p_version);
    v_namespace tasker.namespaces;
    v_new       uuid[] := ARRAY(SELECT tasker.uuidv7() FROM generate_series(1, cardinality(p_inputs)));
    v_instead   uuid[];
    v_bad       text;
BEGIN
    IF p_checked <> v_version.digest THEN
        RAISE EXCEPTION 'template % has another version by now', p_template USING ERRCODE = 'TK005';
    END IF;
    IF cardinality(p_inputs) <> ANY (ARRAY[cardinality(p_keys), cardinality(p_priorities), cardinality(p_traces), cardinality(p_run_ats), cardinality(p_tags),
                                        cardinality(p_uniques)]) THEN
        v_bad := 'keys, priorities, traces, times, tags and rules must be as many as the inputs';
    ELSE
        SELECT CASE
            WHEN jsonb_typeof(w.input) IS DISTINCT FROM 'object' THEN 'input ' || w.n || ' is not a JSON object'
            WHEN w.key = '' OR length(w.key) > 255 THEN 'key ' || w.n || ' must have 1 to 255 characters'
            WHEN w.priority IS NOT NULL AND tasker.priority_number(w.priority) IS NULL
            THEN 'unknown priority ' || quote_literal(w.priority) || ': use low, normal, high or urgent'
            WHEN w.trace IS NOT NULL AND NOT tasker.is_trace(w.trace) THEN 'trace ' || w.n || ' is not a small object of strings'
            WHEN NOT isfinite(w.run_at) THEN 'time ' || w.n || ' never comes'
            WHEN w.tags IS NOT NULL AND NOT tasker.are_tags(w.tags)
            THEN 'the tags of task ' || w.n || ' are no flat object of at most 20 names, of 50 characters, with values of 1 to 200'
            WHEN w.rule IS NOT NULL AND tasker.unique_problem(w.rule) IS NOT NULL THEN 'unique of task ' || w.n || ': ' || tasker.unique_problem(w.rule)
        END INTO v_bad
        FROM unnest(p_inputs, p_keys, p_priorities, p_traces, p_run_ats, p_tags, p_uniques)
            WITH ORDINALITY AS w(input, key, priority, trace, run_at, tags, rule, n)
        ORDER BY 1 NULLS LAST LIMIT 1;
    END IF;
    IF v_bad IS NOT NULL THEN
        RAISE EXCEPTION '%', v_bad USING ERRCODE = 'TK004';
    END IF;
    -- Most are so small that there can be nothing wrong with them.
    SELECT tasker.excess(w.input) INTO v_bad FROM unnest(p_inputs) AS w(input) WHERE octet_length(w.input::text) > 1000
    ORDER BY 1 NULLS LAST LIMIT 1;
    IF v_bad IS NOT NULL THEN
        RAISE EXCEPTION 'an input has %', v_bad USING ERRCODE = 'TK006', HINT = 'keep it elsewhere, and pass where';
    END IF;
    SELECT n.* INTO v_namespace
    FROM tasker.templates t JOIN tasker.namespaces n ON n.id = t.namespace_id WHERE t.id = v_version.template_id;
    IF v_namespace.lives_in <> tasker.shard() THEN
        PERFORM tasker.refuse_moved(v_namespace.name);
    END IF;
    IF v_namespace.pressure = 'critical' AND v_namespace.throttle_new_tasks <> 'hold' THEN
        PERFORM tasker.throttle(v_namespace);
    END IF;
    IF v_version.definition ? 'unique' OR p_uniques IS NOT NULL THEN
        v_instead := tasker.settle_uniques(v_version, v_new, p_inputs, p_keys, p_priorities, p_run_ats, p_tags, ARRAY(
            SELECT coalesce(p_uniques[n], v_version.definition -> 'unique') FROM generate_series(1, cardinality(p_inputs)) AS g(n) ORDER BY n));
    END IF;
    IF v_namespace.also_in IS NOT NULL AND p_keys IS NOT NULL THEN
        v_instead := ARRAY(SELECT coalesce(m.task, v_instead[m.n]) FROM unnest(tasker.find_moved_keys(v_version.template_id, p_keys)) WITH ORDINALITY AS m(task, n) ORDER BY m.n);
    END IF;

    INSERT INTO tasker.tasks (id, template_id, version_id, namespace_id, priority, state, claim_order, input, key, tags, trace, deadline_at,
                              look_at, created_at, run_at, due_at)
    SELECT w.id, v_version.template_id, v_version.id, v_namespace.id, w.priority, CASE WHEN w.due THEN 'pending' ELSE 'waiting' END::tasker.task_state,
           CASE WHEN w.due THEN clock_timestamp() - w.priority * tasker.aging() END, w.input, w.key,
           CASE WHEN w.tags IS NOT NULL OR v_version.definition ? 'tags' THEN tasker.tags_of(v_version.definition, w.input, w.tags) END,
           w.trace, w.begins + v_version.deadline,
           w.begins + least(v_version.deadline, tasker.shortest_limit(v_version)), now(), w.run_at, CASE WHEN NOT w.due THEN w.run_at END
    FROM (SELECT u.id, u.input, u.key, u.tags, u.trace, u.run_at, u.n, coalesce(tasker.priority_number(u.priority), v_version.priority) AS priority,
                 greatest(u.run_at, now()) AS begins, coalesce(u.run_at <= now(), true) AS due
          FROM unnest(v_new, p_inputs, p_keys, p_priorities, p_traces, p_run_ats, p_tags)
              WITH ORDINALITY AS u(id, input, key, priority, trace, run_at, tags, n)) AS w
    WHERE v_instead[w.n] IS NULL
    ORDER BY w.key COLLATE "C", w.n
    ON CONFLICT (template_id, key) WHERE key IS NOT NULL DO NOTHING;
    PERFORM tasker.wake_namespaces(ARRAY[v_namespace.id]);
    PERFORM tasker.call('tasker_tasks', v_namespace.name, cardinality(p_inputs));
    IF EXISTS (SELECT FROM unnest(p_run_ats) AS r(run_at) WHERE r.run_at > now()) THEN
        PERFORM tasker.notify('tasker_due', '');
    END IF;

    -- A statement of its own: it sees what a concurrent caller committed while the insert waited for it.
    RETURN QUERY
    SELECT w.n::int, coalesce(v_instead[w.n], t.id, w.id), v_instead[w.n] IS NULL AND coalesce(t.id = w.id, true)
    FROM unnest(v_new, p_keys) WITH ORDINALITY AS w(id, key, n)
    LEFT JOIN tasker.tasks t ON t.template_id = v_version.template_id AND t.key = w.key
    ORDER BY w.n;
END
$$;

-- One task, for callers that speak SQL: SELECT tasker.create_task('order_fulfillment', '{"order_id": 1}');
CREATE FUNCTION tasker.create_task(
    p_template text, p_input jsonb, p_priority text DEFAULT NULL, p_key text DEFAULT NULL, p_version text DEFAULT NULL,
    p_trace jsonb DEFAULT NULL, p_run_at timestamptz DEFAULT NULL, p_tags jsonb DEFAULT NULL, p_unique jsonb DEFAULT NULL
) RETURNS uuid
LANGUAGE sql BEGIN ATOMIC
    SELECT id FROM tasker.create_tasks(p_template, ARRAY[p_input], ARRAY[p_key], ARRAY[p_priority], p_version, ARRAY[p_trace], ARRAY[p_run_at], NULL,
                                        ARRAY[p_tags], CASE WHEN p_unique IS NOT NULL THEN ARRAY[p_unique] END);
END;
