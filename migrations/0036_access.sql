-- Access: the tokens by which the API knows who asks, and the record of all that anybody changed through it. docs/api.md has what each role may do.

-- A token is 32 random bytes, which nobody finds by trying; only their SHA-256 is kept.
CREATE TABLE tasker.tokens (
    id           int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name         text NOT NULL CHECK (length(name) BETWEEN 1 AND 100),
    digest       bytea NOT NULL UNIQUE,
    role         text NOT NULL CHECK (role IN ('reader', 'submitter', 'operator', 'admin')),
    -- whose tasks a submitter may create, and signal; null: all
    namespaces   text[],
    created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    created_by   text NOT NULL,
    expires_at   timestamptz,
    -- as of some minute
    last_used_at timestamptz,
    revoked_at   timestamptz,
    revoked_by   text
);
CREATE UNIQUE INDEX tokens_name ON tasker.tokens (name) WHERE revoked_at IS NULL;

-- What somebody has changed, or tried to.
CREATE TABLE tasker.audit (
    id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    who     text NOT NULL,
    -- api, web or cli; and from which address
    via     text NOT NULL,
    address inet,
    -- such as task.cancel, and of what: a task's id, a template, a token …
    action  text NOT NULL,
    object  text,
    why     text,
    details jsonb,
    -- null: it is under way, or nobody knows what became of it; an error's text where it was refused
    done    boolean,
    error   text
);
CREATE INDEX audit_object ON tasker.audit (object, id) WHERE object IS NOT NULL;
CREATE INDEX audit_who ON tasker.audit (who, id);

-- Errors: TK004 bad argument, or a token of that name exists.
CREATE FUNCTION tasker.create_token(p_name text, p_digest bytea, p_role text, p_namespaces text[], p_expires_at timestamptz, p_who text) RETURNS int
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_id  int;
    v_bad text := CASE
        WHEN p_name IS NULL OR length(p_name) NOT BETWEEN 1 AND 100 THEN 'the name of a token must have 1 to 100 characters'
        WHEN p_role IS NULL OR p_role NOT IN ('reader', 'submitter', 'operator', 'admin')
            THEN 'the role ' || coalesce(p_role, '') || ' is unknown: expected reader, submitter, operator or admin'
        WHEN p_namespaces IS NOT NULL AND p_role <> 'submitter' THEN 'only a submitter is one of some namespaces'
        WHEN p_expires_at <= clock_timestamp() THEN 'the token would have expired already' END;
BEGIN
    IF v_bad IS NOT NULL THEN
        RAISE EXCEPTION '%', v_bad USING ERRCODE = 'TK004';
    END IF;
    INSERT INTO tasker.tokens (name, digest, role, namespaces, expires_at, created_by)
    VALUES (p_name, p_digest, p_role, p_namespaces, p_expires_at, p_who)
    ON CONFLICT (name) WHERE revoked_at IS NULL DO NOTHING RETURNING id INTO v_id;
    IF v_id IS NULL THEN
        RAISE EXCEPTION 'there is a token named %', p_name USING ERRCODE = 'TK004', HINT = 'revoke it first, or choose another name';
    END IF;
    RETURN v_id;
END
$$;

-- Returns whether there was one.
CREATE FUNCTION tasker.revoke_token(p_name text, p_who text) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    UPDATE tasker.tokens t SET revoked_at = clock_timestamp(), revoked_by = p_who WHERE t.name = p_name AND t.revoked_at IS NULL;
    RETURN FOUND;
END
$$;

-- Whose token this is, if it counts; that it was used is noted once a minute.
CREATE FUNCTION tasker.find_token(p_digest bytea) RETURNS jsonb
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_token tasker.tokens;
BEGIN
    SELECT * INTO v_token FROM tasker.tokens t
    WHERE t.digest = p_digest AND t.revoked_at IS NULL AND coalesce(t.expires_at > clock_timestamp(), true);
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    IF coalesce(v_token.last_used_at < clock_timestamp() - interval '1 minute', true) THEN
        UPDATE tasker.tokens t SET last_used_at = clock_timestamp()
        WHERE t.ctid = ANY (ARRAY(SELECT k.ctid FROM tasker.tokens k WHERE k.id = v_token.id FOR NO KEY UPDATE SKIP LOCKED));
    END IF;
    RETURN jsonb_build_object('name', v_token.name, 'role', v_token.role, 'namespaces', v_token.namespaces);
END
$$;

-- The tokens, the newest first; without those that are revoked, or have expired, unless they are wanted.
CREATE FUNCTION tasker.list_tokens(p_all boolean DEFAULT false) RETURNS SETOF jsonb
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT jsonb_build_object(
        'name', t.name, 'role', t.role, 'namespaces', t.namespaces, 'created_at', t.created_at, 'created_by', t.created_by, 'expires_at', t.expires_at,
        'last_used_at', t.last_used_at, 'revoked_at', t.revoked_at, 'revoked_by', t.revoked_by)
    FROM tasker.tokens t
    WHERE p_all OR t.revoked_at IS NULL AND coalesce(t.expires_at > clock_timestamp(), true) ORDER BY t.id DESC LIMIT 1000;
END;

-- Records what somebody is about to change, before they do; end_change says what became of it.
CREATE FUNCTION tasker.begin_change(p_who text, p_via text, p_address text, p_action text, p_object text, p_why text, p_details jsonb) RETURNS bigint
LANGUAGE sql BEGIN ATOMIC
    INSERT INTO tasker.audit (who, via, address, action, object, why, details)
    VALUES (p_who, p_via, p_address::inet, p_action, p_object, p_why, p_details) RETURNING id;
END;

-- p_error null: it is done. p_object: what came of it, where that was not known before.
CREATE FUNCTION tasker.end_change(p_id bigint, p_error text, p_object text DEFAULT NULL) RETURNS void
LANGUAGE sql BEGIN ATOMIC
    UPDATE tasker.audit a SET done = p_error IS NULL, error = p_error, object = coalesce(a.object, p_object) WHERE a.id = p_id;
END;

-- What was changed, the newest first: before the id p_before (null: from the newest), of this object, by this person, p_limit at most.
CREATE FUNCTION tasker.list_changes(p_before bigint, p_object text, p_who text, p_limit int) RETURNS SETOF jsonb
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT jsonb_build_object(
        'id', a.id, 'at', a.at, 'who', a.who, 'via', a.via, 'address', host(a.address), 'action', a.action, 'object', a.object, 'why', a.why,
        'details', a.details, 'done', a.done, 'error', a.error)
    FROM tasker.audit a
    WHERE a.id < coalesce(p_before, 9223372036854775807) AND coalesce(a.object = p_object, p_object IS NULL) AND coalesce(a.who = p_who, p_who IS NULL)
    ORDER BY a.id DESC LIMIT p_limit;
END;

-- Forgets up to p_limit changes that are older than p_age. Returns how many.
CREATE FUNCTION tasker.forget_changes(p_age interval, p_limit int) RETURNS int
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_forgotten int;
BEGIN
    DELETE FROM tasker.audit a WHERE a.ctid = ANY (ARRAY(
        SELECT f.ctid FROM (SELECT o.ctid, o.at FROM tasker.audit o ORDER BY o.id LIMIT p_limit) AS f WHERE f.at < now() - p_age));
    GET DIAGNOSTICS v_forgotten = ROW_COUNT;
    RETURN v_forgotten;
END
$$;
