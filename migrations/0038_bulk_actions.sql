-- What is done in the background to all tasks that a filter lets through: orchestrators take a slice at a time, the newest tasks first, so that it goes on
-- when one of them dies. Each verb does nothing to a task to which it was done already, so a slice may be done again.

CREATE TABLE tasker.bulk_actions (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- as find_tasks has it, and {verb, ...} as src/engine/bulk.rs has it
    filter      jsonb NOT NULL,
    action      jsonb NOT NULL,
    -- how many tasks a second; null: as fast as it goes
    per_second  float8 CHECK (per_second > 0),
    who         text NOT NULL,
    why         text,
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- the tasks before this one are left: at first, those that were there when it began
    before      uuid NOT NULL,
    -- how many were found, and to how many it was done
    found       bigint NOT NULL DEFAULT 0,
    done        bigint NOT NULL DEFAULT 0,
    -- Nobody else takes a slice until then.
    taken_until timestamptz NOT NULL DEFAULT '-infinity',
    finished_at timestamptz,
    -- why it ended before all were looked at
    stopped_by  text,
    error       text
);
CREATE INDEX bulk_actions_open ON tasker.bulk_actions (id) WHERE finished_at IS NULL;

CREATE FUNCTION tasker.begin_bulk_action(p_filter jsonb, p_action jsonb, p_per_second float8, p_who text, p_why text) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_id bigint;
BEGIN
    INSERT INTO tasker.bulk_actions (filter, action, per_second, who, why, before)
    VALUES (p_filter - 'before', p_action, p_per_second, p_who, p_why,
            -- Ids begin with their milliseconds.
            (lpad(to_hex((extract(epoch FROM clock_timestamp()) * 1000)::bigint + 1), 12, '0') || repeat('0', 20))::uuid)
    RETURNING id INTO v_id;
    PERFORM tasker.notify('tasker_bulk_actions', '');
    RETURN v_id;
END
$$;

-- The first that nobody is at, as {id, filter, action, before, limit: how many of the tasks to take}, for p_for. Where all of them rest, or are somebody's,
-- {rest: for how many seconds}; null: there is none.
CREATE FUNCTION tasker.take_bulk_action(p_for interval) RETURNS jsonb
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_taken jsonb;
BEGIN
    UPDATE tasker.bulk_actions b SET taken_until = clock_timestamp() + p_for
    WHERE b.id = (SELECT o.id FROM tasker.bulk_actions o WHERE o.finished_at IS NULL AND o.taken_until <= clock_timestamp()
                  ORDER BY o.id LIMIT 1 FOR UPDATE SKIP LOCKED)
    RETURNING jsonb_build_object('id', b.id, 'filter', b.filter || jsonb_build_object('before', b.before), 'action', b.action, 'before', b.before,
                                 'limit', least(200, greatest(1, floor(coalesce(b.per_second, 200)))))
    INTO v_taken;
    RETURN coalesce(v_taken, (
        SELECT jsonb_build_object('rest', greatest(0.01, extract(epoch FROM min(b.taken_until) - clock_timestamp())))
        FROM tasker.bulk_actions b WHERE b.finished_at IS NULL HAVING count(*) > 0));
END
$$;

-- A slice of p_found tasks is done: it goes on before p_next (null: it is over), unless somebody else has done the same meanwhile.
CREATE FUNCTION tasker.advance_bulk_action(p_id bigint, p_from uuid, p_next uuid, p_found int, p_done int) RETURNS void
LANGUAGE sql BEGIN ATOMIC
    UPDATE tasker.bulk_actions b
    SET before = coalesce(p_next, b.before), found = b.found + p_found, done = b.done + p_done,
        taken_until = CASE WHEN b.per_second IS NULL THEN '-infinity' ELSE clock_timestamp() + p_found / b.per_second * interval '1 second' END,
        finished_at = CASE WHEN p_next IS NULL THEN clock_timestamp() END
    WHERE b.id = p_id AND b.before = p_from AND b.finished_at IS NULL;
END;

-- It ends where it is: with an error, or since somebody said so. False: it had ended.
CREATE FUNCTION tasker.stop_bulk_action(p_id bigint, p_who text, p_error text) RETURNS boolean
LANGUAGE sql BEGIN ATOMIC
    WITH stopped AS (
        UPDATE tasker.bulk_actions b SET finished_at = clock_timestamp(), stopped_by = p_who, error = p_error
        WHERE b.id = p_id AND b.finished_at IS NULL RETURNING b.id)
    SELECT EXISTS (SELECT FROM stopped);
END;

-- The newest first, those before p_before (null: all); or one of them.
CREATE FUNCTION tasker.list_bulk_actions(p_before bigint, p_limit int, p_id bigint DEFAULT NULL) RETURNS SETOF jsonb
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT to_jsonb(b) - 'taken_until' - 'before' || jsonb_build_object('state', CASE
        WHEN b.finished_at IS NULL THEN 'running' WHEN b.error IS NOT NULL THEN 'failed' WHEN b.stopped_by IS NOT NULL THEN 'stopped' ELSE 'complete' END)
    FROM tasker.bulk_actions b
    WHERE (p_before IS NULL OR b.id < p_before) AND (p_id IS NULL OR b.id = p_id) ORDER BY b.id DESC LIMIT p_limit;
END;

CREATE FUNCTION tasker.forget_bulk_actions(p_age interval) RETURNS void
LANGUAGE sql BEGIN ATOMIC DELETE FROM tasker.bulk_actions b WHERE b.finished_at < clock_timestamp() - p_age; END;
