-- Queues: what the message of a step goes through on its way, as functions that every queue has of its own.
-- A statement that names its table is planned once in a session. One that is put together when it is called is planned at every call, which
-- costs more than running it; what is called seldom does it all the same.

-- A message under a lease, and the step it stands for.
CREATE TYPE tasker.leased_message AS (msg_id bigint, fence int, task uuid, step smallint);

-- Makes the functions of a queue, or makes them anew:
--   <queue>_send    sends messages, as pgmq.send_batch does; the first p_room of them are p_worker's from the beginning. Returns their ids.
--   <queue>_lease   leases the first p_limit visible messages from p_mark on; skips those that another worker is leasing or reporting.
--   <queue>_delete  deletes the messages that are held under these fences. Returns what was passed along with them, and when they were leased.
--   <queue>_waits   whether a visible message waits after this one.
--   <queue>_depth   how many messages there are from p_mark on, counting no further than p_target, and the first of them.
CREATE FUNCTION tasker.make_queue_functions(p_queue text) RETURNS void
LANGUAGE plpgsql AS $make$
DECLARE
    v_functions text := $functions$
        CREATE OR REPLACE FUNCTION tasker.{queue}_send(
            p_messages jsonb[], p_room int, p_worker int, p_lease interval, p_now timestamptz, OUT ids bigint[])
        LANGUAGE plpgsql AS $$
        BEGIN
            WITH sent AS (
                INSERT INTO {table} (message, vt, read_ct, last_read_at, headers)
                SELECT m.message, CASE WHEN m.n <= p_room THEN p_now + p_lease ELSE p_now END, (m.n <= p_room)::int,
                       CASE WHEN m.n <= p_room THEN p_now END, CASE WHEN m.n <= p_room THEN jsonb_build_object('worker', p_worker) END
                FROM unnest(p_messages) WITH ORDINALITY AS m(message, n)
                RETURNING msg_id
            )
            SELECT array_agg(s.msg_id) INTO ids FROM sent s;
        END
        $$;

        CREATE OR REPLACE FUNCTION tasker.{queue}_lease(
            p_mark bigint, p_limit int, p_lease interval, p_worker int, OUT leased tasker.leased_message[], OUT messages jsonb[])
        LANGUAGE plpgsql AS $$
        BEGIN
            WITH head AS MATERIALIZED (
                SELECT msg_id FROM {table} WHERE msg_id >= p_mark AND vt <= clock_timestamp()
                ORDER BY msg_id LIMIT p_limit FOR UPDATE SKIP LOCKED
            ), leased AS (
                UPDATE {table} q
                SET vt = clock_timestamp() + p_lease, read_ct = q.read_ct + 1, last_read_at = clock_timestamp(),
                    headers = jsonb_build_object('worker', p_worker)
                -- An array, because a join could begin at the queue.
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
        LANGUAGE plpgsql AS $$
        BEGIN
            WITH gone AS (
                DELETE FROM {table} q
                USING (SELECT * FROM unnest(ids, p_fences, tasks, steps, results) AS u(id, fence, task, step, result) ORDER BY u.id) AS r
                WHERE q.msg_id = r.id AND q.read_ct = r.fence
                RETURNING r.id, r.task, r.step, r.result, q.last_read_at
            )
            SELECT array_agg(g.id), array_agg(g.task), array_agg(g.step), array_agg(g.result), array_agg(g.last_read_at)
            INTO ids, tasks, steps, results, started
            FROM gone g;
        END
        $$;

        CREATE OR REPLACE FUNCTION tasker.{queue}_waits(p_after bigint) RETURNS boolean
        LANGUAGE plpgsql AS $$
        BEGIN
            RETURN EXISTS (SELECT FROM {table} WHERE msg_id > p_after AND vt <= clock_timestamp());
        END
        $$;

        CREATE OR REPLACE FUNCTION tasker.{queue}_depth(p_mark bigint, p_target int, OUT depth int, OUT head bigint)
        LANGUAGE plpgsql AS $$
        BEGIN
            SELECT count(*), min(msg_id) INTO depth, head
            FROM (SELECT msg_id FROM {table} WHERE msg_id >= p_mark ORDER BY msg_id LIMIT p_target) AS live;
        END
        $$;
    $functions$;
BEGIN
    EXECUTE replace(replace(v_functions, '{queue}', p_queue), '{table}', format('pgmq.%I', pgmq.format_table_name(p_queue, 'q')));
END
$make$;
