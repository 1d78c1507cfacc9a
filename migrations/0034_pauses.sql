-- Pauses: of a task, a template, a namespace or a handler. What runs ends, and what it returned counts; nothing new begins. A namespace's queue is not
-- leased from, and its pending tasks are not claimed. A step under one of the others is held back when it would be sent, or leased: outside of the queue, as
-- if for a retry that is never due (retry_at is infinite), until it is resumed. Time goes on: sleeps, deadlines, and what is waited for.

CREATE TABLE tasker.pauses (
    id          int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind        text NOT NULL CHECK (kind IN ('task', 'template', 'namespace', 'handler')),
    -- the task's id, namespace/template, namespace, or namespace/handler
    name        text NOT NULL,
    task_id     uuid,
    who         text NOT NULL,
    why         text,
    since       timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- It is over; its row goes once the steps that were held back under it are free.
    resumed_at  timestamptz
);
CREATE UNIQUE INDEX pauses_name ON tasker.pauses (kind, name) WHERE resumed_at IS NULL;
CREATE INDEX pauses_task ON tasker.pauses (task_id) WHERE task_id IS NOT NULL;
CREATE INDEX pauses_resumed ON tasker.pauses (id) WHERE resumed_at IS NOT NULL;

-- Steps that are held back, each under one of the pauses that concern it.
CREATE TABLE tasker.paused_steps (
    pause_id int NOT NULL,
    task_id  uuid NOT NULL,
    step     smallint NOT NULL,
    PRIMARY KEY (pause_id, task_id, step)
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);

-- Whether a namespace's queue is paused.
CREATE FUNCTION tasker.is_paused(p_namespace text) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN EXISTS (SELECT FROM tasker.pauses p WHERE p.kind = 'namespace' AND p.name = p_namespace AND p.resumed_at IS NULL);
END
$$;

-- The first pause of a task, or of its template, or of those that it is a step of; with p_step, also of that step's handler. Null: there is none.
CREATE FUNCTION tasker.pause_of(p_task uuid, p_step smallint DEFAULT NULL) RETURNS int
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN (
        WITH RECURSIVE family AS (
            SELECT t.id, t.template_id, t.parent_id FROM tasker.tasks t WHERE t.id = p_task
            UNION ALL SELECT t.id, t.template_id, t.parent_id FROM family f JOIN tasker.tasks t ON t.id = f.parent_id
        )
        SELECT min(c.id) FROM (
            SELECT p.id FROM family f CROSS JOIN LATERAL (SELECT id FROM tasker.pauses WHERE task_id = f.id AND resumed_at IS NULL OFFSET 0) AS p
            UNION ALL SELECT p.id FROM family f JOIN tasker.templates tp ON tp.id = f.template_id JOIN tasker.namespaces n ON n.id = tp.namespace_id
            CROSS JOIN LATERAL (
                SELECT id FROM tasker.pauses WHERE kind = 'template' AND name = n.name || '/' || tp.name AND resumed_at IS NULL OFFSET 0) AS p
            UNION ALL SELECT p.id FROM tasker.tasks t JOIN tasker.template_steps ts ON ts.version_id = t.version_id AND ts.step = p_step
            CROSS JOIN LATERAL (
                SELECT id FROM tasker.pauses
                WHERE kind = 'handler' AND name = ts.namespace || '/' || ts.handler AND resumed_at IS NULL OFFSET 0) AS p
            WHERE t.id = p_task) AS c);
END
$$;

-- The pause of each of these steps, null where it may begin. A pause that is returned does not go before the caller's transaction ends.
-- Locks: these pauses in order, shared.
CREATE FUNCTION tasker.pauses_of(p_tasks uuid[], p_steps smallint[]) RETURNS int[]
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_pauses int[] := ARRAY(
        SELECT tasker.pause_of(s.task, s.step) FROM unnest(p_tasks, p_steps) WITH ORDINALITY AS s(task, step, n) ORDER BY s.n);
    v_locked int[] := ARRAY(SELECT p.id FROM tasker.pauses p WHERE p.id = ANY (v_pauses) AND p.resumed_at IS NULL ORDER BY p.id FOR KEY SHARE);
BEGIN
    RETURN ARRAY(SELECT CASE WHEN p.id = ANY (v_locked) THEN p.id END FROM unnest(v_pauses) WITH ORDINALITY AS p(id, n) ORDER BY p.n);
END
$$;

-- Steps that are ready, of which those that are under a pause are held back. Returns the others.
-- Locks: those of pauses_of; then it creates rows.
CREATE FUNCTION tasker.hold_ready(INOUT p_tasks uuid[], INOUT p_steps smallint[], INOUT p_queues text[])
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_pauses int[] := tasker.pauses_of(p_tasks, p_steps);
BEGIN
    INSERT INTO tasker.steps (task_id, step, state, enqueued_at, retry_at)
    SELECT h.task, h.step, 'waiting_retry', clock_timestamp(), 'infinity' FROM unnest(p_tasks, p_steps, v_pauses) AS h(task, step, pause)
    WHERE h.pause IS NOT NULL;
    INSERT INTO tasker.paused_steps (pause_id, task_id, step)
    SELECT h.pause, h.task, h.step FROM unnest(p_tasks, p_steps, v_pauses) AS h(task, step, pause) WHERE h.pause IS NOT NULL;
    SELECT array_agg(h.task), array_agg(h.step), array_agg(h.queue) INTO p_tasks, p_steps, p_queues
    FROM unnest(p_tasks, p_steps, p_queues, v_pauses) AS h(task, step, queue, pause) WHERE h.pause IS NULL;
END
$$;

-- Messages that have just been leased, of which those whose steps are under a pause are taken out, and held back. Returns the others.
-- Locks: those of pauses_of; then, beside the messages, which the caller has, their steps: nobody who holds such a step waits for its message.
CREATE FUNCTION tasker.hold_leased(p_queue text, p_leased tasker.leased_message[]) RETURNS tasker.leased_message[]
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_pauses int[] := tasker.pauses_of(ARRAY(SELECT m.task FROM unnest(p_leased) AS m), ARRAY(SELECT m.step FROM unnest(p_leased) AS m));
    v_tasks  uuid[];
    v_steps  smallint[];
    v_held   bigint[];
BEGIN
    WITH held AS (
        UPDATE tasker.steps s SET state = 'waiting_retry', retry_at = 'infinity', msg_id = NULL
        FROM (SELECT m.msg_id, h.place, v_pauses[m.n] AS pause FROM unnest(p_leased) WITH ORDINALITY AS m(msg_id, fence, task, step, n)
              CROSS JOIN LATERAL (SELECT ctid AS place FROM tasker.steps WHERE task_id = m.task AND step = m.step AND msg_id = m.msg_id OFFSET 0) AS h
              WHERE v_pauses[m.n] IS NOT NULL) AS l
        WHERE s.ctid = l.place AND s.state = 'enqueued'
        RETURNING l.msg_id, l.pause, s.task_id, s.step
    ), noted AS (
        INSERT INTO tasker.paused_steps (pause_id, task_id, step) SELECT h.pause, h.task_id, h.step FROM held h ON CONFLICT DO NOTHING
    )
    SELECT array_agg(h.msg_id), array_agg(h.task_id), array_agg(h.step) INTO v_held, v_tasks, v_steps FROM held h;
    IF v_held IS NULL THEN
        RETURN p_leased;
    END IF;
    EXECUTE format('DELETE FROM pgmq.%I WHERE msg_id = ANY ($1)', pgmq.format_table_name(p_queue, 'q')) USING v_held;
    PERFORM tasker.release_permits(v_tasks, v_steps);
    RETURN ARRAY(SELECT ROW(m.msg_id, m.fence, m.task, m.step)::tasker.leased_message FROM unnest(p_leased) AS m WHERE m.msg_id <> ALL (v_held));
END
$$;

-- Frees steps that were held back under pauses that are over, p_limit of each at most: their retry is due now. The last takes its pause along.
-- Locks: these pauses, skipping those that somebody has; then the steps.
CREATE FUNCTION tasker.free_resumed(p_limit int) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_pause int;
    v_freed int;
BEGIN
    FOR v_pause IN SELECT p.id FROM tasker.pauses p WHERE p.resumed_at IS NOT NULL ORDER BY p.id FOR UPDATE SKIP LOCKED LOOP
        WITH freed AS (
            DELETE FROM tasker.paused_steps h
            WHERE h.ctid = ANY (ARRAY(SELECT ctid FROM tasker.paused_steps WHERE pause_id = v_pause ORDER BY task_id, step LIMIT p_limit))
            RETURNING h.task_id, h.step
        ), due AS (
            UPDATE tasker.steps s SET retry_at = clock_timestamp()
            FROM (SELECT l.place FROM freed f CROSS JOIN LATERAL (
                      SELECT ctid AS place FROM tasker.steps WHERE task_id = f.task_id AND step = f.step AND retry_at = 'infinity' OFFSET 0) AS l) AS l
            WHERE s.ctid = l.place AND s.state = 'waiting_retry'
        )
        SELECT count(*) INTO v_freed FROM freed;
        IF v_freed < p_limit THEN
            DELETE FROM tasker.pauses p WHERE p.id = v_pause;
        END IF;
        -- There may be more, of this one or of others.
        PERFORM tasker.notify('tasker_due', '') WHERE v_freed > 0;
    END LOOP;
END
$$;

-- Pauses a task (by its id), a template (namespace/name, or its name), a namespace, or a handler (namespace/name). Returns false where it was paused.
-- Errors: TK002 there is no such thing, TK003 (see find_template), TK004 bad argument.
CREATE FUNCTION tasker.pause(p_kind text, p_name text, p_who text, p_why text DEFAULT NULL) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_pause tasker.pauses := tasker.pausable(p_kind, p_name);
BEGIN
    INSERT INTO tasker.pauses (kind, name, task_id, who, why) SELECT v_pause.kind, v_pause.name, v_pause.task_id, p_who, p_why
    ON CONFLICT (kind, name) WHERE resumed_at IS NULL DO NOTHING;
    RETURN FOUND;
END
$$;

-- Ends a pause. Returns false where there is none. Errors: those of pause.
CREATE FUNCTION tasker.resume(p_kind text, p_name text) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_pause tasker.pauses := tasker.pausable(p_kind, p_name);
BEGIN
    UPDATE tasker.pauses p SET resumed_at = clock_timestamp() WHERE p.kind = v_pause.kind AND p.name = v_pause.name AND p.resumed_at IS NULL;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM tasker.notify('tasker_due', '');
    IF p_kind = 'namespace' THEN
        PERFORM tasker.notify('tasker_tasks', v_pause.name);
        PERFORM tasker.notify('tasker_steps', v_pause.name || '_queue');
    END IF;
    RETURN true;
END
$$;

-- The same of tasks, by their ids. Returns those that were not paused, or were.
CREATE FUNCTION tasker.pause_tasks(p_tasks uuid[], p_who text, p_why text) RETURNS SETOF uuid
LANGUAGE sql BEGIN ATOMIC
    INSERT INTO tasker.pauses (kind, name, task_id, who, why)
    SELECT 'task', t.id, t.id, p_who, p_why FROM tasker.tasks t WHERE t.id = ANY (p_tasks) AND t.finished_at IS NULL ORDER BY t.id
    ON CONFLICT (kind, name) WHERE resumed_at IS NULL DO NOTHING RETURNING task_id;
END;

CREATE FUNCTION tasker.resume_tasks(p_tasks uuid[]) RETURNS SETOF uuid
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN QUERY
    UPDATE tasker.pauses p SET resumed_at = clock_timestamp() WHERE p.task_id = ANY (p_tasks) AND p.resumed_at IS NULL RETURNING p.task_id;
    PERFORM tasker.notify('tasker_due', '');
END
$$;

-- What can be paused by that name, as its pause has it.
CREATE FUNCTION tasker.pausable(p_kind text, p_name text) RETURNS tasker.pauses
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_pause tasker.pauses;
BEGIN
    v_pause.kind := p_kind;
    CASE p_kind
        WHEN 'task' THEN
            SELECT t.id INTO v_pause.task_id FROM tasker.tasks t
            WHERE t.id = CASE WHEN p_name ~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' THEN p_name::uuid END;
            v_pause.name := v_pause.task_id;
        WHEN 'template' THEN
            SELECT n.name || '/' || t.name INTO v_pause.name
            FROM tasker.find_template(p_name, NULL) AS f JOIN tasker.templates t ON t.id = f.template_id JOIN tasker.namespaces n ON n.id = t.namespace_id;
        WHEN 'namespace' THEN
            SELECT n.name INTO v_pause.name FROM tasker.namespaces n WHERE n.name = p_name;
        WHEN 'handler' THEN
            SELECT p_name INTO v_pause.name FROM tasker.template_steps ts
            WHERE ts.namespace = split_part(p_name, '/', 1) AND ts.handler = substring(p_name FROM position('/' IN p_name) + 1) LIMIT 1;
        ELSE
            RAISE EXCEPTION 'unknown kind %: expected task, template, namespace or handler', coalesce(quote_literal(p_kind), 'null') USING ERRCODE = 'TK004';
    END CASE;
    IF v_pause.name IS NULL THEN
        RAISE EXCEPTION 'no % %', p_kind, coalesce(p_name, 'null')
            USING ERRCODE = 'TK002', HINT = CASE p_kind WHEN 'handler' THEN 'name it as namespace/handler' ELSE 'is it another database''s?' END;
    END IF;
    RETURN v_pause;
END
$$;

-- Ends the pauses of tasks that have ended. Locks: these pauses.
CREATE FUNCTION tasker.forget_pauses() RETURNS void
LANGUAGE sql BEGIN ATOMIC
    UPDATE tasker.pauses p SET resumed_at = clock_timestamp()
    WHERE p.task_id IS NOT NULL AND p.resumed_at IS NULL
      AND NOT EXISTS (SELECT FROM tasker.tasks t WHERE t.id = p.task_id AND t.finished_at IS NULL);
END;

-- The pauses that there are, with how many steps are held back under each, counted no further than a million; the oldest first.
CREATE FUNCTION tasker.list_pauses() RETURNS SETOF jsonb
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT jsonb_build_object('kind', p.kind, 'name', p.name, 'who', p.who, 'why', p.why, 'since', p.since, 'held', (
        SELECT count(*) FROM (SELECT FROM tasker.paused_steps h WHERE h.pause_id = p.id LIMIT 1000000) AS c))
    FROM tasker.pauses p WHERE p.resumed_at IS NULL ORDER BY p.id;
END;
