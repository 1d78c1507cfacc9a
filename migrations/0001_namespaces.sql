-- Namespaces: who a step belongs to, and so which pgmq queue it travels through.
--
-- Every function of the engine is set-based and is called with a batch. The lock order, everywhere:
-- tasks (in id order), then messages, then steps. Where a function takes them otherwise it says why that is safe.

CREATE TYPE tasker.task_state AS ENUM
    ('pending', 'running', 'waiting', 'blocked', 'complete', 'failed', 'cancelled', 'paused');
CREATE TYPE tasker.step_state AS ENUM
    ('pending', 'enqueued', 'in_progress', 'waiting_retry', 'complete', 'dead', 'cancelled', 'skipped');

-- pgmq allows queue names of 47 characters; '<name>_queue_dlq' must fit.
CREATE TABLE tasker.namespaces (
    id         smallint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name       text NOT NULL UNIQUE CHECK (name ~ '^[a-z][a-z0-9_]{0,36}$'),
    queue      text NOT NULL GENERATED ALWAYS AS (name || '_queue') STORED,
    created_at timestamptz NOT NULL DEFAULT now()
);

-- What went wrong without losing anything: stale reports, stale messages, foreign messages. Rare, so one row each is no contention.
CREATE TABLE tasker.counters (
    name  text PRIMARY KEY,
    value bigint NOT NULL DEFAULT 0
);

CREATE FUNCTION tasker.count_event(p_name text, p_by bigint) RETURNS void
LANGUAGE sql AS $$
    INSERT INTO tasker.counters AS c (name, value) SELECT p_name, p_by WHERE p_by > 0
    ON CONFLICT (name) DO UPDATE SET value = c.value + excluded.value;
$$;

-- Creates the namespaces that are missing, each with its queue and its dead-letter queue.
-- Locks: an advisory lock for the transaction, so that processes starting together do not race.
CREATE FUNCTION tasker.ensure_namespaces(p_names text[]) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    v_queue text;
BEGIN
    IF NOT EXISTS (SELECT 1 FROM unnest(p_names) AS n(name) LEFT JOIN tasker.namespaces ns USING (name) WHERE ns.id IS NULL) THEN
        RETURN;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('tasker.namespaces'));
    FOR v_queue IN
        INSERT INTO tasker.namespaces (name)
        SELECT DISTINCT n.name FROM unnest(p_names) AS n(name)
        WHERE NOT EXISTS (SELECT 1 FROM tasker.namespaces ns WHERE ns.name = n.name)
        ORDER BY n.name
        RETURNING queue
    LOOP
        PERFORM pgmq.create(v_queue), pgmq.create(v_queue || '_dlq');
        -- A lease rewrites vt. Without pgmq's index on it (reads walk the primary key) and with room on the page,
        -- that rewrite is a HOT update: no index entry, no bloat.
        EXECUTE format('DROP INDEX IF EXISTS pgmq.%I', pgmq.format_table_name(v_queue, 'q') || '_vt_idx');
        EXECUTE format('ALTER TABLE pgmq.%I SET (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.0, '
                       'autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0)',
                       pgmq.format_table_name(v_queue, 'q'));
    END LOOP;
END
$$;
