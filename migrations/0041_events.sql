-- Events: what has happened to tasks and steps, and to what operators look at, for those who have subscribed to it.
--
-- Who changes something writes what has happened into the outbox, in the same transaction, by triggers that are there while anybody has subscribed. What is
-- in it is committed in another order than it was written. So an orchestrator, one at a time, moves what it sees there into the events, each at a position behind all before: what a
-- reader has not seen is behind what it has, and it needs to remember nothing but a position. A transaction that takes long holds up only what it
-- has written itself. Of one task, what one event has led to comes after it.

CREATE TABLE tasker.outbox (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    type         text NOT NULL,
    at           timestamptz NOT NULL,
    task_id      uuid,
    step         smallint,
    namespace_id int,
    template_id  bigint,
    -- what its row may not say any more when it is read
    data         jsonb
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);

CREATE TABLE tasker.events (
    -- see lane_of
    lane      smallint NOT NULL,
    -- microseconds since the epoch when it was moved here, or one more than the one before
    position  bigint NOT NULL,
    type      text NOT NULL,
    at        timestamptz NOT NULL,
    task_id   uuid,
    step      text,
    namespace text,
    template  text,
    tags      jsonb,
    -- the traceparent of its task
    trace     text,
    data      jsonb,
    PRIMARY KEY (lane, position)
);

-- The last position, and from where in the outbox to read (see marks, 0005_queues.sql); one row.
CREATE TABLE tasker.event_order (
    position bigint NOT NULL DEFAULT 0,
    mark     bigint NOT NULL DEFAULT 0,
    -- what the mark may become once all that were writing when it was seen have ended
    next     bigint NOT NULL DEFAULT 0,
    writers  text[] NOT NULL DEFAULT '{}'
) WITH (fillfactor = 10);
INSERT INTO tasker.event_order DEFAULT VALUES;

-- The lane of a task's events: the last four bits of its id, which are random. What is of no task is in the first.
CREATE FUNCTION tasker.lane_of(p_task uuid) RETURNS smallint
LANGUAGE sql IMMUTABLE BEGIN ATOMIC
    SELECT coalesce(get_byte(uuid_send(p_task), 15) % 16, 0)::smallint;
END;

-- What anybody has subscribed to, of whatever namespace.
CREATE FUNCTION tasker.told_types() RETURNS text[]
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN ARRAY(SELECT DISTINCT t.type FROM tasker.subscriptions s, unnest(s.types) AS t(type));
END
$$;

-- Writes down what has happened to tasks, and to their steps, as far as anybody has subscribed to it. The arrays are parallel, in the order in which it happened; p_at: null: now.
CREATE FUNCTION tasker.tell(p_tasks uuid[], p_steps smallint[], p_types text[], p_at timestamptz[], p_data jsonb[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    -- Of these, somebody wants all.
    v_whole text[] := ARRAY(SELECT DISTINCT t.type FROM tasker.subscriptions s, unnest(s.types) AS t(type)
                            WHERE s.namespaces IS NULL AND s.templates IS NULL AND s.tags IS NULL);
BEGIN
    INSERT INTO tasker.outbox (type, at, task_id, step, namespace_id, template_id, data)
    SELECT r.type, coalesce(r.at, clock_timestamp()), r.task, r.step, t.namespace_id, t.template_id, r.data
    FROM unnest(p_tasks, p_steps, p_types, p_at, p_data) AS r(task, step, type, at, data)
    CROSS JOIN LATERAL (SELECT namespace_id, template_id, tags FROM tasker.tasks WHERE id = r.task OFFSET 0) AS t
    WHERE r.type = ANY (v_whole) OR EXISTS (
        SELECT FROM tasker.subscriptions s, tasker.templates tp, tasker.namespaces n
        WHERE tp.id = t.template_id AND n.id = t.namespace_id AND tasker.is_wanted(s, r.type, n.name, tp.name, t.tags));
    IF FOUND THEN
        PERFORM tasker.notify('tasker_events', '');
    END IF;
END
$$;

CREATE FUNCTION tasker.tell_new_tasks() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF 'task.created' = ANY (tasker.told_types()) THEN
        PERFORM tasker.tell(array_agg(c.id), NULL, array_agg('task.created'::text), array_agg(c.created_at), NULL) FROM changed c;
    END IF;
    RETURN NULL;
END
$$;

-- What is compared here, row by row, was changed by one statement; there is no index of it.
CREATE FUNCTION tasker.tell_tasks() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_hashjoin = on SET enable_nestloop = off AS $$
DECLARE
    v_told text[];
BEGIN
    IF NOT EXISTS (SELECT FROM changed) THEN
        RETURN NULL;
    END IF;
    v_told := tasker.told_types();
    PERFORM tasker.tell(array_agg(k.id), NULL, array_agg(k.type), array_agg(CASE k.type WHEN 'task.started' THEN k.started_at ELSE k.finished_at END), NULL)
    FROM (
        SELECT c.*, 'task.' || CASE c.state WHEN 'pending' THEN 'due' WHEN 'running' THEN CASE WHEN b.started_at IS NULL THEN 'started' ELSE 'resumed' END ELSE c.state::text END AS type
        FROM changed c JOIN before b ON b.id = c.id WHERE b.state <> c.state) AS k
    WHERE k.type = ANY (v_told) HAVING count(*) > 0;
    RETURN NULL;
END
$$;

-- What has become of a step; null: nothing that is told. One that is held back, or snoozes, waits as if for a retry.
CREATE FUNCTION tasker.step_event(p_step tasker.steps, p_errors_before jsonb) RETURNS text
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT CASE WHEN p_step.state <> 'waiting_retry' THEN 'step.' || p_step.state WHEN p_step.errors IS DISTINCT FROM p_errors_before THEN 'step.failed' END;
END;

-- The last of a step's errors, as it is told.
CREATE FUNCTION tasker.told_error(p_errors jsonb) RETURNS jsonb
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT jsonb_build_object('class', p_errors -> -1 -> 'class', 'message', left(p_errors -> -1 ->> 'message', 1000));
END;

-- What its row may not say any more when it is read.
CREATE FUNCTION tasker.step_facts(p_step tasker.steps, p_type text) RETURNS jsonb
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT jsonb_strip_nulls(jsonb_build_object(
        'attempt', CASE WHEN f.failed THEN p_step.errors -> -1 -> 'attempt' WHEN p_step.started_at IS NOT NULL THEN to_jsonb(p_step.failures + 1) END,
        'worker', p_step.worker, 'started_at', p_step.started_at, 'retry_at', CASE WHEN p_type = 'step.failed' THEN p_step.retry_at END,
        'error', CASE WHEN f.failed THEN tasker.told_error(p_step.errors) END))
    FROM (SELECT p_type IN ('step.failed', 'step.dead') AS failed) AS f
    WHERE p_type <> 'step.enqueued';
END;

-- When.
CREATE FUNCTION tasker.step_time(p_step tasker.steps, p_type text) RETURNS timestamptz
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT CASE p_type WHEN 'step.enqueued' THEN p_step.enqueued_at WHEN 'step.failed' THEN (p_step.errors -> -1 ->> 'at')::timestamptz ELSE p_step.finished_at END;
END;

CREATE FUNCTION tasker.tell_new_steps() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_told text[];
BEGIN
    IF NOT EXISTS (SELECT FROM changed) THEN
        RETURN NULL;
    END IF;
    v_told := tasker.told_types();
    PERFORM tasker.tell(array_agg(k.task_id), array_agg(k.step), array_agg(k.type), array_agg(tasker.step_time(k.whole, k.type)), array_agg(tasker.step_facts(k.whole, k.type)))
    FROM (SELECT c.task_id, c.step, c::tasker.steps AS whole, tasker.step_event(c::tasker.steps, NULL) AS type FROM changed c) AS k
    WHERE k.type = ANY (v_told) HAVING count(*) > 0;
    RETURN NULL;
END
$$;

CREATE FUNCTION tasker.tell_steps() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_hashjoin = on SET enable_nestloop = off AS $$
DECLARE
    v_told text[];
BEGIN
    IF NOT EXISTS (SELECT FROM changed) THEN
        RETURN NULL;
    END IF;
    v_told := tasker.told_types();
    PERFORM tasker.tell(array_agg(k.task_id), array_agg(k.step), array_agg(k.type), array_agg(tasker.step_time(k.whole, k.type)), array_agg(tasker.step_facts(k.whole, k.type)))
    FROM (
        SELECT c.task_id, c.step, c::tasker.steps AS whole, tasker.step_event(c::tasker.steps, b.errors) AS type
        FROM changed c JOIN before b ON b.task_id = c.task_id AND b.step = c.step WHERE b.state <> c.state) AS k
    WHERE k.type = ANY (v_told) HAVING count(*) > 0;
    RETURN NULL;
END
$$;

-- A task was paused, or goes on; that of one that has ended is only cleared away.
CREATE FUNCTION tasker.tell_pause() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM tasker.tell(ARRAY[t.id], NULL, ARRAY[CASE WHEN NEW.resumed_at IS NULL THEN 'task.paused' ELSE 'task.resumed' END],
                        ARRAY[coalesce(NEW.resumed_at, NEW.since)], ARRAY[jsonb_build_object('who', NEW.who, 'why', NEW.why)])
    FROM tasker.tasks t WHERE t.id = NEW.task_id AND t.finished_at IS NULL;
    RETURN NULL;
END
$$;

CREATE FUNCTION tasker.tell_letter_action() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_type text := 'dead_letter.' || CASE NEW.action
        WHEN 'replay' THEN 'replayed' WHEN 'resolve' THEN 'resolved' WHEN 'skip' THEN 'skipped' WHEN 'discard' THEN 'discarded' ELSE 'purged' END;
BEGIN
    PERFORM tasker.tell(ARRAY[t.id], ARRAY[(SELECT ts.step FROM tasker.template_steps ts WHERE ts.version_id = t.version_id AND ts.name = NEW.step)],
                        ARRAY[v_type], ARRAY[NEW.at], ARRAY[jsonb_build_object('letter', NEW.letter, 'who', NEW.who, 'why', NEW.why)])
    FROM tasker.tasks t WHERE t.id = NEW.task_id;
    RETURN NULL;
END
$$;

CREATE FUNCTION tasker.tell_alert() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_type text := 'alert.' || CASE WHEN NEW.cleared_at IS NULL THEN 'raised' ELSE 'cleared' END;
BEGIN
    INSERT INTO tasker.outbox (type, at, namespace_id, template_id, data)
    SELECT v_type, coalesce(NEW.cleared_at, NEW.raised_at), n.id, tp.id,
           jsonb_strip_nulls(jsonb_build_object(
               'alert', NEW.id, 'step', nullif(NEW.step, ''), 'threshold', NEW.threshold, 'letters', NEW.letters,
               'subscription', nullif(NEW.subscription, ''), 'problem', NEW.problem))
    FROM (SELECT) AS one LEFT JOIN tasker.namespaces n ON n.name = NEW.namespace
    LEFT JOIN tasker.templates tp ON tp.namespace_id = n.id AND tp.name = NEW.template
    WHERE EXISTS (SELECT FROM tasker.subscriptions s WHERE tasker.is_wanted(s, v_type, n.name, tp.name, NULL));
    IF FOUND THEN
        PERFORM tasker.notify('tasker_events', '');
    END IF;
    RETURN NULL;
END
$$;

-- Dead letters were sent: of these steps, for these reasons.
CREATE FUNCTION tasker.tell_letters(p_tasks uuid[], p_steps smallint[], p_reasons text[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF 'dead_letter.created' = ANY (tasker.told_types()) THEN
        PERFORM tasker.tell(array_agg(s.task_id), array_agg(s.step), array_agg('dead_letter.created'::text), array_agg(s.finished_at), array_agg(
            jsonb_build_object('reason', d.reason, 'attempts', s.failures, 'error', tasker.told_error(s.errors))))
        FROM unnest(p_tasks, p_steps, p_reasons) AS d(task, step, reason) JOIN tasker.steps s ON s.task_id = d.task AND s.step = d.step;
    END IF;
END
$$;

-- The triggers by which things are told, each of them on a table.
CREATE FUNCTION tasker.watches() RETURNS TABLE (relation text, definition text)
LANGUAGE sql IMMUTABLE BEGIN ATOMIC
    VALUES ('tasks', 'AFTER UPDATE ON tasker.tasks REFERENCING OLD TABLE AS before NEW TABLE AS changed EXECUTE FUNCTION tasker.tell_tasks()'),
           ('tasks', 'AFTER INSERT ON tasker.tasks REFERENCING NEW TABLE AS changed EXECUTE FUNCTION tasker.tell_new_tasks()'),
           ('steps', 'AFTER UPDATE ON tasker.steps REFERENCING OLD TABLE AS before NEW TABLE AS changed EXECUTE FUNCTION tasker.tell_steps()'),
           ('steps', 'AFTER INSERT ON tasker.steps REFERENCING NEW TABLE AS changed EXECUTE FUNCTION tasker.tell_new_steps()'),
           ('pauses', 'AFTER INSERT ON tasker.pauses FOR EACH ROW WHEN (NEW.task_id IS NOT NULL) EXECUTE FUNCTION tasker.tell_pause()'),
           ('pauses', 'AFTER UPDATE OF resumed_at ON tasker.pauses FOR EACH ROW WHEN (NEW.task_id IS NOT NULL AND OLD.resumed_at IS NULL) EXECUTE FUNCTION tasker.tell_pause()'),
           ('dead_letter_actions', 'AFTER INSERT ON tasker.dead_letter_actions FOR EACH ROW EXECUTE FUNCTION tasker.tell_letter_action()'),
           ('alerts', 'AFTER INSERT ON tasker.alerts FOR EACH ROW EXECUTE FUNCTION tasker.tell_alert()'),
           ('alerts', 'AFTER UPDATE OF cleared_at ON tasker.alerts FOR EACH ROW WHEN (OLD.cleared_at IS DISTINCT FROM NEW.cleared_at) EXECUTE FUNCTION tasker.tell_alert()');
END;

-- The tables that have their triggers.
CREATE FUNCTION tasker.watched() RETURNS text[]
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT coalesce(array_agg(DISTINCT c.relname::text), '{}') FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
    WHERE c.relnamespace = 'tasker'::regnamespace AND t.tgname LIKE 'tell\_%';
END;

-- The tables that have no triggers yet, of those that need them.
CREATE FUNCTION tasker.unwatched() RETURNS SETOF text
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT DISTINCT w.relation FROM tasker.watches() AS w WHERE w.relation <> ALL (tasker.watched()) ORDER BY 1;
END;

-- Has what happens in a table told from now on. One at a time: whoever writes waits for this, and this for those who have written. It gives up after a
-- while (55P03), so that nobody waits for long.
-- Locks: the table against those who write to it.
CREATE FUNCTION tasker.watch(p_relation text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '500ms' AS $$
DECLARE
    v_definition text;
    v_n          int := 0;
BEGIN
    EXECUTE format('LOCK TABLE tasker.%I IN SHARE ROW EXCLUSIVE MODE', p_relation);
    IF p_relation = ANY (tasker.watched()) THEN
        RETURN;
    END IF;
    FOR v_definition IN SELECT w.definition FROM tasker.watches() AS w WHERE w.relation = p_relation LOOP
        v_n := v_n + 1;
        EXECUTE format('CREATE TRIGGER tell_%s %s', v_n, v_definition);
    END LOOP;
END
$$;

-- Has nothing told any more, where nobody has subscribed: takes the triggers of one table away. Returns whether there may be more to do. As watch, it gives up after a while.
-- Locks: the subscriptions against new ones; the table.
CREATE FUNCTION tasker.unwatch() RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '500ms' AS $$
DECLARE
    v_relation text := (tasker.watched())[1];
    v_name     text;
BEGIN
    IF v_relation IS NULL OR EXISTS (SELECT FROM tasker.subscriptions) THEN
        RETURN false;
    END IF;
    LOCK TABLE tasker.subscriptions IN SHARE ROW EXCLUSIVE MODE;
    IF EXISTS (SELECT FROM tasker.subscriptions) THEN
        RETURN false;
    END IF;
    FOR v_name IN
        SELECT t.tgname FROM pg_trigger t WHERE t.tgrelid = format('tasker.%I', v_relation)::regclass AND t.tgname LIKE 'tell\_%'
    LOOP
        EXECUTE format('DROP TRIGGER %I ON tasker.%I', v_name, v_relation);
    END LOOP;
    RETURN true;
END
$$;

-- Moves what is in the outbox, p_limit at most, to the events. Returns how many; null: somebody else is at it.
-- Locks: its turn.
CREATE FUNCTION tasker.order_events(p_limit int) RETURNS int
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_order    tasker.event_order;
    v_position bigint;
    v_taken    tid[];
    v_moved    int;
    v_last     bigint;
    v_last_id  bigint;
    v_seen     bigint;
    v_ongoing  text[];
BEGIN
    IF NOT tasker.take_turn('tasker.turn_events') THEN
        RETURN NULL;
    END IF;
    SELECT * INTO v_order FROM tasker.event_order;
    -- Before the outbox is read: what those have written that have ended by now is seen.
    v_ongoing := tasker.ongoing();
    v_seen := coalesce(pg_sequence_last_value(pg_get_serial_sequence('tasker.outbox', 'id')::regclass), 0);
    v_taken := ARRAY(SELECT o.ctid FROM tasker.outbox o WHERE o.id >= v_order.mark ORDER BY o.id LIMIT p_limit);
    IF v_taken = '{}' AND v_seen < v_order.mark THEN
        RETURN 0;
    END IF;
    v_position := greatest(v_order.position, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint);
    WITH taken AS (
        DELETE FROM tasker.outbox o WHERE o.ctid = ANY (v_taken) RETURNING o.*
    ), placed AS MATERIALIZED (
        SELECT k.*, v_position + row_number() OVER (ORDER BY k.id) AS position FROM taken k
    ), moved AS (
        INSERT INTO tasker.events (lane, position, type, at, task_id, step, namespace, template, tags, trace, data)
        SELECT tasker.lane_of(p.task_id), p.position, p.type, p.at, p.task_id, ts.name, n.name, tp.name, t.tags, t.trace ->> 'traceparent',
               coalesce(p.data, '{}') || CASE WHEN t.key IS NULL THEN '{}' ELSE jsonb_build_object('key', t.key) END
        FROM placed p
        LEFT JOIN LATERAL (SELECT * FROM tasker.tasks WHERE id = p.task_id OFFSET 0) AS t ON true
        LEFT JOIN LATERAL (SELECT * FROM tasker.template_steps WHERE version_id = t.version_id AND step = p.step OFFSET 0) AS ts ON true
        LEFT JOIN LATERAL (SELECT * FROM tasker.namespaces WHERE id = p.namespace_id OFFSET 0) AS n ON true
        LEFT JOIN LATERAL (SELECT * FROM tasker.templates WHERE id = p.template_id OFFSET 0) AS tp ON true
        RETURNING position
    )
    SELECT (SELECT count(*) FROM moved), (SELECT max(m.position) FROM moved m), (SELECT max(p.id) FROM placed p) INTO v_moved, v_last, v_last_id;
    UPDATE tasker.event_order o SET position = coalesce(v_last, o.position);
    IF NOT v_order.writers && v_ongoing THEN
        -- After it was read: whoever had written then, and was not seen, is among them.
        UPDATE tasker.event_order o
        SET mark = least(o.next, CASE WHEN v_moved = p_limit THEN v_last_id + 1 END), next = v_seen + 1, writers = tasker.writers_of('{tasker.outbox}');
    END IF;
    IF v_moved > 0 THEN
        PERFORM tasker.notify('tasker_deliveries', '');
    END IF;
    RETURN v_moved;
END
$$;
