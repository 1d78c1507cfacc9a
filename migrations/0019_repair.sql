-- Repair: a queue that cannot be worked with is its namespace's trouble alone. It is found once a loop has failed, left out by all of them until it
-- works again, and can be made anew: its messages carry identity only, and the rows of steps say which there should be.

-- Tries all that is done with a queue, and takes it back. Returns why it cannot be worked with, as an SQLSTATE and in words; null: it can be. A lock
-- that somebody holds on it for longer than lock_timeout is such a reason.
-- Errors: what is not the queue's fault (a disk that is full, a server that takes no writes).
CREATE FUNCTION tasker.try_queue(p_queue text, OUT code text, OUT why text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '200ms' AS $$
DECLARE
    v_id   bigint;
    v_task uuid := gen_random_uuid();
BEGIN
    EXECUTE format('SELECT (tasker.%I($1, 0, 0, interval ''0'', clock_timestamp()))[1]', p_queue || '_send')
    INTO v_id USING ARRAY[jsonb_build_object('task', v_task, 'step', 0)];
    EXECUTE format('SELECT tasker.%I($1, 1, interval ''1 second'', 0)', p_queue || '_lease') USING v_id;
    EXECUTE format('SELECT tasker.%I($1, $2, $3, $4)', p_queue || '_hold') USING ARRAY[v_id], '{1}'::int[], ARRAY[v_task], '{0}'::smallint[];
    EXECUTE format('SELECT tasker.%I($1, $2, $3, $4, interval ''1 second'')', p_queue || '_extend')
    USING ARRAY[v_id], '{1}'::int[], ARRAY[v_task], '{0}'::smallint[];
    EXECUTE format('SELECT tasker.%I($1), tasker.%I($1, 1)', p_queue || '_waits', p_queue || '_depth') USING v_id;
    EXECUTE format('SELECT tasker.%I($1, $2, $3, $4, $5)', p_queue || '_delete')
    USING ARRAY[v_id], '{1}'::int[], ARRAY[v_task], '{0}'::smallint[], '{null}'::text[];
    PERFORM pgmq.send(p_queue || '_dlq', '{}');
    RAISE SQLSTATE 'TK000';
EXCEPTION WHEN OTHERS THEN
    -- Classes 25 and 40: the transaction, 53: resources, 57 and 58: the server, XX: but for what is damaged on the disk, its bugs.
    IF left(SQLSTATE, 2) IN ('25', '40', '53', '57', '58') OR SQLSTATE = 'XX000' THEN
        RAISE;
    ELSIF SQLSTATE <> 'TK000' THEN
        code := SQLSTATE;
        why := SQLERRM;
    END IF;
END
$$;

-- Finds queues that cannot be worked with among those of the next p_limit namespaces after p_after that are not asleep. Returns each that nobody had
-- found before; a last row without a queue says where to go on, if there are more.
-- Locks: those of try_queue, which it gives back.
CREATE FUNCTION tasker.find_broken_queues(p_after int, p_limit int) RETURNS TABLE (queue text, why text, last int)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    v_namespace tasker.namespaces;
    v_seen      int := 0;
BEGIN
    FOR v_namespace IN SELECT * FROM tasker.awake_namespaces(p_after, p_limit) LOOP
        v_seen := v_seen + 1;
        RETURN QUERY
        INSERT INTO tasker.broken_queues AS b (queue, namespace_id, why)
        SELECT v_namespace.queue, v_namespace.id, t.why FROM tasker.try_queue(v_namespace.queue) AS t WHERE t.why IS NOT NULL
        ON CONFLICT DO NOTHING RETURNING b.queue, b.why, NULL::int;
    END LOOP;
    IF v_seen = p_limit THEN
        RETURN QUERY SELECT NULL::text, NULL::text, v_namespace.id;
    END IF;
END
$$;

-- Tries the broken queues again, unless somebody has within the last seconds, or is at it. Returns those that work again, and how many are left.
-- Locks: the broken queues it tries.
CREATE FUNCTION tasker.try_broken_queues(OUT healed text[], OUT broken int)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_broken tasker.broken_queues;
    v_why    text;
BEGIN
    FOR v_broken IN SELECT * FROM tasker.broken_queues b WHERE b.tried_at < clock_timestamp() - interval '3 s' ORDER BY b.queue FOR UPDATE SKIP LOCKED LOOP
        SELECT t.why INTO v_why FROM tasker.try_queue(v_broken.queue) AS t;
        IF v_why IS NULL THEN
            DELETE FROM tasker.broken_queues b WHERE b.queue = v_broken.queue;
            healed := healed || v_broken.queue;
        ELSE
            UPDATE tasker.broken_queues b SET why = v_why, tried_at = clock_timestamp() WHERE b.queue = v_broken.queue;
        END IF;
    END LOOP;
    SELECT count(*) INTO broken FROM tasker.broken_queues;
END
$$;

-- Steps that were held back, and whose queues work again, or whose handler somebody has by now (0024_unhandled.sql), are due. Returns how many:
-- p_limit at most. A kind of step of which none is held back any more is no longer unhandled.
-- Locks: those steps, skipping what somebody else has.
CREATE FUNCTION tasker.free_held_steps(p_limit int) RETURNS int
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_freed int;
BEGIN
    UPDATE tasker.steps s SET retry_at = clock_timestamp()
    WHERE s.ctid = ANY (ARRAY(
        SELECT h.ctid FROM tasker.steps h
        CROSS JOIN LATERAL (SELECT version_id FROM tasker.tasks WHERE id = h.task_id OFFSET 0) AS t
        CROSS JOIN LATERAL (SELECT queue FROM tasker.template_steps WHERE version_id = t.version_id AND step = h.step OFFSET 0) AS ts
        WHERE h.retry_at = 'infinity' AND NOT EXISTS (SELECT FROM tasker.broken_queues b WHERE b.queue = ts.queue)
          AND NOT EXISTS (SELECT FROM tasker.unhandled u WHERE u.version_id = t.version_id AND u.step = h.step AND NOT u.found)
          AND NOT EXISTS (SELECT FROM tasker.held_replays r WHERE r.task_id = h.task_id AND h.step = ANY (r.steps))
        LIMIT p_limit FOR UPDATE OF h SKIP LOCKED));
    GET DIAGNOSTICS v_freed = ROW_COUNT;
    IF v_freed > 0 THEN
        PERFORM tasker.notify('tasker_due', '');
    END IF;
    IF EXISTS (SELECT FROM tasker.unhandled) THEN
        DELETE FROM tasker.unhandled u WHERE NOT EXISTS (
            SELECT FROM tasker.steps h JOIN tasker.tasks t ON t.id = h.task_id
            WHERE h.retry_at = 'infinity' AND h.step = u.step AND t.version_id = u.version_id);
    END IF;
    RETURN v_freed;
END
$$;

-- The namespaces whose queues lack a table or a function, or are known to be broken.
CREATE FUNCTION tasker.damaged_namespaces() RETURNS SETOF text
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT n.name FROM tasker.namespaces n
    WHERE EXISTS (SELECT FROM tasker.broken_queues b WHERE b.namespace_id = n.id)
       OR EXISTS (SELECT FROM unnest(ARRAY[n.queue, n.queue || '_dlq']) AS q(name)
                  WHERE to_regclass(format('pgmq.%I', pgmq.format_table_name(q.name, 'q'))) IS NULL)
       OR EXISTS (SELECT FROM unnest('{send, lease, delete, hold, extend, waits, depth}'::text[]) AS f(name)
                  WHERE to_regproc(format('tasker.%I', n.queue || '_' || f.name)) IS NULL)
    ORDER BY n.name;
END;

-- Makes what a namespace's queue lacks; and the queue anew, without its messages, where that is not enough. The ids of new messages go on behind
-- all that were given out, so that no report of an old one can mean a new one. What was lost with it, restore_queue brings back.
-- Returns what it found to be wrong; null: nothing was.
-- Errors: TK002 for no such namespace; TK003 where it cannot be repaired, with what to do.
-- Locks: the queue's tables.
CREATE FUNCTION tasker.repair_queue(p_namespace text) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_queue   text;
    v_table   text;
    v_letters text;
    v_found   record;
    v_now     record;
    v_next    bigint;
BEGIN
    SELECT n.queue INTO v_queue FROM tasker.namespaces n WHERE n.name = p_namespace;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'no namespace %', p_namespace USING ERRCODE = 'TK002';
    END IF;
    v_table := pgmq.format_table_name(v_queue, 'q');
    v_letters := pgmq.format_table_name(v_queue || '_dlq', 'q');
    v_found := tasker.try_queue(v_queue);
    IF v_found.code = '55P03' THEN
        RAISE EXCEPTION 'the queue % is locked by %', v_queue, coalesce((
            SELECT string_agg(DISTINCT format('process %s (role %s, application %s)', a.pid, a.usename, a.application_name), ', ')
            FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
            WHERE l.granted AND l.relation IN (to_regclass(format('pgmq.%I', v_table)), to_regclass(format('pgmq.%I', v_letters)))
              AND a.pid <> pg_backend_pid()), 'somebody')
            USING ERRCODE = 'TK003', HINT = 'it works again when that ends: SELECT pg_terminate_backend(PROCESS) ends it';
    ELSIF v_found.code IS NOT NULL THEN
        -- What was given out since the marks were moved is less than this behind them.
        SELECT greatest(m.message, m.next_message, m.sent) + 1000000000 INTO v_next
        FROM tasker.marks m JOIN tasker.namespaces n ON n.id = m.namespace_id WHERE n.queue = v_queue;
        BEGIN
            PERFORM tasker.make_queue(v_queue);
            IF v_found.code = '42501' THEN
                EXECUTE format('GRANT ALL ON pgmq.%I, pgmq.%I TO CURRENT_USER', v_table, v_letters);
            END IF;
            v_now := tasker.try_queue(v_queue);
        EXCEPTION WHEN OTHERS THEN
            v_now := v_found;
        END;
        IF v_now.code IS NOT NULL THEN
            EXECUTE format('DROP TABLE pgmq.%I', v_table);
            PERFORM tasker.make_queue(v_queue);
            v_now := tasker.try_queue(v_queue);
        END IF;
        IF v_now.code IS NOT NULL THEN
            RAISE EXCEPTION 'the queue % cannot be repaired: %', v_queue, v_now.why
                USING ERRCODE = 'TK003', HINT = format('rename the table pgmq.%I and try again: a new one is made, with the letters of steps that are dead', v_letters);
        END IF;
        EXECUTE format('ALTER TABLE pgmq.%I ALTER COLUMN msg_id RESTART WITH %s', v_table, v_next);
    END IF;
    DELETE FROM tasker.broken_queues b WHERE b.queue = v_queue;
    PERFORM tasker.wake_namespaces(ARRAY(SELECT n.id FROM tasker.namespaces n WHERE n.queue = v_queue));
    RETURN v_found.why;
END
$$;

-- Looks at p_limit tasks after p_after: sends a message again for every step that is enqueued in this namespace's queue and has none, and a letter for
-- every one that is dead and has none, unless somebody has discarded it. Returns how many of each, and where to go on (null: that was all).
-- Locks: the tasks that it mends in id order, then their steps.
CREATE FUNCTION tasker.restore_queue(p_namespace text, p_after uuid, p_limit int, OUT messages int, OUT letters int, OUT last uuid)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_queue   text := p_namespace || '_queue';
    v_seen    uuid[];
    v_tasks   uuid[];
    v_steps   smallint[];
    v_reasons text[];
BEGIN
    SELECT array_agg(c.id), CASE WHEN count(*) = p_limit THEN max(c.id::text)::uuid END INTO v_seen, last
    FROM (SELECT t.id FROM tasker.tasks t WHERE t.id > p_after ORDER BY t.id LIMIT p_limit) AS c;
    v_seen := ARRAY(SELECT t.id FROM tasker.tasks t WHERE t.id = ANY (v_seen) AND t.state IN ('running', 'blocked', 'failed', 'undoing'));
    messages := tasker.send_lost(v_seen, v_queue);

    EXECUTE format($f$
        SELECT array_agg(d.task_id), array_agg(d.step), array_agg(d.reason) FROM (
            SELECT s.task_id, s.step, coalesce(s.errors -> -1 ->> 'reason', 'restored') AS reason
            FROM unnest($1) AS l(task)
            CROSS JOIN LATERAL (SELECT * FROM tasker.tasks WHERE id = l.task OFFSET 0) AS t
            CROSS JOIN LATERAL (SELECT * FROM tasker.steps WHERE task_id = l.task OFFSET 0) AS s
            JOIN tasker.template_steps ts ON ts.version_id = t.version_id AND ts.step = s.step AND ts.queue = $2
            WHERE s.state = 'dead'
              AND NOT EXISTS (SELECT FROM pgmq.%I q WHERE q.message ->> 'task' = s.task_id::text AND q.message ->> 'step' = ts.name)
              AND NOT EXISTS (SELECT FROM tasker.dead_letter_actions a WHERE a.task_id = s.task_id AND a.step = ts.name
                              AND a.action IN ('discard', 'purge') AND a.at >= s.finished_at)
            ORDER BY s.task_id, s.step) AS d
    $f$, pgmq.format_table_name(v_queue || '_dlq', 'q')) INTO v_tasks, v_steps, v_reasons USING v_seen, v_queue;
    letters := coalesce(cardinality(v_tasks), 0);
    IF letters > 0 THEN
        PERFORM FROM tasker.tasks t WHERE t.id = ANY (v_tasks) ORDER BY t.id FOR NO KEY UPDATE;
        PERFORM tasker.send_dead_letters(v_tasks, v_steps, v_reasons, array_fill(NULL::jsonb, ARRAY[letters]));
    END IF;
END
$$;
