-- Namespaces: who a step belongs to, and so which pgmq queue it travels through.
--
-- Every function of the engine is set-based and is called with a batch. The lock order, everywhere:
-- tasks (in id order), then messages, then steps. Where a function takes them otherwise it says why that is safe.

CREATE TYPE tasker.task_state AS ENUM
    ('pending', 'running', 'waiting', 'blocked', 'complete', 'failed', 'cancelling', 'cancelled', 'discarded', 'paused', 'undoing');
CREATE TYPE tasker.step_state AS ENUM
    ('pending', 'enqueued', 'in_progress', 'waiting_retry', 'waiting', 'complete', 'dead', 'cancelling', 'cancelled', 'discarded', 'skipped');

-- Which installation this is: how a client tells whether another connection leads to the same one.
CREATE TABLE tasker.installation (id uuid NOT NULL DEFAULT gen_random_uuid());
INSERT INTO tasker.installation DEFAULT VALUES;

-- pgmq allows queue names of 47 characters; '<name>_queue_dlq' must fit.
CREATE TABLE tasker.namespaces (
    id         int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name       text NOT NULL UNIQUE CHECK (name ~ '^[a-z][a-z0-9_]{0,36}$'),
    queue      text NOT NULL UNIQUE GENERATED ALWAYS AS (name || '_queue') STORED,
    created_at timestamptz NOT NULL DEFAULT now(),
    -- The rules of its steps where neither the step nor its template says otherwise: those of tasker.rules.
    max_attempts    int NOT NULL,
    backoff         text NOT NULL CHECK (backoff IN ('fixed', 'linear', 'exponential')),
    multiplier      float8 NOT NULL CHECK (multiplier BETWEEN 1 AND 100),
    base_seconds    float8 NOT NULL CHECK (base_seconds > 0),
    max_seconds     float8 NOT NULL CHECK (max_seconds > 0),
    jitter          float8 NOT NULL CHECK (jitter BETWEEN 0 AND 1),
    -- null: dead letters are kept for ever, and raise no alert
    retention_days  int CHECK (retention_days BETWEEN 1 AND 36500),
    alert_threshold int CHECK (alert_threshold > 0),
    -- null: tasks that have ended are kept for ever (see 0039_history.sql)
    history_seconds float8 CHECK (history_seconds > 0),
    -- null: the orchestrators' own
    queue_target    int CHECK (queue_target > 0),
    -- null: no backlog, and no age of the first of it, is too much (see 0023_backpressure.sql)
    depth_warning        int CHECK (depth_warning > 0),
    depth_critical       int CHECK (depth_critical > 0),
    age_warning_seconds  float8 CHECK (age_warning_seconds > 0),
    age_critical_seconds float8 CHECK (age_critical_seconds > 0),
    throttle_new_tasks   text NOT NULL CHECK (throttle_new_tasks IN ('hold', 'refuse', 'wait')),
    throttle_wait_seconds float8 NOT NULL CHECK (throttle_wait_seconds BETWEEN 0 AND 60),
    shed_low_priority    boolean NOT NULL,
    -- how it is, since when, and how many tasks a second leave it
    pressure        text NOT NULL DEFAULT 'normal' CHECK (pressure IN ('normal', 'warning', 'critical')),
    pressure_since  timestamptz NOT NULL DEFAULT now(),
    drain_rate      float8 NOT NULL DEFAULT 0,
    -- the number of the shard where its tasks are created; null: where tasker.yml has it (see 0040_moves.sql)
    lives_in        int,
    -- the other one that has tasks of it, or is about to; null: none
    also_in         int
);

-- Whether the session may do what members of these roles may: it is one, or the owner of this schema, as whom what it calls runs (0041_roles.sql).
CREATE FUNCTION tasker.is_one_of(p_roles text[]) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF pg_has_role(session_user, current_user, 'MEMBER') THEN
        RETURN true;
    END IF;
    RETURN EXISTS (SELECT FROM pg_roles r WHERE r.rolname = ANY (p_roles) AND pg_has_role(session_user, r.oid, 'MEMBER'));
END
$$;

-- Errors with TK008 unless the session may work for these namespaces: for all, or for each of them.
CREATE FUNCTION tasker.check_worker(p_namespaces text[]) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_other text;
BEGIN
    IF NOT tasker.is_one_of('{tasker_worker, tasker_operate}') THEN
        SELECT n.name INTO v_other FROM unnest(p_namespaces) AS n(name) WHERE NOT tasker.is_one_of(ARRAY['tasker_worker_of_' || n.name]) LIMIT 1;
        IF FOUND THEN
            RAISE EXCEPTION 'the role % may not work for the namespace %', session_user, v_other
                USING ERRCODE = 'TK008', HINT = format('tasker migrate --roles --worker %1$s; then GRANT tasker_worker_of_%1$s TO it', v_other);
        END IF;
    END IF;
END
$$;

-- What one session does at a time, for all. Whoever does it locks the table of its name, which has nothing in it: an advisory lock could be taken by
-- anybody who may connect, and a row's would write.
CREATE TABLE tasker.turn_namespaces ();
CREATE TABLE tasker.turn_permits ();
CREATE TABLE tasker.turn_marks ();
CREATE TABLE tasker.turn_traffic ();
CREATE TABLE tasker.turn_alerts ();
CREATE TABLE tasker.turn_events ();
CREATE TABLE tasker.turn_reconcile ();
CREATE TABLE tasker.turn_signals ();

-- Waits until it is the caller's turn, which lasts until its transaction ends.
CREATE FUNCTION tasker.await_turn(p_table regclass) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE format('LOCK TABLE %s IN SHARE UPDATE EXCLUSIVE MODE', p_table);
END
$$;

-- False: it is somebody else's.
CREATE FUNCTION tasker.take_turn(p_table regclass) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE format('LOCK TABLE %s IN SHARE UPDATE EXCLUSIVE MODE NOWAIT', p_table);
    RETURN true;
EXCEPTION WHEN lock_not_available THEN
    RETURN false;
END
$$;

-- A length of time as the library's JSON writes it: {"secs": 1, "nanos": 500000000}; null for none.
CREATE FUNCTION tasker.duration(p_json jsonb) RETURNS interval
LANGUAGE sql IMMUTABLE BEGIN ATOMIC
    SELECT ((p_json ->> 'secs')::float8 + (p_json ->> 'nanos')::float8 / 1e9) * interval '1 second';
END;

-- What went wrong without losing anything: stale reports, stale messages, foreign messages. Rare, so one row each is no contention.
CREATE TABLE tasker.counters (
    name  text PRIMARY KEY,
    value bigint NOT NULL DEFAULT 0
);

CREATE FUNCTION tasker.count_event(p_name text, p_by bigint) RETURNS void
LANGUAGE sql BEGIN ATOMIC
    INSERT INTO tasker.counters AS c (name, value) SELECT p_name, p_by WHERE p_by > 0
    ON CONFLICT (name) DO UPDATE SET value = c.value + excluded.value;
END;

-- Whether PostgreSQL's queue of notifications fills up, because a session that listens does not take them (a transaction of hours). When
-- it is full, every transaction that notifies fails.
CREATE FUNCTION tasker.notifications_are_stuck() RETURNS boolean
LANGUAGE sql BEGIN ATOMIC SELECT pg_notification_queue_usage() > 0.5; END;

-- Wakes those who listen, once the transaction commits. They poll as well, so this may be left out: it is, while notifications are stuck.
CREATE FUNCTION tasker.notify(p_channel text, p_payload text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT tasker.notifications_are_stuck() THEN
        PERFORM pg_notify(p_channel, p_payload);
    END IF;
END
$$;

-- The same to as many of those who listen as there is something for, p_count: the payload says which of them are called (src/engine/peers.rs), by a number
-- that is another each time.
CREATE FUNCTION tasker.call(p_channel text, p_payload text, p_count bigint) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM tasker.notify(p_channel, p_payload || ' ' || (random() * 2147483647)::int || ' ' || p_count);
END
$$;

-- Makes a queue, its dead-letter queue, and the functions of its own, as far as they are missing.
CREATE FUNCTION tasker.make_queue(p_queue text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_table text := pgmq.format_table_name(p_queue, 'q');
    v_letters text := pgmq.format_table_name(p_queue || '_dlq', 'q');
    v_new   boolean := to_regclass(format('pgmq.%I', v_letters)) IS NULL;
BEGIN
    PERFORM pgmq.create(p_queue), pgmq.create(p_queue || '_dlq');
    -- The number of a letter says in which shard it is.
    IF v_new AND tasker.shard() > 0 THEN
        EXECUTE format('ALTER TABLE pgmq.%I ALTER COLUMN msg_id RESTART WITH %s', v_letters, tasker.shard() * 1000000000000 + 1);
    END IF;
    -- A lease rewrites vt. Without pgmq's index on it (reads walk the primary key) and with room on the page,
    -- that rewrite is a HOT update: no index entry, no bloat.
    EXECUTE format('DROP INDEX IF EXISTS pgmq.%I', v_table || '_vt_idx');
    EXECUTE format('ALTER TABLE pgmq.%I SET (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.0, '
                   'autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0)', v_table);
    -- By which letters are listed.
    EXECUTE format('CREATE INDEX IF NOT EXISTS %I ON pgmq.%I (enqueued_at, msg_id)', v_letters || '_died_idx', v_letters);
    PERFORM tasker.make_queue_functions(p_queue);
END
$$;

-- Creates the namespaces that are missing, each with its queue and its dead-letter queue.
-- Errors, before anything was done (an id that is given out is gone for good): TK003 for what cannot be a name; TK008 where the role may not make
-- queues, or not work for these.
-- Locks: its turn, so that processes starting together do not race.
CREATE FUNCTION tasker.ensure_namespaces(p_names text[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_queue text;
    v_bad   text;
BEGIN
    PERFORM tasker.check_worker(p_names);
    IF NOT EXISTS (SELECT 1 FROM unnest(p_names) AS n(name) LEFT JOIN tasker.namespaces ns USING (name) WHERE ns.id IS NULL) THEN
        RETURN;
    END IF;
    SELECT n.name INTO v_bad FROM unnest(p_names) AS n(name) WHERE n.name ~ '^[a-z][a-z0-9_]{0,36}$' IS NOT TRUE LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION '% cannot be the name of a namespace', coalesce(quote_literal(v_bad), 'null')
            USING ERRCODE = 'TK003', HINT = 'a name has at most 37 characters, a to z, 0 to 9 and _, and begins with a letter';
    END IF;
    IF NOT (has_schema_privilege('pgmq', 'CREATE') AND has_schema_privilege('tasker', 'CREATE')) THEN
        RAISE EXCEPTION 'the role % may not make the queues of new namespaces (%)', current_user, array_to_string(p_names, ', ')
            USING ERRCODE = 'TK008', HINT = 'let a role that may run: tasker namespace create NAME; '
                                            'or grant this one CREATE on the schemas pgmq and tasker, and what it needs on pgmq.meta';
    END IF;
    PERFORM tasker.await_turn('tasker.turn_namespaces');
    FOR v_queue IN
        INSERT INTO tasker.namespaces (name, max_attempts, backoff, multiplier, base_seconds, max_seconds, jitter, retention_days, alert_threshold,
                                       history_seconds, queue_target, depth_warning, depth_critical, age_warning_seconds, age_critical_seconds,
                                       throttle_new_tasks, throttle_wait_seconds, shed_low_priority)
        SELECT n.name, r.*
        FROM (SELECT DISTINCT name FROM unnest(p_names) AS u(name)) AS n, tasker.rules(n.name) AS r
        WHERE NOT EXISTS (SELECT 1 FROM tasker.namespaces ns WHERE ns.name = n.name)
        ORDER BY n.name
        RETURNING queue
    LOOP
        PERFORM tasker.make_queue(v_queue);
        INSERT INTO tasker.marks (namespace_id) SELECT ns.id FROM tasker.namespaces ns WHERE ns.queue = v_queue;
    END LOOP;
END
$$;

CREATE FUNCTION tasker.list_namespaces() RETURNS SETOF jsonb
LANGUAGE sql STABLE BEGIN ATOMIC SELECT to_jsonb(n) - '{id,lives_in,also_in}'::text[] FROM tasker.namespaces n ORDER BY n.name; END;
