-- Permits: how a step gets those of the limits that concern it, when it starts with them, and how they come back.

-- The permits that these steps want, in the order of the steps (place: among these), and of each in the order in which it seeks them: those by key come first, so
-- that what waits for a key's turn takes nothing from others. The limits of each step of a version are looked up once.
-- n: 1 for the first that it seeks; seen_limit: see tasker.permits; counts: this permit is one of a number; starts: each start counts.
CREATE FUNCTION tasker.wanted_permits(p_tasks uuid[], p_steps smallint[])
RETURNS TABLE (place int, priority smallint, limit_id int, key text, n int, seen_limit int, counts boolean, starts boolean)
LANGUAGE sql STABLE BEGIN ATOMIC
    WITH asked AS MATERIALIZED (
        SELECT r.place, r.step, t.version_id, t.priority, t.input
        FROM unnest(p_tasks, p_steps) WITH ORDINALITY AS r(task, step, place)
        -- OFFSET 0: each row by its whole key, here and below, whatever the planner believes of the sizes of these tables.
        CROSS JOIN LATERAL (SELECT * FROM tasker.tasks WHERE id = r.task OFFSET 0) AS t
    ), kinds AS MATERIALIZED (
        SELECT k.version_id, k.step, l.id, l.key, l.concurrency, l.rate, row_number() OVER (ORDER BY l.key IS NULL, l.rate IS NOT NULL, l.id) AS n
        FROM (SELECT DISTINCT a.version_id, a.step FROM asked a) AS k
        CROSS JOIN LATERAL (SELECT * FROM tasker.template_steps WHERE version_id = k.version_id AND step = k.step OFFSET 0) AS ts
        JOIN tasker.limits l ON l.namespace = ts.namespace AND NOT l.removed
            AND coalesce(l.handler = ts.handler, true) AND coalesce(l.template IN (ts.template, split_part(ts.template, '.', 1)), true)
    )
    SELECT a.place::int, a.priority, k.id, CASE WHEN length(v.key) > 200 THEN md5(v.key) ELSE v.key END,
           (row_number() OVER of_step)::int, CASE WHEN lead(k.n) OVER of_step IS NULL THEN (SELECT max(id) FROM tasker.limits) END,
           num_nonnulls(k.concurrency, k.rate) > 0, k.rate IS NOT NULL
    FROM asked a JOIN kinds k ON k.version_id = a.version_id AND k.step = a.step
    CROSS JOIN LATERAL (SELECT CASE WHEN k.key IS NULL THEN '' ELSE a.input #>> k.key END AS key) AS v
    WHERE v.key IS NOT NULL
    WINDOW of_step AS (PARTITION BY a.place ORDER BY k.n)
    ORDER BY a.place, k.n;
END;

-- How many more permits of this key may be granted now (null: any number; a limit that is gone lets all go), whether steps wait for one, and when one may be
-- free without anything happening before: soon, if steps were skipped that somebody else had; when the first start counts no more; when a breaker lets
-- probes through. Null: never.
CREATE FUNCTION tasker.free_permits(p_limit int, p_key text) RETURNS TABLE (free int, waits boolean, again timestamptz)
LANGUAGE sql STABLE ROWS 1 BEGIN ATOMIC
    SELECT f.free, w.waits, CASE
        WHEN coalesce(f.free, 1) > 0 THEN clock_timestamp() + interval '50 ms'
        ELSE greatest(CASE WHEN l.rate IS NOT NULL THEN coalesce(s.first, clock_timestamp()) + l.per END, CASE WHEN b.state = 'open' THEN b.until END) END
    FROM (SELECT) AS one
    LEFT JOIN LATERAL (SELECT * FROM tasker.limits WHERE id = p_limit AND NOT removed OFFSET 0) AS l ON true
    LEFT JOIN LATERAL (SELECT * FROM tasker.breakers WHERE limit_id = l.id AND key = p_key AND l.failure_rate IS NOT NULL OFFSET 0) AS b ON true
    CROSS JOIN LATERAL (
        SELECT count(*)::int AS granted, count(*) FILTER (WHERE p.started_at IS NULL)::int AS unstarted,
               count(*) FILTER (WHERE p.granted_at >= b.since)::int AS probes
        FROM tasker.permits p
        WHERE (num_nonnulls(l.concurrency, l.rate) > 0 OR b.state = 'half_open') AND p.limit_id = p_limit AND p.key = p_key AND p.granted_at IS NOT NULL) AS g
    CROSS JOIN LATERAL (
        SELECT count(*)::int AS starts, min(s.at) AS first FROM tasker.limited_starts s
        WHERE l.rate IS NOT NULL AND s.limit_id = p_limit AND s.key = p_key AND s.at > (SELECT clock_timestamp()) - l.per) AS s
    CROSS JOIN LATERAL (SELECT least(
        l.concurrency - g.granted, l.rate - g.unstarted - s.starts,
        CASE b.state WHEN 'open' THEN 0 WHEN 'half_open' THEN l.probes - b.passed - g.probes END) AS free) AS f
    CROSS JOIN LATERAL (SELECT EXISTS (
        SELECT FROM tasker.permits p WHERE p.limit_id = p_limit AND p.key = p_key AND p.granted_at IS NULL) AS waits) AS w;
END;

-- Steps that become ready take the permits that they want, where all of these are free and nobody waits for them: where permits are counted only if this is the
-- caller's own transaction (p_own), which ends soon, and nobody else grants any at this moment. The others wait for the first that they want.
-- Returns which of them wait, parallel (null: none); and whether starts of others count, which start_limited is to know of.
-- Locks: the turn of grant_permits, which it does not wait for; then only rows it creates.
CREATE FUNCTION tasker.take_permits(p_tasks uuid[], p_steps smallint[], p_own boolean, OUT waits boolean[], OUT starts boolean)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_places     int[];
    v_priorities smallint[];
    v_limits     int[];
    v_keys       text[];
    v_ns         int[];
    v_seen       int[];
    v_counts     boolean;
    v_refused    int[];
    v_place      int;
    v_now        timestamptz := clock_timestamp();
BEGIN
    SELECT array_agg(w.place), array_agg(w.priority), array_agg(w.limit_id), array_agg(w.key), array_agg(w.n), array_agg(w.seen_limit),
           bool_or(w.counts), bool_or(w.starts)
    INTO v_places, v_priorities, v_limits, v_keys, v_ns, v_seen, v_counts, starts FROM tasker.wanted_permits(p_tasks, p_steps) AS w;
    IF v_places IS NULL THEN
        RETURN;
    END IF;
    p_own := p_own AND v_counts AND tasker.take_turn('tasker.turn_permits');

    SELECT array_agg(DISTINCT r.place) INTO v_refused
    FROM (SELECT u.limit_id, u.key, array_agg(u.place ORDER BY u.place) AS places
          FROM unnest(v_places, v_limits, v_keys) AS u(place, limit_id, key) GROUP BY u.limit_id, u.key) AS g
    CROSS JOIN LATERAL tasker.free_permits(g.limit_id, g.key) AS f
    CROSS JOIN LATERAL unnest(g.places[1 + CASE WHEN f.waits THEN 0 WHEN f.free IS NULL THEN cardinality(g.places) WHEN p_own THEN greatest(f.free, 0) ELSE 0 END :])
        AS r(place);
    waits := array_fill(false, ARRAY[cardinality(p_tasks)]);
    FOREACH v_place IN ARRAY coalesce(v_refused, '{}') LOOP
        waits[v_place] := true;
    END LOOP;

    INSERT INTO tasker.permits (task_id, step, limit_id, key, place, seen_limit, granted_at)
    SELECT p_tasks[u.place], p_steps[u.place], u.limit_id, u.key, v_now - u.priority * tasker.aging(), u.seen_limit, CASE WHEN NOT waits[u.place] THEN v_now END
    FROM unnest(v_places, v_priorities, v_limits, v_keys, v_ns, v_seen) AS u(place, priority, limit_id, key, n, seen_limit)
    WHERE u.n = 1 OR NOT waits[u.place];
    INSERT INTO tasker.limit_events (limit_id, key, at)
    SELECT DISTINCT u.limit_id, u.key, v_now
    FROM unnest(v_places, v_limits, v_keys, v_ns) AS u(place, limit_id, key, n) WHERE u.n = 1 AND waits[u.place];
    IF FOUND THEN
        PERFORM tasker.notify('tasker_due', '');
    END IF;
END
$$;

-- Sends steps that have all their permits; p_rows: where their rows are, which the caller has locked. Returns what p_taker has taken (see enqueue_steps): nothing
-- where starts are counted, since that happens at a lease (see start_limited).
-- Locks: only rows it creates.
CREATE FUNCTION tasker.send_permitted(p_queue text, p_tasks uuid[], p_steps smallint[], p_rows tid[], p_failures int[], p_taker tasker.taker)
RETURNS tasker.leased_message[]
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_room int := CASE WHEN p_queue = p_taker.queue AND p_taker.room > 0
                        AND NOT EXISTS (SELECT FROM tasker.limits l WHERE l.namespace = left(p_queue, -6) AND l.rate IS NOT NULL AND NOT l.removed)
                       THEN p_taker.room ELSE 0 END;
    v_ids  bigint[];
BEGIN
    EXECUTE format('SELECT tasker.%I($1, $2, $3, $4, $5)', p_queue || '_send') INTO v_ids
    USING ARRAY(SELECT jsonb_build_object('task', m.task, 'step', m.step, 'attempt', m.failures + 1)
                FROM unnest(p_tasks, p_steps, p_failures) WITH ORDINALITY AS m(task, step, failures, n) ORDER BY m.n),
          v_room, p_taker.worker, p_taker.lease, clock_timestamp();
    UPDATE tasker.steps s SET msg_id = m.msg_id FROM unnest(p_rows, v_ids) AS m(row, msg_id) WHERE s.ctid = m.row;
    IF v_room < cardinality(p_tasks) THEN
        PERFORM tasker.call('tasker_steps', p_queue, cardinality(p_tasks) - v_room);
    END IF;
    RETURN ARRAY(SELECT ROW(m.id, 1, m.task, m.step)::tasker.leased_message
                 FROM unnest(v_ids[1:v_room], p_tasks[1:v_room], p_steps[1:v_room]) AS m(id, task, step));
END
$$;

-- Steps that are enqueued without a message seek the next permit they have not: they wait for it; and those that have all are sent. Those of a queue that cannot be
-- worked with are held back, without any. Returns what p_taker has taken (see send_permitted).
-- Locks: the caller's, who has those of the steps.
CREATE FUNCTION tasker.seek_permits(p_tasks uuid[], p_steps smallint[], p_taker tasker.taker DEFAULT NULL) RETURNS tasker.leased_message[]
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_tasks    uuid[];
    v_steps    smallint[];
    v_sent     record;
    v_taken    tasker.leased_message[];
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
    IF EXISTS (SELECT FROM tasker.limits) THEN
        WITH sought AS MATERIALIZED (
            SELECT DISTINCT ON (w.place) w.* FROM tasker.wanted_permits(p_tasks, p_steps) AS w
            WHERE NOT EXISTS (
                SELECT FROM tasker.permits
                WHERE task_id = p_tasks[w.place] AND step = p_steps[w.place] AND (limit_id = w.limit_id OR granted_at IS NULL) OFFSET 0)
            ORDER BY w.place, w.n
        ), waiting AS (
            INSERT INTO tasker.permits (task_id, step, limit_id, key, seen_limit, place)
            SELECT p_tasks[s.place], p_steps[s.place], s.limit_id, s.key, s.seen_limit, coalesce(
                (SELECT min(p.place) FROM tasker.permits p WHERE p.task_id = p_tasks[s.place] AND p.step = p_steps[s.place]),
                clock_timestamp() - s.priority * tasker.aging())
            FROM sought s
            RETURNING limit_id, key
        )
        INSERT INTO tasker.limit_events (limit_id, key, at) SELECT DISTINCT w.limit_id, w.key, clock_timestamp() FROM waiting w;
    END IF;
    FOR v_sent IN
        SELECT ts.queue, array_agg(r.task) AS tasks, array_agg(r.step) AS steps, array_agg(st.row) AS rows, array_agg(st.failures) AS failures
        FROM unnest(p_tasks, p_steps) AS r(task, step)
        CROSS JOIN LATERAL (SELECT * FROM tasker.tasks WHERE id = r.task OFFSET 0) AS t
        CROSS JOIN LATERAL (SELECT ctid AS row, failures::int FROM tasker.steps WHERE task_id = r.task AND step = r.step OFFSET 0) AS st
        CROSS JOIN LATERAL (SELECT * FROM tasker.template_steps WHERE version_id = t.version_id AND step = r.step OFFSET 0) AS ts
        WHERE NOT EXISTS (SELECT FROM tasker.permits WHERE task_id = r.task AND step = r.step AND granted_at IS NULL OFFSET 0)
        GROUP BY ts.queue ORDER BY ts.queue
    LOOP
        v_taken := v_taken || tasker.send_permitted(v_sent.queue, v_sent.tasks, v_sent.steps, v_sent.rows, v_sent.failures, p_taker);
    END LOOP;
    IF EXISTS (SELECT FROM tasker.limit_events e WHERE e.at <= clock_timestamp()) THEN
        PERFORM tasker.notify('tasker_due', '');
    END IF;
    RETURN v_taken;
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
    INSERT INTO tasker.limit_events (limit_id, key, at, granted, failed)
    SELECT r.limit_id, r.key, clock_timestamp(), array_agg(r.granted_at), array_agg(r.failed) FROM released r GROUP BY r.limit_id, r.key;
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
    IF NOT EXISTS (SELECT FROM tasker.limits l WHERE l.rate IS NOT NULL AND NOT l.removed) AND NOT EXISTS (SELECT FROM tasker.breakers b WHERE b.state = 'open') THEN
        RETURN p_leased;
    END IF;
    SELECT array_agg(m.task), array_agg(m.step), array_agg(m.msg_id), array_agg(p.limit_id), array_agg(p.key),
           array_agg(l.rate IS NOT NULL AND p.started_at IS NOT NULL OR coalesce(b.state = 'open', false))
    INTO v_tasks, v_steps, v_ids, v_limits, v_keys, v_refused
    FROM unnest(p_leased) AS m
    JOIN tasker.permits p ON p.task_id = m.task AND p.step = m.step AND p.granted_at IS NOT NULL
    JOIN tasker.limits l ON l.id = p.limit_id AND NOT l.removed AND (l.rate IS NOT NULL OR l.failure_rate IS NOT NULL)
    LEFT JOIN tasker.breakers b ON b.limit_id = p.limit_id AND b.key = p.key
    -- Of a step that is not this message's there may be permits, too.
    WHERE (l.rate IS NOT NULL OR b.state = 'open') AND EXISTS (
        SELECT FROM tasker.steps s WHERE s.task_id = m.task AND s.step = m.step AND s.msg_id = m.msg_id AND s.state = 'enqueued');
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
-- Returns how many it granted, what p_taker has taken of these steps (see seek_permits), and when to look again (null: when something happens).
-- Locks: the caller's, who has the turn; then steps that wait, skipping those that somebody else has; then their permits.
CREATE FUNCTION tasker.grant_in_turn(p_limit int, p_taker tasker.taker, OUT granted int, OUT taken tasker.leased_message[], OUT next_due timestamptz)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_limits int[];
    v_keys   text[];
    v_free   int[];
    v_place  int;
    v_places int[];
    v_tasks  uuid[];
    v_steps  smallint[];
    v_more_tasks uuid[];
    v_more_steps smallint[];
    v_rows   tid[];
    v_failures int[];
    v_of     int[];
    v_sent   record;
    v_newest int := CASE WHEN NOT EXISTS (SELECT FROM tasker.broken_queues) THEN (SELECT max(l.id) FROM tasker.limits l) END;
BEGIN
    WITH due AS MATERIALIZED (
        SELECT DISTINCT h.limit_id, h.key
        FROM (SELECT e.limit_id, e.key FROM tasker.limit_events e WHERE e.at <= clock_timestamp() ORDER BY e.at LIMIT p_limit) AS h
    ), happened AS (
        DELETE FROM tasker.limit_events e USING due WHERE e.limit_id = due.limit_id AND e.key = due.key RETURNING e.*
    ), outcomes AS (
        SELECT tasker.note_outcomes(h.limit_id, h.key, array_agg(o.failed ORDER BY h.at), array_agg(o.granted ORDER BY h.at))
        FROM happened h JOIN tasker.limits l ON l.id = h.limit_id AND l.failure_rate IS NOT NULL
        LEFT JOIN LATERAL unnest(h.failed, h.granted) AS o(failed, granted) ON true GROUP BY h.limit_id, h.key
    )
    SELECT array_agg(due.limit_id), array_agg(due.key) INTO v_limits, v_keys FROM due, (SELECT count(*) FROM outcomes) AS noted;
    SELECT array_agg(f.free ORDER BY d.place) INTO v_free FROM unnest(v_limits, v_keys) WITH ORDINALITY AS d(limit_id, key, place)
    CROSS JOIN LATERAL tasker.free_permits(d.limit_id, d.key) AS f;

    WITH first AS MATERIALIZED (
        SELECT w.*, d.place::int FROM unnest(v_limits, v_keys, v_free) WITH ORDINALITY AS d(limit_id, key, free, place)
        CROSS JOIN LATERAL (
            SELECT p.task_id, p.step, p.limit_id FROM tasker.permits p
            WHERE p.limit_id = d.limit_id AND p.key = d.key AND p.granted_at IS NULL
            ORDER BY p.place LIMIT greatest(least(p_limit, d.free), 0)) AS w
    ), held AS MATERIALIZED (
        SELECT f.*, h.row, h.failures FROM first f
        CROSS JOIN LATERAL (
            SELECT s.ctid AS row, s.failures::int FROM tasker.steps s
            WHERE s.task_id = f.task_id AND s.step = f.step AND s.state = 'enqueued' AND s.msg_id IS NULL FOR UPDATE SKIP LOCKED) AS h
    ), given AS (
        UPDATE tasker.permits p SET granted_at = clock_timestamp()
        FROM held h WHERE p.task_id = h.task_id AND p.step = h.step AND p.limit_id = h.limit_id
        RETURNING p.task_id, p.step, p.limit_id, h.place, h.row, h.failures, coalesce(p.seen_limit >= v_newest, false) AS has_all
    )
    SELECT count(*), array_agg(g.place),
           array_agg(g.task_id) FILTER (WHERE NOT g.has_all), array_agg(g.step) FILTER (WHERE NOT g.has_all),
           array_agg(g.task_id) FILTER (WHERE g.has_all), array_agg(g.step) FILTER (WHERE g.has_all),
           array_agg(g.row) FILTER (WHERE g.has_all), array_agg(g.failures) FILTER (WHERE g.has_all), array_agg(g.limit_id) FILTER (WHERE g.has_all)
    INTO granted, v_places, v_more_tasks, v_more_steps, v_tasks, v_steps, v_rows, v_failures, v_of FROM given g;
    IF granted > 0 THEN
        IF v_more_tasks IS NOT NULL THEN
            taken := tasker.seek_permits(v_more_tasks, v_more_steps, p_taker);
        END IF;
        -- A limit's steps are all of one queue.
        p_taker.room := p_taker.room - coalesce(cardinality(taken), 0);
        FOR v_sent IN
            SELECT l.namespace || '_queue' AS queue, array_agg(g.task) AS tasks, array_agg(g.step) AS steps, array_agg(g.row) AS rows, array_agg(g.failures) AS failures
            FROM unnest(v_tasks, v_steps, v_rows, v_failures, v_of) AS g(task, step, row, failures, limit_id)
            CROSS JOIN LATERAL (SELECT * FROM tasker.limits WHERE id = g.limit_id OFFSET 0) AS l GROUP BY l.namespace ORDER BY l.namespace
        LOOP
            taken := taken || tasker.send_permitted(v_sent.queue, v_sent.tasks, v_sent.steps, v_sent.rows, v_sent.failures, p_taker);
        END LOOP;
        FOREACH v_place IN ARRAY v_places LOOP
            v_free[v_place] := v_free[v_place] - 1;
        END LOOP;
    END IF;

    -- Of a limit on what is under way only, one that is used up has another free one when something happens.
    INSERT INTO tasker.limit_events (limit_id, key, at)
    SELECT d.limit_id, d.key, f.again
    FROM unnest(v_limits, v_keys, v_free) AS d(limit_id, key, free)
    CROSS JOIN LATERAL (SELECT * FROM tasker.limits WHERE id = d.limit_id OFFSET 0) AS l
    CROSS JOIN LATERAL tasker.free_permits(d.limit_id, d.key) AS f
    WHERE (d.free IS DISTINCT FROM 0 OR l.rate IS NOT NULL OR l.failure_rate IS NOT NULL) AND f.waits AND f.again IS NOT NULL;
    SELECT e.at INTO next_due FROM tasker.limit_events e ORDER BY e.at LIMIT 1;
END
$$;

-- Grants permits where something has happened (see grant_in_turn). Locks: its turn; then those of grant_in_turn.
CREATE FUNCTION tasker.grant_permits(p_limit int, OUT granted int, OUT next_due timestamptz)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    granted := 0;
    IF EXISTS (SELECT FROM tasker.limit_events) THEN
        PERFORM tasker.await_turn('tasker.turn_permits');
        SELECT g.granted, g.next_due INTO granted, next_due FROM tasker.grant_in_turn(p_limit, NULL) AS g;
    END IF;
END
$$;

-- Grants permits in the transaction in which they came back, which is the caller's own and ends soon. Where it is somebody else's turn, an orchestrator does it, which
-- release_permits has told. Returns what p_taker has taken.
-- Locks: the turn of grant_permits, which it does not wait for; then those of grant_in_turn.
CREATE FUNCTION tasker.pass_permits_on(p_taker tasker.taker) RETURNS tasker.leased_message[]
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM tasker.limit_events e WHERE e.at <= clock_timestamp()) OR NOT tasker.take_turn('tasker.turn_permits') THEN
        RETURN NULL;
    END IF;
    RETURN (tasker.grant_in_turn(200, p_taker)).taken;
END
$$;

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
