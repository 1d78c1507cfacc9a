-- Steps that a worker has no handler for: during a deployment, those of a template that only the next release knows. A worker that finds that it leased
-- one declines it: the step is left to others, no attempt is used, and this worker leases none of its kind any more. What no worker of its namespace
-- has a handler for is held back, outside of the queue, as if for a retry that is never due (retry_at is infinite), until one says that it has. A kind
-- is a step of a template's version.

-- Takes down that a worker has no handler for these steps, and hands their messages back.
-- Locks: the messages, then their steps.
CREATE FUNCTION tasker.decline_steps(p_queue text, p_worker int, p_ids bigint[], p_fences int[], p_tasks uuid[], p_steps smallint[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM tasker.check_reporter(p_queue, p_ids, p_tasks, p_steps);
    PERFORM tasker.note_unable(p_worker, array_agg(DISTINCT t.version_id), d.step)
    FROM unnest(p_tasks, p_steps) AS d(task, step) JOIN tasker.tasks t ON t.id = d.task GROUP BY d.step ORDER BY d.step;
    PERFORM tasker.release_steps(p_queue, p_ids, p_fences, p_tasks, p_steps);
END
$$;

-- The worker has no handler for this step of these versions.
CREATE FUNCTION tasker.note_unable(p_worker int, p_versions int[], p_step smallint) RETURNS void
LANGUAGE sql BEGIN ATOMIC
    INSERT INTO tasker.unable AS u (member, version_id, step)
    SELECT m.id, v.id, p_step FROM tasker.members m, unnest(p_versions) AS v(id) WHERE m.id = p_worker AND m.role = session_user ORDER BY v.id
    ON CONFLICT (version_id, step, member) DO UPDATE SET at = clock_timestamp();
END;

-- Leases the first p_limit visible messages of a queue that the worker is not known to have no handler for, as <queue>_lease does; looks at no more than
-- the first thousand.
CREATE FUNCTION tasker.lease_handled(
    p_queue text, p_mark bigint, p_limit int, p_lease interval, p_worker int, OUT leased tasker.leased_message[], OUT messages jsonb[])
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE format($f$
        WITH head AS MATERIALIZED (
            SELECT h.msg_id FROM (SELECT q.msg_id, q.message FROM pgmq.%1$I q WHERE q.msg_id >= $1 AND q.vt <= clock_timestamp()
                                  ORDER BY q.msg_id LIMIT 1000) AS h, tasker.message_identity(h.message) AS i
            WHERE NOT EXISTS (
                SELECT FROM tasker.unable u
                JOIN (SELECT version_id FROM tasker.tasks WHERE id = i.task AND state IN ('running', 'blocked', 'failed', 'undoing') OFFSET 0) AS t USING (version_id)
                WHERE u.step = i.step AND u.member = $4)
            ORDER BY h.msg_id LIMIT $2
        ), free AS MATERIALIZED (
            SELECT q.msg_id FROM pgmq.%1$I q WHERE q.msg_id = ANY (ARRAY(SELECT msg_id FROM head)) AND q.vt <= clock_timestamp()
            ORDER BY q.msg_id FOR UPDATE SKIP LOCKED
        ), leased AS (
            UPDATE pgmq.%1$I q
            SET vt = clock_timestamp() + $3, read_ct = q.read_ct + 1, last_read_at = clock_timestamp(), headers = jsonb_build_object('worker', $4)
            WHERE q.msg_id = ANY (ARRAY(SELECT msg_id FROM free))
            RETURNING q.msg_id, q.read_ct, q.message
        )
        SELECT array_agg(ROW(l.msg_id, l.read_ct, i.task, i.step)::tasker.leased_message), array_agg(l.message)
        FROM leased l, tasker.message_identity(l.message) AS i
    $f$, pgmq.format_table_name(p_queue, 'q')) INTO leased, messages USING p_mark, p_limit, p_lease, p_worker;
END
$$;

-- Whether a worker of this namespace lives that is not known to have no handler for this kind of step.
CREATE FUNCTION tasker.may_be_handled(p_namespace text, p_version int, p_step smallint) RETURNS boolean
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT EXISTS (
        SELECT FROM tasker.members m
        WHERE m.kind = 'worker' AND m.left_at IS NULL AND m.lease_until > clock_timestamp() AND p_namespace = ANY (m.namespaces)
          AND NOT EXISTS (SELECT FROM tasker.unable u WHERE u.member = m.id AND u.version_id = p_version AND u.step = p_step));
END;

-- Takes out of a queue what nobody has a handler for, among its first thousand visible messages, and holds the steps back: they would stand in the
-- way of others.
-- Locks: their tasks in id order, then the messages, then the steps, skipping what somebody else has: the next call takes those.
CREATE FUNCTION tasker.hold_unhandled(p_queue text, p_mark bigint, p_worker int) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_versions int[];
    v_kinds    smallint[];
    v_ids      bigint[];
    v_tasks    uuid[];
    v_steps    smallint[];
BEGIN
    SELECT array_agg(u.version_id), array_agg(u.step) INTO v_versions, v_kinds
    FROM tasker.unable u JOIN tasker.template_steps ts USING (version_id, step)
    WHERE u.member = p_worker AND ts.queue = p_queue AND NOT tasker.may_be_handled(ts.namespace, u.version_id, u.step);
    IF v_versions IS NULL THEN
        RETURN;
    END IF;
    EXECUTE format($f$
        WITH head AS MATERIALIZED (
            SELECT h.msg_id, i.task FROM (SELECT q.msg_id, q.message FROM pgmq.%1$I q WHERE q.msg_id >= $1 AND q.vt <= clock_timestamp()
                                          ORDER BY q.msg_id LIMIT 1000) AS h, tasker.message_identity(h.message) AS i
            CROSS JOIN LATERAL (SELECT version_id FROM tasker.tasks WHERE id = i.task OFFSET 0) AS t
            WHERE EXISTS (SELECT FROM unnest($2, $3) AS k(version_id, step) WHERE k.version_id = t.version_id AND k.step = i.step)
        ), task AS MATERIALIZED (
            SELECT t.id FROM tasker.tasks t WHERE t.id = ANY (ARRAY(SELECT task FROM head)) AND t.state IN ('running', 'blocked', 'failed', 'undoing')
            ORDER BY t.id FOR NO KEY UPDATE SKIP LOCKED
        ), free AS MATERIALIZED (
            SELECT q.msg_id FROM pgmq.%1$I q
            WHERE q.msg_id = ANY (ARRAY(SELECT h.msg_id FROM head h WHERE h.task IN (SELECT id FROM task))) AND q.vt <= clock_timestamp()
            ORDER BY q.msg_id FOR UPDATE SKIP LOCKED
        ), gone AS (
            DELETE FROM pgmq.%1$I q WHERE q.msg_id = ANY (ARRAY(SELECT msg_id FROM free)) RETURNING q.msg_id, q.message
        )
        SELECT array_agg(g.msg_id), array_agg(i.task), array_agg(i.step) FROM gone g, tasker.message_identity(g.message) AS i
    $f$, pgmq.format_table_name(p_queue, 'q')) INTO v_ids, v_tasks, v_steps USING p_mark, v_versions, v_kinds;
    IF v_ids IS NULL THEN
        RETURN;
    END IF;
    UPDATE tasker.steps s SET state = 'waiting_retry', retry_at = 'infinity', msg_id = NULL
    FROM unnest(v_ids, v_tasks, v_steps) AS h(id, task, step)
    WHERE s.task_id = h.task AND s.step = h.step AND s.msg_id = h.id AND s.state = 'enqueued';
    PERFORM tasker.release_permits(v_tasks, v_steps);
    INSERT INTO tasker.unhandled (version_id, step, queue)
    SELECT DISTINCT t.version_id, h.step, p_queue FROM unnest(v_tasks, v_steps) AS h(task, step) JOIN tasker.tasks t ON t.id = h.task
    ORDER BY 1, 2
    ON CONFLICT (version_id, step) DO UPDATE SET found = false;
END
$$;

-- What no worker has a handler for, of a worker's namespaces, and this one has not answered for within half a minute (code can be loaded later, too).
CREATE FUNCTION tasker.ask_unhandled(p_worker int)
RETURNS TABLE (version_id int, step smallint, handler text, transactional boolean, name text, template text, version text)
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT u.version_id, u.step, ts.handler, ts.transactional, ts.name, ts.template, ts.version
    FROM tasker.unhandled u JOIN tasker.template_steps ts USING (version_id, step)
    JOIN tasker.members m ON m.id = p_worker AND m.role = session_user AND ts.namespace = ANY (m.namespaces)
    WHERE NOT u.found AND NOT EXISTS (
        SELECT FROM tasker.unable a
        WHERE a.member = m.id AND a.version_id = u.version_id AND a.step = u.step AND a.at > clock_timestamp() - interval '30 s')
    ORDER BY u.version_id, u.step;
END;

-- What a worker answers: whether it has handlers for these kinds. Those that it has are held back no longer (free_held_steps, 0019_repair.sql). Returns whether it is still
-- known to have none for some other kind.
CREATE FUNCTION tasker.answer_unhandled(p_worker int, p_versions int[], p_steps smallint[], p_able boolean[]) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_queues text[] := ARRAY(SELECT w.name || '_queue' FROM tasker.members m, unnest(m.namespaces) AS w(name)
                             WHERE m.id = p_worker AND m.role = session_user);
BEGIN
    PERFORM tasker.note_unable(p_worker, ARRAY[a.version], a.step) FROM unnest(p_versions, p_steps, p_able) AS a(version, step, able) WHERE NOT a.able;
    DELETE FROM tasker.unable u USING unnest(p_versions, p_steps, p_able) AS a(version, step, able)
    WHERE a.able AND u.member = p_worker AND u.version_id = a.version AND u.step = a.step;
    UPDATE tasker.unhandled u SET found = true FROM unnest(p_versions, p_steps, p_able) AS a(version, step, able)
    WHERE a.able AND u.version_id = a.version AND u.step = a.step AND u.queue = ANY (v_queues);
    RETURN EXISTS (SELECT FROM tasker.unable u WHERE u.member = p_worker);
END
$$;
