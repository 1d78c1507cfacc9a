-- Permits: how a step gets those of the limits that concern it, when it starts with them, and how they come back.

-- Which of these steps a limit concerns; parallel.
CREATE FUNCTION tasker.are_limited(p_tasks uuid[], p_steps smallint[]) RETURNS boolean[]
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT array_agg(EXISTS (SELECT FROM tasker.limits_of(r.task, r.step)) ORDER BY r.n)
    FROM unnest(p_tasks, p_steps) WITH ORDINALITY AS r(task, step, n);
END;

-- Steps that are enqueued without a message seek the next permit they have not: they wait for it; and those that have all are sent. Those of a queue
-- that cannot be worked with are held back, without any.
-- Locks: the caller's, who has those of the steps.
CREATE FUNCTION tasker.seek_permits(p_tasks uuid[], p_steps smallint[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_queue    text;
    v_tasks    uuid[];
    v_steps    smallint[];
    v_messages jsonb[];
BEGIN
    IF EXISTS (SELECT FROM tasker.broken_queues) THEN
        WITH held AS (
            UPDATE tasker.steps s SET state = 'waiting_retry', retry_at = 'infinity'
            FROM unnest(p_tasks, p_steps) AS r(task, step)
            JOIN tasker.tasks t ON t.id = r.task
            JOIN tasker.template_steps ts ON ts.version_id = t.version_id AND ts.step = r.step
            JOIN tasker.broken_queues b ON b.queue = ts.queue
            WHERE s.task_id = r.task AND s.step = r.step AND s.state = 'enqueued' AND s.msg_id IS NULL
            RETURNING s.task_id, s.step
        )
        SELECT array_agg(h.task_id), array_agg(h.step) INTO v_tasks, v_steps FROM held h;
        PERFORM tasker.release_permits(v_tasks, v_steps) WHERE v_tasks IS NOT NULL;
        SELECT array_agg(r.task), array_agg(r.step) INTO p_tasks, p_steps FROM unnest(p_tasks, p_steps) AS r(task, step)
        WHERE NOT EXISTS (SELECT FROM unnest(v_tasks, v_steps) AS h(task, step) WHERE h.task = r.task AND h.step = r.step);
    END IF;
    FOR v_queue, v_tasks, v_steps, v_messages IN
        WITH sought AS MATERIALIZED (
            SELECT r.task, r.step, o.limit_id, o.key
            FROM unnest(p_tasks, p_steps) AS r(task, step)
            LEFT JOIN LATERAL (
                SELECT * FROM tasker.limits_of(r.task, r.step) AS l
                WHERE NOT EXISTS (SELECT FROM tasker.permits WHERE task_id = r.task AND step = r.step AND limit_id = l.limit_id OFFSET 0)
                ORDER BY l.n LIMIT 1) AS o ON true
            -- OFFSET 0: each row by its whole key, here and below, whatever the planner believes of the sizes of these tables.
            WHERE NOT EXISTS (SELECT FROM tasker.permits WHERE task_id = r.task AND step = r.step AND granted_at IS NULL OFFSET 0)
        ), waiting AS (
            INSERT INTO tasker.permits (task_id, step, limit_id, key, place)
            SELECT s.task, s.step, s.limit_id, s.key, coalesce(
                (SELECT min(p.place) FROM tasker.permits p WHERE p.task_id = s.task AND p.step = s.step),
                clock_timestamp() - t.priority * tasker.aging())
            FROM sought s
            CROSS JOIN LATERAL (SELECT * FROM tasker.tasks WHERE id = s.task OFFSET 0) AS t
            WHERE s.limit_id IS NOT NULL
            RETURNING limit_id, key
        ), told AS (
            INSERT INTO tasker.limit_events (limit_id, key, at) SELECT DISTINCT w.limit_id, w.key, clock_timestamp() FROM waiting w
        )
        SELECT ts.queue, array_agg(s.task), array_agg(s.step),
               array_agg(jsonb_build_object('task', s.task, 'step', s.step, 'attempt', st.failures + 1))
        FROM sought s
        CROSS JOIN LATERAL (SELECT * FROM tasker.tasks WHERE id = s.task OFFSET 0) AS t
        CROSS JOIN LATERAL (SELECT * FROM tasker.steps WHERE task_id = s.task AND step = s.step OFFSET 0) AS st
        CROSS JOIN LATERAL (SELECT * FROM tasker.template_steps WHERE version_id = t.version_id AND step = s.step OFFSET 0) AS ts
        WHERE s.limit_id IS NULL
        GROUP BY ts.queue ORDER BY ts.queue
    LOOP
        UPDATE tasker.steps s SET msg_id = m.msg_id
        FROM unnest(v_tasks, v_steps, ARRAY(SELECT pgmq.send_batch(v_queue, v_messages))) AS m(task, step, msg_id)
        WHERE s.task_id = m.task AND s.step = m.step;
        PERFORM tasker.wake_namespaces(ARRAY(SELECT n.id FROM tasker.namespaces n WHERE n.queue = v_queue));
        PERFORM tasker.call('tasker_steps', v_queue, cardinality(v_tasks));
    END LOOP;
    IF EXISTS (SELECT FROM tasker.limit_events e WHERE e.at <= clock_timestamp()) THEN
        PERFORM tasker.notify('tasker_due', '');
    END IF;
END
$$;

-- Steps that have ended, or are not to run now, give back what permits they have, and wait for none. p_failed: whether each attempt failed in a
-- way that tells of what it works with; null: it tells nothing.
-- Locks: the permits of steps that the caller has locked.
CREATE FUNCTION tasker.release_permits(p_tasks uuid[], p_steps smallint[], p_failed boolean[] DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    WITH released AS (
        DELETE FROM tasker.permits p
        USING unnest(p_tasks, p_steps, p_failed) AS r(task, step, failed)
        WHERE p.task_id = r.task AND p.step = r.step
        RETURNING p.limit_id, p.key, p.granted_at, r.failed
    )
    INSERT INTO tasker.limit_events (limit_id, key, at, granted_at, failed)
    SELECT r.limit_id, r.key, clock_timestamp(), r.granted_at, r.failed FROM released r;
    IF FOUND THEN
        PERFORM tasker.notify('tasker_due', '');
    END IF;
END
$$;

-- Steps that have just been leased start: under a limit with a rate each start counts. Returns those that may. The others, which a killed worker
-- has started before, or which would probably fail, wait for another permit; their messages are gone.
-- Locks: messages that the caller has just leased, their steps, their permits.
CREATE FUNCTION tasker.start_limited(p_queue text, p_leased tasker.leased_message[]) RETURNS tasker.leased_message[]
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_now     timestamptz := clock_timestamp();
    v_tasks   uuid[];
    v_steps   smallint[];
    v_ids     bigint[];
    v_limits  int[];
    v_keys    text[];
    v_refused boolean[];
    v_back    bigint[];
BEGIN
    SELECT array_agg(m.task), array_agg(m.step), array_agg(m.msg_id), array_agg(p.limit_id), array_agg(p.key),
           array_agg(l.rate IS NOT NULL AND p.started_at IS NOT NULL OR coalesce(b.state = 'open', false))
    INTO v_tasks, v_steps, v_ids, v_limits, v_keys, v_refused
    FROM unnest(p_leased) AS m
    JOIN tasker.permits p ON p.task_id = m.task AND p.step = m.step AND p.granted_at IS NOT NULL
    JOIN tasker.limits l ON l.id = p.limit_id AND NOT l.removed AND (l.rate IS NOT NULL OR l.failure_rate IS NOT NULL)
    LEFT JOIN tasker.breakers b ON b.limit_id = p.limit_id AND b.key = p.key
    -- Of a step that is not this message's there may be permits, too.
    WHERE EXISTS (SELECT FROM tasker.steps s WHERE s.task_id = m.task AND s.step = m.step AND s.msg_id = m.msg_id AND s.state = 'enqueued');
    IF v_tasks IS NULL THEN
        RETURN p_leased;
    END IF;
    v_back := ARRAY(SELECT DISTINCT r.id FROM unnest(v_ids, v_refused) AS r(id, refused) WHERE r.refused);

    EXECUTE format('DELETE FROM pgmq.%I WHERE msg_id = ANY ($1)', pgmq.format_table_name(p_queue, 'q')) USING v_back;
    UPDATE tasker.steps s SET msg_id = NULL
    FROM unnest(v_ids, v_tasks, v_steps) AS r(id, task, step)
    WHERE s.task_id = r.task AND s.step = r.step AND s.msg_id = r.id AND r.id = ANY (v_back);
    UPDATE tasker.permits p SET granted_at = NULL, started_at = NULL
    FROM unnest(v_tasks, v_steps, v_limits, v_refused) AS r(task, step, limit_id, refused)
    WHERE p.task_id = r.task AND p.step = r.step AND p.limit_id = r.limit_id AND r.refused;
    INSERT INTO tasker.limit_events (limit_id, key, at)
    SELECT DISTINCT r.limit_id, r.key, v_now FROM unnest(v_limits, v_keys, v_refused) AS r(limit_id, key, refused) WHERE r.refused;
    IF FOUND THEN
        PERFORM tasker.notify('tasker_due', '');
    END IF;

    WITH started AS (
        UPDATE tasker.permits p SET started_at = v_now
        FROM unnest(v_ids, v_tasks, v_steps, v_limits) AS r(id, task, step, limit_id)
        WHERE p.task_id = r.task AND p.step = r.step AND p.limit_id = r.limit_id AND r.id <> ALL (v_back)
        RETURNING p.limit_id, p.key
    )
    INSERT INTO tasker.limited_starts
    SELECT s.limit_id, s.key, v_now FROM started s JOIN tasker.limits l ON l.id = s.limit_id AND l.rate IS NOT NULL;
    -- What the step's row will say of when it started, too.
    EXECUTE format('UPDATE pgmq.%I SET last_read_at = $1 WHERE msg_id = ANY ($2) AND msg_id <> ALL ($3)', pgmq.format_table_name(p_queue, 'q'))
    USING v_now, v_ids, v_back;
    RETURN ARRAY(SELECT ROW(m.msg_id, m.fence, m.task, m.step)::tasker.leased_message
                 FROM unnest(p_leased) WITH ORDINALITY AS m(msg_id, fence, task, step, n) WHERE m.msg_id <> ALL (v_back) ORDER BY m.n);
END
$$;

-- Grants permits where something has happened, to those that have waited longest, weighed by priority; looks at no more than p_limit keys, and
-- grants each no more than that. One does it at a time, for all: so it can count. What is granted and has not started counts as if it started
-- now, so that no stretch of time has more starts than the rate, whenever they are leased.
-- Returns how many it granted, and when to look again (null: when something happens).
-- Locks: its turn; then steps that wait, skipping those that somebody else has; then their permits.
CREATE FUNCTION tasker.grant_permits(p_limit int, OUT granted int, OUT next_due timestamptz)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_limits int[];
    v_keys   text[];
    v_tasks  uuid[];
    v_steps  smallint[];
BEGIN
    granted := 0;
    IF NOT EXISTS (SELECT FROM tasker.limit_events) THEN
        RETURN;
    END IF;
    PERFORM tasker.await_turn('tasker.turn_permits');

    WITH due AS MATERIALIZED (
        SELECT DISTINCT h.limit_id, h.key
        FROM (SELECT e.limit_id, e.key FROM tasker.limit_events e WHERE e.at <= clock_timestamp() ORDER BY e.at LIMIT p_limit) AS h
    ), happened AS (
        DELETE FROM tasker.limit_events e USING due WHERE e.limit_id = due.limit_id AND e.key = due.key RETURNING e.*
    ), outcomes AS (
        SELECT tasker.note_outcomes(h.limit_id, h.key, array_agg(h.failed ORDER BY h.at), array_agg(h.granted_at ORDER BY h.at))
        FROM happened h JOIN tasker.limits l ON l.id = h.limit_id AND l.failure_rate IS NOT NULL GROUP BY h.limit_id, h.key
    )
    SELECT array_agg(due.limit_id), array_agg(due.key) INTO v_limits, v_keys FROM due, (SELECT count(*) FROM outcomes) AS noted;

    WITH first AS MATERIALIZED (
        SELECT w.* FROM unnest(v_limits, v_keys) AS d(limit_id, key)
        LEFT JOIN tasker.limits l ON l.id = d.limit_id
        CROSS JOIN LATERAL (
            SELECT p.task_id, p.step, p.limit_id FROM tasker.permits p
            WHERE p.limit_id = d.limit_id AND p.key = d.key AND p.granted_at IS NULL
            ORDER BY p.place LIMIT greatest(least(p_limit, tasker.free_permits(l, d.key)), 0)) AS w
    ), held AS MATERIALIZED (
        SELECT f.* FROM first f
        CROSS JOIN LATERAL (
            SELECT FROM tasker.steps s
            WHERE s.task_id = f.task_id AND s.step = f.step AND s.state = 'enqueued' AND s.msg_id IS NULL FOR UPDATE SKIP LOCKED) AS h
    ), given AS (
        UPDATE tasker.permits p SET granted_at = clock_timestamp()
        FROM held h WHERE p.task_id = h.task_id AND p.step = h.step AND p.limit_id = h.limit_id
        RETURNING p.task_id, p.step
    )
    SELECT array_agg(g.task_id), array_agg(g.step), count(*) INTO v_tasks, v_steps, granted FROM given g;
    IF granted > 0 THEN
        PERFORM tasker.seek_permits(v_tasks, v_steps);
    END IF;

    INSERT INTO tasker.limit_events (limit_id, key, at)
    SELECT l.id, d.key, again.at
    FROM unnest(v_limits, v_keys) AS d(limit_id, key) JOIN tasker.limits l ON l.id = d.limit_id
    CROSS JOIN LATERAL tasker.look_again(l, d.key) AS again(at)
    WHERE again.at IS NOT NULL AND EXISTS (
        SELECT FROM tasker.permits p WHERE p.limit_id = d.limit_id AND p.key = d.key AND p.granted_at IS NULL);
    SELECT e.at INTO next_due FROM tasker.limit_events e ORDER BY e.at LIMIT 1;
END
$$;

-- How many more permits of this key may be granted now; null: any number.
CREATE FUNCTION tasker.free_permits(p_limit tasker.limits, p_key text) RETURNS int
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT CASE WHEN NOT p_limit.removed THEN least(
        p_limit.concurrency - g.granted::int,
        p_limit.rate - g.unstarted::int - (
            SELECT count(*) FROM tasker.limited_starts s
            WHERE s.limit_id = p_limit.id AND s.key = p_key AND s.at > clock_timestamp() - p_limit.per)::int,
        tasker.free_probes(p_limit, p_key)) END
    FROM (SELECT count(*) AS granted, count(*) FILTER (WHERE p.started_at IS NULL) AS unstarted FROM tasker.permits p
          WHERE p.limit_id = p_limit.id AND p.key = p_key AND p.granted_at IS NOT NULL
            AND num_nonnulls(p_limit.concurrency, p_limit.rate) > 0) AS g;
END;

-- When this key may have a free permit without anything happening before: soon, if steps were skipped that somebody else had; when the first
-- start counts no more; when a breaker lets probes through. Null: never.
CREATE FUNCTION tasker.look_again(p_limit tasker.limits, p_key text) RETURNS timestamptz
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT CASE
        WHEN coalesce(tasker.free_permits(p_limit, p_key), 1) > 0 THEN clock_timestamp() + interval '50 ms'
        ELSE greatest(
            CASE WHEN p_limit.rate IS NOT NULL THEN coalesce(
                (SELECT min(s.at) FROM tasker.limited_starts s
                 WHERE s.limit_id = p_limit.id AND s.key = p_key AND s.at > clock_timestamp() - p_limit.per), clock_timestamp()) + p_limit.per END,
            tasker.probes_at(p_limit, p_key)) END;
END;

-- Mends permits of these tasks: releases those of steps that are not enqueued, and lets steps seek one that were not sent and wait for none.
-- Returns how many steps that were.
-- Locks: the steps that it mends, skipping those that somebody else has; then their permits.
CREATE FUNCTION tasker.reconcile_permits(p_tasks uuid[]) RETURNS int
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_over_tasks uuid[];
    v_over_steps smallint[];
    v_lost_tasks uuid[];
    v_lost_steps smallint[];
BEGIN
    SELECT array_agg(h.task_id) FILTER (WHERE h.state <> 'enqueued'), array_agg(h.step) FILTER (WHERE h.state <> 'enqueued'),
           array_agg(h.task_id) FILTER (WHERE h.state = 'enqueued'), array_agg(h.step) FILTER (WHERE h.state = 'enqueued')
    INTO v_over_tasks, v_over_steps, v_lost_tasks, v_lost_steps
    FROM (
        SELECT s.task_id, s.step, s.state FROM tasker.steps s
        WHERE s.task_id = ANY (p_tasks) AND CASE
            WHEN s.state <> 'enqueued' THEN EXISTS (SELECT FROM tasker.permits p WHERE p.task_id = s.task_id AND p.step = s.step)
            ELSE s.msg_id IS NULL AND NOT EXISTS (
                SELECT FROM tasker.permits p WHERE p.task_id = s.task_id AND p.step = s.step AND p.granted_at IS NULL) END
        FOR UPDATE OF s SKIP LOCKED) AS h;
    PERFORM tasker.release_permits(v_over_tasks, v_over_steps);
    PERFORM tasker.seek_permits(v_lost_tasks, v_lost_steps) WHERE v_lost_tasks IS NOT NULL;
    RETURN coalesce(cardinality(v_over_tasks), 0) + coalesce(cardinality(v_lost_tasks), 0);
END
$$;

-- What no longer counts, and limits that are gone and that nothing waits for.
CREATE FUNCTION tasker.forget_limits() RETURNS void
LANGUAGE sql BEGIN ATOMIC
    DELETE FROM tasker.limited_starts s
    WHERE NOT EXISTS (SELECT FROM tasker.limits l WHERE l.id = s.limit_id AND NOT l.removed AND s.at > clock_timestamp() - l.per);
    DELETE FROM tasker.limits l WHERE l.removed AND NOT EXISTS (SELECT FROM tasker.permits p WHERE p.limit_id = l.id);
    DELETE FROM tasker.breakers b WHERE NOT EXISTS (SELECT FROM tasker.limits l WHERE l.id = b.limit_id AND l.failure_rate IS NOT NULL)
        OR b.state = 'closed' AND b.until < clock_timestamp() - interval '1 day';
END;

-- The limits, of each how many permits are granted and how many steps wait, counted no further than p_count, and the breakers that are not closed. With
-- p_doubts also how many steps of templates it concerns, and whether its key is in the input of none of them among the newest thousand tasks.
CREATE FUNCTION tasker.list_limits(p_count int DEFAULT 1000000, p_doubts boolean DEFAULT true) RETURNS SETOF jsonb
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT jsonb_build_object(
        'namespace', l.namespace, 'name', l.name, 'handler', l.handler, 'template', l.template, 'key', array_to_string(l.key, '.'),
        'concurrency', l.concurrency, 'rate', l.rate, 'per_seconds', CASE WHEN l.rate IS NOT NULL THEN extract(epoch FROM l.per) END,
        'concerns', CASE WHEN p_doubts THEN (
            SELECT count(*) FROM tasker.template_steps ts JOIN tasker.templates tp ON tp.current_version_id = ts.version_id
            WHERE ts.namespace = l.namespace AND ts.kind = 'handler' AND coalesce(l.handler = ts.handler, true)
              AND coalesce(l.template = ts.template, true)) END,
        'key_is_missing', CASE WHEN p_doubts AND l.key IS NOT NULL THEN (
            SELECT count(*) > 0 AND count(t.input #>> l.key) = 0 FROM (SELECT * FROM tasker.tasks ORDER BY id DESC LIMIT 1000) AS t
            WHERE EXISTS (
                SELECT FROM tasker.template_steps ts WHERE ts.version_id = t.version_id AND ts.namespace = l.namespace
                AND coalesce(l.handler = ts.handler, true) AND coalesce(l.template = ts.template, true))) END,
        'granted', (SELECT count(*) FROM (SELECT FROM tasker.permits p WHERE p.limit_id = l.id AND p.granted_at IS NOT NULL LIMIT p_count) AS c),
        'waiting', (SELECT count(*) FROM (SELECT FROM tasker.permits p WHERE p.limit_id = l.id AND p.granted_at IS NULL LIMIT p_count) AS c),
        'breaker', CASE WHEN l.failure_rate IS NOT NULL THEN coalesce((
            SELECT jsonb_agg(jsonb_build_object('key', b.key, 'state', b.state, 'until', b.until) ORDER BY b.key)
            FROM tasker.breakers b WHERE b.limit_id = l.id AND b.state <> 'closed'), '[]') END)
    FROM tasker.limits l WHERE NOT l.removed ORDER BY l.namespace, l.name;
END;
