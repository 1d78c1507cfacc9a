-- Membership: every orchestrator and worker that is running, or was.
-- A membership is a lease, and its id is the fence: who lost it registers again and gets another id.

CREATE TABLE tasker.members (
    id           int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind         text NOT NULL CHECK (kind IN ('orchestrator', 'worker')),
    name         text NOT NULL,
    version      text NOT NULL,
    -- empty: all of them
    namespaces   text[] NOT NULL,
    started_at   timestamptz NOT NULL DEFAULT now(),
    heartbeat_at timestamptz NOT NULL DEFAULT now(),
    lease_until  timestamptz NOT NULL,
    -- set by a clean leave, or by whoever notices that the lease ran out
    left_at      timestamptz
) WITH (fillfactor = 50);

CREATE FUNCTION tasker.join_members(p_kind text, p_name text, p_version text, p_namespaces text[], p_lease interval) RETURNS int
LANGUAGE sql AS $$
    INSERT INTO tasker.members (kind, name, version, namespaces, lease_until)
    VALUES (p_kind, p_name, p_version, p_namespaces, clock_timestamp() + p_lease)
    RETURNING id
$$;

-- False: the membership was lost; nothing was renewed.
CREATE FUNCTION tasker.renew_membership(p_id int, p_lease interval) RETURNS boolean
LANGUAGE sql AS $$
    WITH renewed AS (
        UPDATE tasker.members SET heartbeat_at = clock_timestamp(), lease_until = clock_timestamp() + p_lease
        WHERE id = p_id AND left_at IS NULL AND lease_until > clock_timestamp()
        RETURNING 1
    )
    SELECT EXISTS (SELECT 1 FROM renewed)
$$;

CREATE FUNCTION tasker.leave_members(p_id int) RETURNS void
LANGUAGE sql AS $$
    UPDATE tasker.members SET left_at = clock_timestamp() WHERE id = p_id AND left_at IS NULL
$$;

-- Marks the members whose lease ran out and names them.
-- Locks: the members it marks, skipping those that another orchestrator is marking.
CREATE FUNCTION tasker.expire_members() RETURNS TABLE (id int, kind text, name text)
LANGUAGE sql AS $$
    UPDATE tasker.members m SET left_at = clock_timestamp()
    WHERE m.id IN (
        SELECT e.id FROM tasker.members e WHERE e.left_at IS NULL AND e.lease_until <= clock_timestamp()
        FOR UPDATE SKIP LOCKED)
    RETURNING m.id, m.kind, m.name
$$;
