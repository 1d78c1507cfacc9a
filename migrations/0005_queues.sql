-- Queues: what the message of a step goes through on its way, as functions that every queue has of its own.
-- A statement that names its table is planned once in a session. One that is put together when it is called is planned at every call, which
-- costs more than running it; what is called seldom does it all the same.

-- A message under a lease, and the step it stands for.
CREATE TYPE tasker.leased_message AS (msg_id bigint, fence int, task uuid, step smallint);

-- Steps are changed by their place (ctid) where many are changed at once: whoever has locked or deleted a step's message is the only one to change
-- the step, but for what ends it (0013_cancel.sql, 0016_deadlines.sql); so its place stays what the key has found, or it is no longer enqueued.

-- Whether a message stands for this step. Numbers alone do not say so: after a failover or a restore that lost the last of the past, those of messages
-- are given out again, while a worker may still hold what they once were.
CREATE FUNCTION tasker.is_of_step(p_message jsonb, p_task uuid, p_step smallint) RETURNS boolean
LANGUAGE sql IMMUTABLE BEGIN ATOMIC
    SELECT p_message ->> 'task' = p_task::text AND p_message ->> 'step' = p_step::text;
END;

-- Makes the functions of a queue, or makes them anew:
--   <queue>_send    sends messages, as pgmq.send_batch does; the first p_room of them are p_worker's from the beginning. Returns their ids.
--   <queue>_lease   leases the first p_limit visible messages from p_mark on; skips those that another worker is leasing or reporting.
--   <queue>_delete  deletes the messages of these steps that are held under these fences; the ids are in order. Returns what was passed along with them,
--   and when they were leased.
--   <queue>_hold    locks the messages of these steps that are held under these fences, in order. Returns their ids.
--   <queue>_extend  renews the leases of these steps that are held under these fences, but for what is being reported at this moment: that needs none.
--                   Returns the ids that are not held, and those whose task was cancelled.
--   <queue>_waits   whether a visible message waits after this one.
--   <queue>_depth   how many messages there are from p_mark on, counting no further than p_target.
CREATE FUNCTION tasker.make_queue_functions(p_queue text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $make$
DECLARE
    v_functions text := $functions$
        CREATE OR REPLACE FUNCTION tasker.{queue}_send(
            p_messages jsonb[], p_room int, p_worker int, p_lease interval, p_now timestamptz, OUT ids bigint[])
        LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
        DECLARE
            v_until   timestamptz := p_now + p_lease;
            v_headers jsonb := jsonb_build_object('worker', p_worker);
        BEGIN
            WITH sent AS (
                INSERT INTO {table} (message, vt, read_ct, last_read_at, headers)
                SELECT m.message, CASE WHEN m.n <= p_room THEN v_until ELSE p_now END, (m.n <= p_room)::int,
                       CASE WHEN m.n <= p_room THEN p_now END, CASE WHEN m.n <= p_room THEN v_headers END
                FROM unnest(p_messages) WITH ORDINALITY AS m(message, n)
                RETURNING msg_id
            )
            SELECT array_agg(s.msg_id) INTO ids FROM sent s;
            IF EXISTS (SELECT FROM tasker.marks WHERE namespace_id = {namespace} AND sleep > 0) THEN
                PERFORM tasker.wake_namespaces(ARRAY[{namespace}]);
            END IF;
        END
        $$;

        CREATE OR REPLACE FUNCTION tasker.{queue}_lease(
            p_mark bigint, p_limit int, p_lease interval, p_worker int, OUT leased tasker.leased_message[], OUT messages jsonb[])
        LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
        BEGIN
            WITH head AS MATERIALIZED (
                SELECT msg_id FROM {table} WHERE msg_id >= p_mark AND vt <= clock_timestamp()
                ORDER BY msg_id LIMIT p_limit FOR UPDATE SKIP LOCKED
            ), leased AS (
                UPDATE {table} q
                SET vt = clock_timestamp() + p_lease, read_ct = q.read_ct + 1, last_read_at = clock_timestamp(),
                    headers = jsonb_build_object('worker', p_worker)
                -- An array, because a join could begin at the queue, and walk through all that is dead there.
                WHERE q.msg_id = ANY (ARRAY(SELECT msg_id FROM head))
                RETURNING q.msg_id, q.read_ct, q.message
            )
            SELECT array_agg(ROW(l.msg_id, l.read_ct, i.task, i.step)::tasker.leased_message), array_agg(l.message)
            INTO leased, messages
            FROM leased l, tasker.message_identity(l.message) AS i;
        END
        $$;

        CREATE OR REPLACE FUNCTION tasker.{queue}_delete(
            INOUT ids bigint[], p_fences int[], INOUT tasks uuid[], INOUT steps smallint[], INOUT results text[], OUT started timestamptz[])
        LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
        DECLARE
            v_places int[];
        BEGIN
            -- No join, which could begin at the queue: width_bucket says where in the ordered ids a message's own is.
            WITH gone AS (
                DELETE FROM {table} q
                WHERE q.msg_id = ANY (ids) AND q.read_ct = p_fences[width_bucket(q.msg_id, ids)]
                  AND tasker.is_of_step(q.message, tasks[width_bucket(q.msg_id, ids)], steps[width_bucket(q.msg_id, ids)])
                RETURNING width_bucket(q.msg_id, ids) AS place, q.last_read_at
            )
            SELECT array_agg(g.place ORDER BY g.place), array_agg(g.last_read_at ORDER BY g.place) INTO v_places, started FROM gone g;
            IF cardinality(v_places) IS DISTINCT FROM cardinality(ids) THEN
                SELECT array_agg(ids[p.place]), array_agg(tasks[p.place]), array_agg(steps[p.place]), array_agg(results[p.place])
                INTO ids, tasks, steps, results
                FROM unnest(v_places) AS p(place);
            END IF;
        END
        $$;

        -- Each message by its id, here and below, for the same reason.
        CREATE OR REPLACE FUNCTION tasker.{queue}_hold(p_ids bigint[], p_fences int[], p_tasks uuid[], p_steps smallint[], OUT held bigint[])
        LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
        BEGIN
            SELECT array_agg(h.msg_id) INTO held
            FROM (SELECT * FROM unnest(p_ids, p_fences, p_tasks, p_steps) AS u(id, fence, task, step) ORDER BY u.id) AS r
            CROSS JOIN LATERAL (
                SELECT m.msg_id FROM {table} m WHERE m.msg_id = r.id AND m.read_ct = r.fence AND tasker.is_of_step(m.message, r.task, r.step)
                FOR UPDATE) AS h;
        END
        $$;

        CREATE OR REPLACE FUNCTION tasker.{queue}_extend(p_ids bigint[], p_fences int[], p_tasks uuid[], p_steps smallint[], p_lease interval)
        RETURNS TABLE (id bigint, cancelled boolean)
        LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
        BEGIN
            UPDATE {table} q SET vt = clock_timestamp() + p_lease
            WHERE q.msg_id = ANY (ARRAY(
                SELECT h.msg_id FROM unnest(p_ids, p_fences, p_tasks, p_steps) AS r(id, fence, task, step)
                CROSS JOIN LATERAL (
                    SELECT m.msg_id FROM {table} m WHERE m.msg_id = r.id AND m.read_ct = r.fence AND tasker.is_of_step(m.message, r.task, r.step)
                    FOR UPDATE SKIP LOCKED) AS h));
            RETURN QUERY
            SELECT r.id, h.msg_id IS NOT NULL FROM unnest(p_ids, p_fences, p_tasks, p_steps) AS r(id, fence, task, step)
            LEFT JOIN LATERAL (
                SELECT m.msg_id, m.headers FROM {table} m
                WHERE m.msg_id = r.id AND m.read_ct = r.fence AND tasker.is_of_step(m.message, r.task, r.step) OFFSET 0) AS h ON true
            WHERE h.msg_id IS NULL OR h.headers ? 'cancelled';
        END
        $$;

        CREATE OR REPLACE FUNCTION tasker.{queue}_waits(p_after bigint) RETURNS boolean
        LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
        BEGIN
            RETURN EXISTS (SELECT FROM {table} WHERE msg_id > p_after AND vt <= clock_timestamp());
        END
        $$;

        CREATE OR REPLACE FUNCTION tasker.{queue}_depth(p_mark bigint, p_target int) RETURNS int
        LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
        BEGIN
            RETURN (SELECT count(*) FROM (SELECT FROM {table} WHERE msg_id >= p_mark ORDER BY msg_id LIMIT p_target) AS live);
        END
        $$;
    $functions$;
BEGIN
    EXECUTE replace(replace(replace(v_functions, '{queue}', p_queue), '{table}', format('pgmq.%I', pgmq.format_table_name(p_queue, 'q'))),
                    '{namespace}', (SELECT n.id::text FROM tasker.namespaces n WHERE n.queue = p_queue));
END
$make$;

-- Queues that cannot be worked with: dropped, damaged, or locked. Whoever looks at all namespaces leaves out theirs, and a step that is to go there
-- is held back as if for a retry that is never due (retry_at is infinite), until the queue works again: see 0019_repair.sql.
CREATE TABLE tasker.broken_queues (
    queue        text PRIMARY KEY,
    namespace_id int NOT NULL UNIQUE,
    why          text NOT NULL,
    since        timestamptz NOT NULL DEFAULT clock_timestamp(),
    tried_at     timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Where to begin reading. Dead entries, which vacuum may not take while any session holds back the xmin horizon, are so not walked again and
-- again: no live message of a namespace's queue is below `message`, and none of its pending tasks of priority n has a claim_order before lanes[n].
-- (A design rule of DESIGN section 3.)
CREATE TABLE tasker.marks (
    namespace_id int PRIMARY KEY,
    message      bigint NOT NULL DEFAULT 0,
    lanes        timestamptz[] NOT NULL DEFAULT array_fill('-infinity'::timestamptz, ARRAY[4]),
    -- What the marks may become once all that were writing when it was seen have ended: they may yet commit something before it.
    next_message bigint NOT NULL DEFAULT 0,
    next_lanes   timestamptz[] NOT NULL DEFAULT array_fill('-infinity'::timestamptz, ARRAY[4]),
    writers      text[] NOT NULL DEFAULT '{}',
    -- the last message id that was given out then
    sent         bigint NOT NULL DEFAULT 0,
    swept_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- Tasks of this priority and below it are not claimed (see 0023_backpressure.sql); 0: all are.
    parked       smallint NOT NULL DEFAULT 0,
    -- How many messages its queue may hold for the workers that there are (see 0020_capacity.sql); null: nobody has looked yet.
    room         int,
    -- Asleep is a namespace without a worker, of which no task is pending and no message waits: no loop looks at it. 0: awake; 1 to 3: on its way;
    -- 4: asleep.
    sleep        smallint NOT NULL DEFAULT 0,
    -- when it was last seen to have something to do
    busy_at      timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 20);
CREATE INDEX marks_awake ON tasker.marks (namespace_id) WHERE sleep < 4;

-- Namespaces that are to be awake. A table of its own, into which many write without waiting for each other: a caller's transaction may be long.
CREATE TABLE tasker.wakes (namespace_id int NOT NULL);

-- Wakes namespaces that are asleep, or on their way: for whoever has written, in the same transaction and before, what they are to be awake for.
-- That order is what move_marks relies on. Locks: nothing but its own rows.
CREATE FUNCTION tasker.wake_namespaces(p_namespaces int[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF EXISTS (SELECT FROM tasker.marks m WHERE m.namespace_id = ANY (p_namespaces) AND m.sleep > 0) THEN
        INSERT INTO tasker.wakes (namespace_id)
        SELECT m.namespace_id FROM tasker.marks m
        WHERE m.namespace_id = ANY (p_namespaces) AND m.sleep > 0 AND NOT EXISTS (SELECT FROM tasker.wakes w WHERE w.namespace_id = m.namespace_id);
    END IF;
END
$$;

-- The next p_limit namespaces after p_after that are not asleep and whose queues can be worked with, in order.
CREATE FUNCTION tasker.awake_namespaces(p_after int, p_limit int) RETURNS SETOF tasker.namespaces
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT n.* FROM (
        SELECT a.namespace_id AS id FROM (
            SELECT m.namespace_id FROM tasker.marks m WHERE m.sleep < 4 AND m.namespace_id > p_after
            UNION SELECT w.namespace_id FROM tasker.wakes w WHERE w.namespace_id > p_after) AS a
        WHERE NOT EXISTS (SELECT FROM tasker.broken_queues b WHERE b.namespace_id = a.namespace_id)
        ORDER BY a.namespace_id LIMIT p_limit) AS l
    CROSS JOIN LATERAL (SELECT * FROM tasker.namespaces WHERE id = l.id OFFSET 0) AS n
    ORDER BY n.id;
END;

-- The transactions that have not ended.
CREATE FUNCTION tasker.ongoing() RETURNS text[]
LANGUAGE sql BEGIN ATOMIC
    SELECT ARRAY(SELECT l.virtualxid FROM pg_locks l WHERE l.locktype = 'virtualxid');
END;

-- Of these, those that may have written to any of these tables.
CREATE FUNCTION tasker.writers_of(p_tables regclass[]) RETURNS text[]
LANGUAGE sql BEGIN ATOMIC
    SELECT ARRAY(
        SELECT DISTINCT l.virtualtransaction FROM pg_locks l
        WHERE l.locktype = 'relation' AND l.relation = ANY (p_tables) AND l.mode = 'RowExclusiveLock' AND l.granted AND l.pid IS DISTINCT FROM pg_backend_pid()
          AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database()));
END;

-- Moves the marks on, of the next p_limit namespaces after p_after that are not asleep; and puts to sleep what has had nothing to do for a minute.
-- Once a minute it looks from the very beginning, in case a clock went backwards.
-- A namespace is asleep only after it was seen, in transactions one after the other, (1) to be on its way, from when on whoever has work for it wakes
-- it; (2) who was writing then, and may not have known; (3) that all of these have ended; (4) that there is nothing to do all the same.
-- Returns whether anything moved, and the last namespace it looked at (null: there are no more).
-- Locks: its turn (who does not get it leaves the work to who has it); then marks in order, skipping those that somebody else has.
CREATE FUNCTION tasker.move_marks(p_after int DEFAULT 0, p_limit int DEFAULT 50, OUT moved boolean, OUT last int)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_marks   tasker.marks;
    v_name    text;
    v_queue   text;
    v_now     timestamptz;
    v_sent    bigint;
    v_head    bigint;
    v_lanes   timestamptz[];
    v_pending boolean;
    v_sweep   boolean;
    v_busy    boolean;
    v_sleep   smallint;
    v_ids     int[];
    v_worked  text[];
    -- What was seen of those that may move: as marks, whose message is the first there is.
    v_seen    tasker.marks[];
    v_tables  regclass[] := '{tasker.tasks, tasker.members}';
    v_ongoing text[];
    v_writers text[];
BEGIN
    moved := false;
    IF NOT tasker.take_turn('tasker.turn_marks') THEN
        RETURN;
    END IF;
    -- Before anything is read: what those have written that have ended by now is seen.
    v_ongoing := tasker.ongoing();
    WITH woken AS (DELETE FROM tasker.wakes RETURNING namespace_id)
    UPDATE tasker.marks m SET sleep = 0, busy_at = clock_timestamp()
    WHERE m.namespace_id = ANY (ARRAY(SELECT w.namespace_id FROM woken w ORDER BY 1));
    v_ids := ARRAY(SELECT a.id FROM tasker.awake_namespaces(p_after, p_limit) AS a);
    IF cardinality(v_ids) = p_limit THEN
        last := v_ids[p_limit];
    END IF;
    v_worked := ARRAY(SELECT DISTINCT w.name FROM tasker.members m, unnest(m.namespaces) AS w(name) WHERE m.kind = 'worker' AND m.left_at IS NULL);
    FOR v_marks IN
        SELECT m.* FROM unnest(v_ids) AS i(id)
        CROSS JOIN LATERAL (SELECT * FROM tasker.marks WHERE namespace_id = i.id FOR NO KEY UPDATE SKIP LOCKED) AS m ORDER BY i.id
    LOOP
        SELECT n.name, format('pgmq.%I', pgmq.format_table_name(n.queue, 'q')) INTO v_name, v_queue
        FROM tasker.namespaces n WHERE n.id = v_marks.namespace_id;
        v_now := clock_timestamp();
        v_sweep := v_marks.swept_at < v_now - interval '1 minute';
        v_sent := coalesce(pg_sequence_last_value(pg_get_serial_sequence(v_queue, 'msg_id')::regclass), 0);
        EXECUTE format('SELECT msg_id FROM %s WHERE msg_id >= $1 ORDER BY msg_id LIMIT 1', v_queue)
        INTO v_head USING CASE WHEN v_sweep THEN 0 ELSE v_marks.message END;
        SELECT array_agg(coalesce(h.claim_order, v_now - l.priority * tasker.aging()) ORDER BY l.priority), bool_or(h.claim_order IS NOT NULL)
        INTO v_lanes, v_pending
        FROM generate_series(1, 4) AS l(priority)
        LEFT JOIN LATERAL (
            SELECT t.claim_order FROM tasker.tasks t
            WHERE t.namespace_id = v_marks.namespace_id AND t.priority = l.priority AND t.claim_order IS NOT NULL
              AND t.claim_order >= CASE WHEN v_sweep THEN '-infinity' ELSE v_marks.lanes[l.priority] END
            ORDER BY t.claim_order LIMIT 1) AS h ON true;
        v_busy := v_pending OR v_head IS NOT NULL OR v_sent <> v_marks.sent OR v_name = ANY (v_worked);
        v_sleep := CASE
            WHEN v_busy OR v_marks.busy_at > v_now - interval '1 minute' THEN 0
            ELSE least(4, v_marks.sleep + 1) END;
        CONTINUE WHEN NOT (v_sweep OR v_pending OR v_sent <> v_marks.sent OR v_sleep <> v_marks.sleep);
        v_tables := v_tables || v_queue::regclass;
        v_marks.message := v_head;
        v_marks.next_message := coalesce(v_head, v_sent + 1);
        v_marks.next_lanes := v_lanes;
        v_marks.sent := v_sent;
        v_marks.sleep := v_sleep;
        v_marks.swept_at := CASE WHEN v_sweep THEN v_now ELSE v_marks.swept_at END;
        v_marks.busy_at := CASE WHEN v_busy THEN v_now ELSE v_marks.busy_at END;
        v_seen := v_seen || v_marks;
    END LOOP;
    IF v_seen IS NULL THEN
        RETURN;
    END IF;
    -- After the heads were seen: whoever wrote then and has not ended by now is among them.
    v_writers := tasker.writers_of(v_tables);
    UPDATE tasker.marks m
    SET message = least(m.next_message, s.message),
        lanes = ARRAY(SELECT least(u.next, u.head) FROM unnest(m.next_lanes, s.next_lanes) WITH ORDINALITY AS u(next, head, n) ORDER BY u.n),
        next_message = s.next_message, next_lanes = s.next_lanes, writers = v_writers, sent = s.sent, swept_at = s.swept_at, sleep = s.sleep, busy_at = s.busy_at
    FROM unnest(v_seen) AS s
    WHERE m.namespace_id = ANY (ARRAY[s.namespace_id]) AND NOT m.writers && v_ongoing;
    moved := FOUND;
END
$$;
