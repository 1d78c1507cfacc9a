-- How steps get into queues: the roots of a claimed task, and a step whose retry is due.

-- A worker that takes steps of a queue as they become ready, at most so many, without leaving them to the next lease. Where any of it is null, this may be
-- part of somebody else's transaction, who keeps others waiting for its end.
CREATE TYPE tasker.taker AS (queue text, worker int, room int, lease interval);

-- Sends one message per step, in a batch per queue, and creates the steps' rows. The primary key refuses a step a second life.
-- A message carries identity only: task, step, attempt. The row holds the rest.
-- Steps under a limit that have to wait for its permit do so instead (see 0007_limits.sql); those of a queue that cannot be worked with, or that are
-- paused (see 0034_pauses.sql), are held back.
-- Returns the messages that p_taker has now: they come into the queue as if it had leased them there.
CREATE FUNCTION tasker.enqueue_steps(p_tasks uuid[], p_steps smallint[], p_queues text[], p_taker tasker.taker DEFAULT NULL)
RETURNS tasker.leased_message[]
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_queue    text;
    v_tasks    uuid[];
    v_steps    smallint[];
    v_messages jsonb[];
    v_room     int;
    v_ids      bigint[];
    v_taken    tasker.leased_message[];
    v_waits    boolean[];
    v_starts   boolean;
    v_now      timestamptz := clock_timestamp();
BEGIN
    IF EXISTS (SELECT FROM tasker.broken_queues) THEN
        INSERT INTO tasker.steps (task_id, step, state, enqueued_at, retry_at)
        SELECT r.task, r.step, 'waiting_retry', v_now, 'infinity' FROM unnest(p_tasks, p_steps, p_queues) AS r(task, step, queue)
        JOIN tasker.broken_queues b USING (queue);
        SELECT array_agg(r.task), array_agg(r.step), array_agg(r.queue) INTO p_tasks, p_steps, p_queues
        FROM unnest(p_tasks, p_steps, p_queues) AS r(task, step, queue)
        WHERE NOT EXISTS (SELECT FROM tasker.broken_queues b WHERE b.queue = r.queue);
    END IF;
    IF EXISTS (SELECT FROM tasker.pauses) THEN
        SELECT h.p_tasks, h.p_steps, h.p_queues INTO p_tasks, p_steps, p_queues FROM tasker.hold_ready(p_tasks, p_steps, p_queues) AS h;
        IF tasker.is_paused(left(p_taker.queue, -6)) THEN
            p_taker.room := 0;
        END IF;
    END IF;
    IF EXISTS (SELECT FROM tasker.limits) THEN
        SELECT t.waits, t.starts INTO v_waits, v_starts FROM tasker.take_permits(p_tasks, p_steps, p_taker IS NOT NULL) AS t;
        INSERT INTO tasker.steps (task_id, step, state, enqueued_at)
        SELECT r.task, r.step, 'enqueued', v_now FROM unnest(p_tasks, p_steps, v_waits) AS r(task, step, waits) WHERE r.waits;
        IF v_starts THEN
            p_taker.room := 0;
        END IF;
    END IF;
    FOR v_queue, v_tasks, v_steps, v_messages IN
        SELECT r.queue, array_agg(r.task), array_agg(r.step), array_agg(jsonb_build_object('task', r.task, 'step', r.step, 'attempt', 1))
        FROM unnest(p_tasks, p_steps, p_queues, v_waits) AS r(task, step, queue, waits)
        WHERE r.waits IS NOT TRUE
        GROUP BY r.queue ORDER BY r.queue
    LOOP
        v_room := CASE WHEN v_queue = p_taker.queue THEN p_taker.room ELSE 0 END;
        EXECUTE format('SELECT tasker.%I($1, $2, $3, $4, $5)', v_queue || '_send')
        INTO v_ids USING v_messages, v_room, p_taker.worker, p_taker.lease, v_now;
        IF v_room > 0 THEN
            v_taken := ARRAY(SELECT ROW(m.id, 1, m.task, m.step)::tasker.leased_message
                             FROM unnest(v_ids[1:v_room], v_tasks[1:v_room], v_steps[1:v_room]) AS m(id, task, step));
        END IF;
        IF v_room < cardinality(v_tasks) THEN
            PERFORM tasker.call('tasker_steps', v_queue, cardinality(v_tasks) - v_room);
        END IF;
        INSERT INTO tasker.steps (task_id, step, state, msg_id, enqueued_at)
        SELECT m.task, m.step, 'enqueued', m.msg_id, v_now
        FROM unnest(v_tasks, v_steps, v_ids) AS m(task, step, msg_id);
    END LOOP;
    RETURN v_taken;
END
$$;

-- The pending tasks of a namespace are in four lanes, one for each priority; in each, none is before its mark. Without those that are parked,
-- unless p_all.
CREATE FUNCTION tasker.lanes(p_namespace int, p_all boolean DEFAULT false) RETURNS TABLE (priority smallint, mark timestamptz)
LANGUAGE sql STABLE ROWS 4 BEGIN ATOMIC
    SELECT l.priority::smallint, m.lanes[l.priority] FROM tasker.marks m, generate_series(1, 4) AS l(priority)
    WHERE m.namespace_id = p_namespace AND (p_all OR l.priority > m.parked);
END;

-- Claims the first pending tasks of each of these namespaces, and enqueues their root steps: at most p_batch tasks of each, and no more once
-- those before have as many roots as there is room for (p_rooms, parallel). p_before: what came in later is left to others.
-- Returns the namespace of each task that it claimed; what p_taker has taken of their roots (see enqueue_steps); and those of the tasks that are
-- traced (null: none): [{namespace, template, task, trace, created, claimed}], the times in seconds since the epoch.
-- Locks: as many tasks of each priority, skipping those that somebody else is claiming; then only rows it creates.
CREATE FUNCTION tasker.admit_tasks(
    p_namespaces int[], p_rooms int[], p_member int, p_batch int, p_before timestamptz, p_taker tasker.taker DEFAULT NULL,
    OUT claimed int[], OUT taken tasker.leased_message[], OUT traced jsonb
)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_tasks  uuid[];
    v_steps  smallint[];
    v_queues text[];
    v_decided boolean;
    v_skipped_tasks uuid[];
    v_skipped_steps smallint[];
BEGIN
    WITH first AS (
        SELECT n.room, h.* FROM unnest(p_namespaces, p_rooms) AS n(namespace, room)
        CROSS JOIN LATERAL (
            SELECT p.* FROM tasker.lanes(n.namespace) AS l
            CROSS JOIN LATERAL (
                -- With its version: a row that cannot run must not stand in front of those that can (see end_unrunnable).
                SELECT t.id, t.namespace_id, tv.roots, t.claim_order FROM tasker.tasks t JOIN tasker.template_versions tv ON tv.id = t.version_id
                WHERE t.namespace_id = n.namespace AND t.priority = l.priority AND t.claim_order >= l.mark AND t.created_at <= p_before
                ORDER BY t.claim_order LIMIT least(p_batch, n.room)
                FOR UPDATE OF t SKIP LOCKED) AS p
            ORDER BY p.claim_order LIMIT least(p_batch, n.room)) AS h
    ), counted AS (
        SELECT f.id, f.room, sum(f.roots) OVER (PARTITION BY f.namespace_id ORDER BY f.claim_order, f.id) - f.roots AS before FROM first f
    ), claim AS (
        UPDATE tasker.tasks t
        SET state = 'running', claim_order = NULL, claimed_by = p_member, started_at = clock_timestamp()
        -- The array of one, because a join by = could begin at all tasks.
        FROM counted WHERE t.id = ANY (ARRAY[counted.id]) AND counted.before < counted.room
        RETURNING t.id, t.namespace_id, t.template_id, t.version_id, t.trace, t.created_at, t.started_at
    )
    SELECT array_agg(c.id), array_agg(s.step), array_agg(s.queue), bool_or(s.decided), (SELECT array_agg(namespace_id) FROM claim), (
        SELECT jsonb_agg(jsonb_build_object('namespace', n.name, 'template', tp.name, 'task', c.id, 'trace', c.trace,
                                            'created', extract(epoch FROM c.created_at), 'claimed', extract(epoch FROM c.started_at)))
        FROM claim c JOIN tasker.templates tp ON tp.id = c.template_id JOIN tasker.namespaces n ON n.id = c.namespace_id
        WHERE tasker.is_sampled(c.trace))
    INTO v_tasks, v_steps, v_queues, v_decided, claimed, traced
    FROM claim c JOIN tasker.template_steps s ON s.version_id = c.version_id AND s.parents = '{}';
    IF v_decided THEN
        SELECT d.p_tasks, d.p_steps, d.p_queues, d.skipped_tasks, d.skipped_steps INTO v_tasks, v_steps, v_queues, v_skipped_tasks, v_skipped_steps
        FROM tasker.decide_steps(v_tasks, v_steps, v_queues) AS d;
        PERFORM tasker.advance_tasks(v_skipped_tasks, v_skipped_steps);
    END IF;
    IF v_tasks IS NOT NULL THEN
        taken := tasker.enqueue_steps(v_tasks, v_steps, v_queues, p_taker);
    END IF;
END
$$;

-- Claims pending tasks and enqueues their root steps in one transaction: there is no moment in which an orchestrator holds a task
-- that is not yet under way, so a dead one holds up nobody. Tasks wait here, where priority counts, until their queue is shallow.
-- p_member: the orchestrator's membership, its lease and its fence. p_namespaces: null for all.
-- p_target: claim only while the namespace's queue holds fewer messages than this, and than its workers can take soon; where the namespace has a
-- target of its own, that counts. p_batch: at most so many tasks per namespace.
-- p_left: tasks that came in so shortly ago are left to workers that have nothing else to do (see lease_steps).
-- Returns a row per namespace that has other pending tasks: how many it claimed, and those that are traced (see admit_tasks).
-- Errors: TK005 when the membership is no longer held.
-- Locks: those of admit_tasks.
CREATE FUNCTION tasker.claim_tasks(p_member int, p_namespaces text[], p_target int, p_batch int, p_left interval DEFAULT '0')
RETURNS TABLE (namespace text, claimed int, traced jsonb)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_before     timestamptz := clock_timestamp() - p_left;
    v_namespace  record;
    v_depth      int;
    v_namespaces int[];
    v_rooms      int[];
    v_claimed    int[];
    v_traced     jsonb;
BEGIN
    IF NOT EXISTS (SELECT 1 FROM tasker.members m WHERE m.id = p_member AND m.left_at IS NULL AND m.lease_until > clock_timestamp()) THEN
        RAISE EXCEPTION 'orchestrator % no longer holds its membership', p_member USING ERRCODE = 'TK005';
    END IF;
    FOR v_namespace IN
        SELECT n.id, n.queue, m.message AS mark, coalesce(n.queue_target, least(p_target, greatest(coalesce(m.room, p_target), 10))) AS target
        FROM tasker.awake_namespaces(0, NULL) AS n
        CROSS JOIN LATERAL (SELECT * FROM tasker.marks WHERE namespace_id = n.id OFFSET 0) AS m
        WHERE (p_namespaces IS NULL OR n.name = ANY (p_namespaces)) AND NOT tasker.is_paused(n.name)
          AND EXISTS (SELECT FROM tasker.lanes(n.id) AS l, LATERAL (
                  SELECT FROM tasker.tasks t
                  WHERE t.namespace_id = n.id AND t.priority = l.priority AND t.claim_order >= l.mark AND t.created_at <= v_before
                  LIMIT 1) AS h)
        ORDER BY n.id
    LOOP
        EXECUTE format('SELECT tasker.%I($1, $2)', v_namespace.queue || '_depth') INTO v_depth USING v_namespace.mark, v_namespace.target;
        v_namespaces := v_namespaces || v_namespace.id;
        v_rooms := v_rooms || v_namespace.target - v_depth;
    END LOOP;
    IF 0 < ANY (v_rooms) THEN
        SELECT a.claimed, a.traced INTO v_claimed, v_traced FROM tasker.admit_tasks(v_namespaces, v_rooms, p_member, p_batch, v_before,
                                                                                     ROW('', p_member, 0, '0')::tasker.taker) AS a;
    END IF;
    RETURN QUERY
    SELECT n.name, (SELECT count(*)::int FROM unnest(v_claimed) AS c(id) WHERE c.id = n.id),
           (SELECT jsonb_agg(t.claim) FROM jsonb_array_elements(v_traced) AS t(claim) WHERE t.claim ->> 'namespace' = n.name)
    FROM tasker.namespaces n WHERE n.id = ANY (v_namespaces);
END
$$;

-- Tasks whose time has come are pending from now on, the longest waiting first.
-- Returns how many, and when the next one will be due (null: none is waiting).
-- Locks: tasks that wait for their time, skipping those that somebody else has. They wait for no other lock.
CREATE FUNCTION tasker.begin_due_tasks(p_limit int, OUT begun int, OUT next_due timestamptz)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_due        uuid[];
    v_namespaces int[];
BEGIN
    -- SELECT: else each of those that wait is compared with a time of its own, and a million of them take 0.3 s. So in all looks for what is due.
    v_due := ARRAY(SELECT t.id FROM tasker.tasks t WHERE t.due_at <= (SELECT clock_timestamp()) ORDER BY t.due_at LIMIT p_limit FOR NO KEY UPDATE SKIP LOCKED);
    begun := cardinality(v_due);
    IF begun > 0 THEN
        WITH begun AS (
            UPDATE tasker.tasks t
            SET state = 'pending', claim_order = clock_timestamp() - t.priority * tasker.aging(), due_at = NULL
            WHERE t.id = ANY (v_due)
            RETURNING t.namespace_id
        )
        SELECT array_agg(b.namespace_id) INTO v_namespaces FROM begun b;
        PERFORM tasker.wake_namespaces(v_namespaces);
        PERFORM tasker.notify('tasker_tasks', n.name) FROM tasker.namespaces n WHERE n.id = ANY (v_namespaces);
    END IF;
    SELECT t.due_at INTO next_due FROM tasker.tasks t WHERE t.due_at IS NOT NULL ORDER BY t.due_at LIMIT 1;
END
$$;

-- Enqueues the steps whose retry is due, or whose delay is over, the longest waiting first; those under a limit seek its permit.
-- Returns how many, and when the next one will be due, or wake (null: none is waiting).
-- Locks: those of free_resumed; then steps that wait for a retry, skipping those that another orchestrator has. It wants no task's lock.
CREATE FUNCTION tasker.enqueue_due_retries(p_limit int, OUT enqueued int, OUT next_due timestamptz)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_tasks uuid[];
    v_steps smallint[];
BEGIN
    IF EXISTS (SELECT FROM tasker.pauses) THEN
        PERFORM tasker.free_resumed(p_limit);
    END IF;
    WITH due AS MATERIALIZED (
        SELECT s.ctid AS place FROM tasker.steps s
        WHERE s.retry_at <= (SELECT clock_timestamp()) ORDER BY s.retry_at LIMIT p_limit
        FOR UPDATE SKIP LOCKED
    ), again AS (
        UPDATE tasker.steps s
        SET state = 'enqueued', msg_id = NULL, retry_at = NULL, released = 0, kills = 0, suspected = NULL, enqueued_at = clock_timestamp()
        FROM due WHERE s.ctid = due.place
        RETURNING s.task_id, s.step
    )
    SELECT array_agg(a.task_id), array_agg(a.step), count(*) INTO v_tasks, v_steps, enqueued FROM again a;
    IF enqueued > 0 THEN
        PERFORM tasker.seek_permits(v_tasks, v_steps);
    END IF;
    next_due := least((SELECT s.retry_at FROM tasker.steps s WHERE s.retry_at < 'infinity' ORDER BY s.retry_at LIMIT 1),
                      (SELECT s.wakes_at FROM tasker.steps s WHERE s.wakes_at < 'infinity' ORDER BY s.wakes_at LIMIT 1));
END
$$;

-- Gives tasks that have not ended another priority, and those that are their steps. One that is pending goes to where it would be if it had had it from
-- the beginning. Returns those, of either, whose it was not already.
-- Locks: the tasks in id order; then the marks of their namespaces, in order.
CREATE FUNCTION tasker.prioritize_tasks(p_tasks uuid[], p_priority text) RETURNS SETOF uuid
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_priority   smallint := tasker.priority_number(p_priority);
    v_changed    uuid[];
    v_namespaces int[];
    v_first      timestamptz[];
BEGIN
    IF v_priority IS NULL THEN
        RAISE EXCEPTION 'unknown priority %: use low, normal, high or urgent', coalesce(quote_literal(p_priority), 'null') USING ERRCODE = 'TK004';
    END IF;
    WITH RECURSIVE family AS (
        SELECT t.id FROM tasker.tasks t WHERE t.id = ANY (p_tasks) AND t.finished_at IS NULL
        UNION SELECT c.id FROM family f CROSS JOIN LATERAL (SELECT * FROM tasker.tasks WHERE parent_id = f.id OFFSET 0) AS c WHERE c.finished_at IS NULL
    ), held AS MATERIALIZED (
        SELECT t.id FROM tasker.tasks t WHERE t.id = ANY (ARRAY(SELECT f.id FROM family f)) ORDER BY t.id FOR NO KEY UPDATE
    ), changed AS (
        UPDATE tasker.tasks t SET priority = v_priority, claim_order = t.claim_order + (t.priority - v_priority) * tasker.aging()
        WHERE t.id = ANY (ARRAY(SELECT h.id FROM held h)) AND t.finished_at IS NULL AND t.priority <> v_priority
        RETURNING t.id, t.namespace_id, t.claim_order
    ), first AS (
        SELECT c.namespace_id, min(c.claim_order) AS first FROM changed c WHERE c.claim_order IS NOT NULL GROUP BY c.namespace_id ORDER BY c.namespace_id
    )
    SELECT (SELECT array_agg(c.id) FROM changed c), array_agg(f.namespace_id), array_agg(f.first) INTO v_changed, v_namespaces, v_first FROM first f;
    -- In its new lane it may be before the mark, behind which nobody looks.
    PERFORM 1 FROM tasker.marks m WHERE m.namespace_id = ANY (v_namespaces) ORDER BY m.namespace_id FOR NO KEY UPDATE;
    UPDATE tasker.marks m
    SET lanes[v_priority] = least(m.lanes[v_priority], f.first), next_lanes[v_priority] = least(m.next_lanes[v_priority], f.first)
    FROM unnest(v_namespaces, v_first) AS f(namespace_id, first) WHERE m.namespace_id = f.namespace_id;
    RETURN QUERY SELECT unnest(v_changed);
END
$$;
