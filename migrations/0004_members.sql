-- Membership: every orchestrator and worker that is running, or was.
-- A membership is a lease, and its id is the fence: who lost it registers again and gets another id.

CREATE TABLE tasker.members (
    id           int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind         text NOT NULL CHECK (kind IN ('orchestrator', 'worker')),
    name         text NOT NULL,
    version      text NOT NULL,
    -- empty: all of them
    namespaces   text[] NOT NULL,
    -- who joined, and alone may renew it and leave
    role         name NOT NULL DEFAULT session_user,
    started_at   timestamptz NOT NULL DEFAULT now(),
    heartbeat_at timestamptz NOT NULL DEFAULT now(),
    lease_until  timestamptz NOT NULL,
    -- set by a clean leave, or by whoever notices that the lease ran out
    left_at      timestamptz,
    -- what it last said of itself: memory, connections, room
    report       jsonb,
    -- which process it is: after a past that was lost, its id may have been given to another
    proof        uuid
) WITH (fillfactor = 50);
CREATE INDEX members_present ON tasker.members (id) WHERE left_at IS NULL;

-- What workers did, every ten seconds: for rates, not for accounts. What a killed worker did since its last heartbeat is missing.
CREATE TABLE tasker.activity (
    at           timestamptz,
    namespace_id int REFERENCES tasker.namespaces,
    member       int,
    completed    bigint NOT NULL,
    failed       bigint NOT NULL,
    -- for how long handlers had them, in seconds
    seconds      float8 NOT NULL DEFAULT 0,
    PRIMARY KEY (at, namespace_id, member)
);

-- The kinds of step that a worker was found to have no handler for, and when it last said so (see 0024_unhandled.sql).
CREATE TABLE tasker.unable (
    version_id int,
    step       smallint,
    member     int REFERENCES tasker.members ON DELETE CASCADE,
    at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (version_id, step, member)
);
CREATE INDEX unable_member ON tasker.unable (member);

-- Those that no worker has a handler for, whose steps are held back. found: one has by now, and they are being freed.
CREATE TABLE tasker.unhandled (
    version_id int,
    step       smallint,
    queue      text NOT NULL,
    found      boolean NOT NULL DEFAULT false,
    since      timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (version_id, step)
);

-- Errors: TK008 for a role that may not be this.
CREATE FUNCTION tasker.join_members(
    p_kind text, p_name text, p_version text, p_namespaces text[], p_lease interval, p_proof uuid DEFAULT NULL
) RETURNS int
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_id int;
BEGIN
    IF p_kind = 'worker' THEN
        PERFORM tasker.check_worker(p_namespaces);
    ELSIF NOT tasker.is_one_of('{tasker_operate}') THEN
        RAISE EXCEPTION 'the role % may not be an orchestrator', session_user USING ERRCODE = 'TK008', HINT = 'GRANT tasker_operate TO it';
    END IF;
    INSERT INTO tasker.members (kind, name, version, namespaces, lease_until, proof)
    VALUES (p_kind, p_name, p_version, p_namespaces, clock_timestamp() + p_lease, p_proof)
    RETURNING id INTO v_id;
    IF p_kind = 'worker' THEN
        PERFORM tasker.wake_namespaces(ARRAY(SELECT n.id FROM tasker.namespaces n WHERE n.name = ANY (p_namespaces)));
    END IF;
    RETURN v_id;
END
$$;

-- The rank of a member among those of its kind, for each of its namespaces ("": those that are for all): how many were there before it, and how many there
-- are; null: it is not there.
CREATE FUNCTION tasker.ranks_of(p_member int) RETURNS jsonb
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT jsonb_object_agg(p.namespace, jsonb_build_array(p.rank, p.members)) FROM (
        SELECT o.namespace, count(*) FILTER (WHERE m.id < p_member) AS rank, count(*) AS members
        FROM tasker.members own
        JOIN tasker.members m ON m.left_at IS NULL AND m.kind = own.kind AND m.lease_until > clock_timestamp()
        CROSS JOIN LATERAL unnest(CASE WHEN m.namespaces = '{}' THEN '{""}' ELSE m.namespaces END) AS o(namespace)
        WHERE own.id = p_member AND (o.namespace = ANY (own.namespaces) OR o.namespace = '' AND own.namespaces = '{}')
        GROUP BY o.namespace) AS p;
END;

-- Renews a membership, and takes down what the member says of itself, and did since it last said so:
-- p_activity is {namespace: {completed, failed, seconds}}. Returns what is missing beside it (see lacking, 0020_capacity.sql).
-- Not held: the membership was lost; nothing was renewed. ranks: see ranks_of.
CREATE FUNCTION tasker.renew_membership(
    p_id int, p_lease interval, p_report jsonb DEFAULT NULL, p_activity jsonb DEFAULT NULL, p_proof uuid DEFAULT NULL, OUT held boolean, OUT lacks jsonb,
    OUT ranks jsonb)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    WITH renewed AS (
        UPDATE tasker.members SET heartbeat_at = clock_timestamp(), lease_until = clock_timestamp() + p_lease, report = coalesce(p_report, report)
        WHERE id = p_id AND proof IS NOT DISTINCT FROM p_proof AND role = session_user AND left_at IS NULL AND lease_until > clock_timestamp()
        RETURNING id, namespaces
    ), noted AS (
        INSERT INTO tasker.activity AS a (at, namespace_id, member, completed, failed, seconds)
        SELECT date_bin('10 s', clock_timestamp(), 'epoch'), n.id, r.id, (e.value ->> 'completed')::bigint, (e.value ->> 'failed')::bigint,
               coalesce((e.value ->> 'seconds')::float8, 0)
        FROM renewed r, jsonb_each(p_activity) AS e JOIN tasker.namespaces n ON n.name = e.key
        WHERE e.key = ANY (r.namespaces)
        ON CONFLICT (at, namespace_id, member) DO UPDATE SET completed = a.completed + excluded.completed, failed = a.failed + excluded.failed,
                                                              seconds = a.seconds + excluded.seconds
    )
    SELECT EXISTS (SELECT 1 FROM renewed) INTO held;
    IF held THEN
        lacks := tasker.lacking(p_id);
        ranks := tasker.ranks_of(p_id);
    END IF;
END
$$;

-- Nobody asks for rates over more than fifteen minutes.
CREATE FUNCTION tasker.forget_activity() RETURNS void
LANGUAGE sql BEGIN ATOMIC
    DELETE FROM tasker.activity WHERE at < clock_timestamp() - interval '20 minutes';
END;

CREATE FUNCTION tasker.leave_members(p_id int, p_proof uuid DEFAULT NULL) RETURNS void
LANGUAGE sql BEGIN ATOMIC
    UPDATE tasker.members SET left_at = clock_timestamp()
    WHERE id = p_id AND proof IS NOT DISTINCT FROM p_proof AND role = session_user AND left_at IS NULL;
END;

-- Forgets members that left so long ago that nobody asks who it was. Returns how many.
CREATE FUNCTION tasker.forget_members(p_since interval) RETURNS bigint
LANGUAGE sql BEGIN ATOMIC
    WITH gone AS (DELETE FROM tasker.members WHERE left_at < clock_timestamp() - p_since RETURNING 1)
    SELECT count(*) FROM gone;
END;

-- Marks the members whose lease ran out and names them.
-- Locks: the members it marks, skipping those that another orchestrator is marking.
CREATE FUNCTION tasker.expire_members() RETURNS TABLE (id int, kind text, name text)
LANGUAGE sql BEGIN ATOMIC
    UPDATE tasker.members m SET left_at = clock_timestamp()
    WHERE m.id IN (
        SELECT e.id FROM tasker.members e WHERE e.left_at IS NULL AND e.lease_until <= clock_timestamp()
        FOR UPDATE SKIP LOCKED)
    RETURNING m.id, m.kind, m.name;
END;
