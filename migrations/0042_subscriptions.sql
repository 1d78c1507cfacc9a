-- Subscriptions: who else wants to know what happens. While there is none, nothing is written for it: the triggers that write (0041_events.sql) are not there.

CREATE TABLE tasker.subscriptions (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name       text NOT NULL UNIQUE CHECK (length(name) BETWEEN 1 AND 100),
    -- what of: kinds of events (see event_types), of these namespaces and templates (namespace/name), of tasks with these tags; null: of all
    types      text[] NOT NULL,
    namespaces text[],
    templates  text[],
    tags       jsonb,
    -- where to, as the library writes it: {webhook: {url, …}}, {kafka: {…}} or {pull: {}}
    sink       jsonb NOT NULL,
    -- what webhooks are signed with, the newest first; two while one takes the place of the other
    secrets    text[],
    -- who may change it: an operator, or a file of settings
    owner      text NOT NULL CHECK (owner IN ('operator', 'file')),
    -- how often it was changed, but for how far it is
    revision   int NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- {at, who, why}: nothing is delivered, and everything kept; null: it is not
    paused     jsonb,
    -- {at, why}: the same, since its sink has taken nothing for too long
    disabled   jsonb
);

-- All kinds of events.
CREATE FUNCTION tasker.event_types() RETURNS text[]
LANGUAGE sql IMMUTABLE BEGIN ATOMIC
    SELECT '{task.created, task.due, task.started, task.paused, task.resumed, task.blocked, task.undoing, task.cancelling, task.complete, task.failed, task.cancelled, task.discarded,
             step.enqueued, step.failed, step.waiting, step.complete, step.dead, step.skipped, step.cancelling, step.cancelled, step.discarded,
             dead_letter.created, dead_letter.replayed, dead_letter.resolved, dead_letter.skipped, dead_letter.discarded, dead_letter.purged,
             alert.raised, alert.cleared}'::text[];
END;

-- Whether a subscription wants an event of that type, namespace, template (its bare name) and tags.
CREATE FUNCTION tasker.is_wanted(p_by tasker.subscriptions, p_type text, p_namespace text, p_template text, p_tags jsonb) RETURNS boolean
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT p_type = ANY (p_by.types) AND (p_by.namespaces IS NULL OR p_namespace = ANY (p_by.namespaces))
       AND (p_by.templates IS NULL OR p_namespace || '/' || p_template = ANY (p_by.templates)) AND (p_by.tags IS NULL OR p_tags @> p_by.tags);
END;

-- What is wrong with a subscription; null: nothing.
CREATE FUNCTION tasker.problem_of_subscription(p_name text, p_types text[], p_tags jsonb) RETURNS text
LANGUAGE sql IMMUTABLE BEGIN ATOMIC
    SELECT CASE
        WHEN p_name IS NULL OR length(p_name) NOT BETWEEN 1 AND 100 THEN 'the name of a subscription must have 1 to 100 characters'
        WHEN coalesce(cardinality(p_types), 0) = 0 THEN 'a subscription is of one type of event at least'
        WHEN NOT p_types <@ tasker.event_types() THEN (
            SELECT 'unknown type of event ' || t.name FROM unnest(p_types) AS t(name) WHERE t.name <> ALL (tasker.event_types()) LIMIT 1)
        WHEN jsonb_typeof(p_tags) <> 'object' THEN 'the tags of a subscription are an object' END;
END;

-- Creates a subscription, to what happens from then on, or changes it: what it has had stays delivered. Where it has no secret yet, it is given p_secret; secret is the one it has.
-- Errors: TK004 when it is not acceptable, or belongs to another owner; TK012 while nothing is written that it could be told (see watch).
CREATE FUNCTION tasker.put_subscription(
    p_name text, p_types text[], p_namespaces text[], p_templates text[], p_tags jsonb, p_sink jsonb, p_secret text, p_owner text,
    OUT outcome text, OUT secret text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_problem text := tasker.problem_of_subscription(p_name, p_types, p_tags);
    v_known   tasker.subscriptions;
BEGIN
    IF v_problem IS NOT NULL THEN
        RAISE EXCEPTION '%', v_problem USING ERRCODE = 'TK004';
    END IF;
    -- Against unwatch, and another that is put.
    LOCK TABLE tasker.subscriptions IN SHARE ROW EXCLUSIVE MODE;
    IF EXISTS (SELECT FROM tasker.unwatched()) THEN
        RAISE EXCEPTION 'nothing is watched yet' USING ERRCODE = 'TK012';
    END IF;
    SELECT * INTO v_known FROM tasker.subscriptions s WHERE s.name = p_name;
    IF v_known.owner <> p_owner THEN
        RAISE EXCEPTION 'the subscription % belongs to %', p_name, CASE v_known.owner WHEN 'file' THEN 'a file of settings' ELSE 'an operator' END
            USING ERRCODE = 'TK004', HINT = 'change it there, or use another name';
    END IF;
    IF v_known.id IS NULL THEN
        INSERT INTO tasker.subscriptions (name, types, namespaces, templates, tags, sink, secrets, owner)
        VALUES (p_name, p_types, p_namespaces, p_templates, p_tags, p_sink, ARRAY[p_secret], p_owner) RETURNING * INTO v_known;
        INSERT INTO tasker.deliveries (subscription_id, positions)
        VALUES (v_known.id, array_fill((SELECT o.position FROM tasker.event_order o), ARRAY[16]));
        outcome := 'created';
    ELSIF (v_known.types, v_known.namespaces, v_known.templates, v_known.tags, v_known.sink)
          IS NOT DISTINCT FROM (p_types, p_namespaces, p_templates, p_tags, p_sink) THEN
        outcome := 'unchanged';
    ELSE
        UPDATE tasker.subscriptions s
        SET types = p_types, namespaces = p_namespaces, templates = p_templates, tags = p_tags, sink = p_sink, secrets = coalesce(s.secrets, ARRAY[p_secret]),
            revision = s.revision + 1
        WHERE s.id = v_known.id;
        outcome := 'changed';
    END IF;
    secret := (SELECT s.secrets[1] FROM tasker.subscriptions s WHERE s.name = p_name);
    PERFORM tasker.notify('tasker_subscriptions', '') WHERE outcome <> 'unchanged';
END
$$;

-- That a subscription was disabled is no matter any more.
CREATE FUNCTION tasker.clear_alert_of(p_subscription text) RETURNS void
LANGUAGE sql BEGIN ATOMIC
    UPDATE tasker.alerts a SET cleared_at = clock_timestamp() WHERE a.subscription = p_subscription AND a.cleared_at IS NULL;
END;

-- Deletes the subscription of that name, with what it has not had. Returns whether there was one.
-- Errors: TK004 when it belongs to another owner.
CREATE FUNCTION tasker.delete_subscription(p_name text, p_owner text) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_known tasker.subscriptions;
BEGIN
    DELETE FROM tasker.subscriptions s WHERE s.name = p_name RETURNING * INTO v_known;
    PERFORM tasker.clear_alert_of(p_name);
    IF v_known.owner <> p_owner THEN
        RAISE EXCEPTION 'the subscription % belongs to %', p_name, CASE v_known.owner WHEN 'file' THEN 'a file of settings' ELSE 'an operator' END
            USING ERRCODE = 'TK004', HINT = 'take it out there; or pause it';
    END IF;
    PERFORM tasker.notify('tasker_subscriptions', '');
    RETURN v_known.id IS NOT NULL;
END
$$;

-- Pauses a subscription, or lets it go on from where it was, also one that was disabled. Returns whether there is one of that name.
CREATE FUNCTION tasker.pause_subscription(p_name text, p_paused boolean, p_who text, p_why text) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    UPDATE tasker.subscriptions s
    SET paused = CASE WHEN p_paused THEN coalesce(s.paused, jsonb_build_object('at', clock_timestamp(), 'who', p_who, 'why', p_why)) END,
        disabled = CASE WHEN p_paused THEN s.disabled END
    WHERE s.name = p_name;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    IF NOT p_paused THEN
        PERFORM tasker.clear_alert_of(p_name);
    END IF;
    UPDATE tasker.deliveries d SET failing_since = array_fill(NULL::timestamptz, ARRAY[16])
    FROM tasker.subscriptions s WHERE s.name = p_name AND d.subscription_id = s.id;
    PERFORM tasker.notify('tasker_subscriptions', '');
    RETURN true;
END
$$;

-- Gives a subscription another secret, beside the one it has, which counts as well until the next time. Returns whether there is one of that name.
CREATE FUNCTION tasker.rotate_secret(p_name text, p_secret text) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    UPDATE tasker.subscriptions s SET secrets = ARRAY[p_secret, s.secrets[1]], revision = s.revision + 1 WHERE s.name = p_name;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM tasker.notify('tasker_subscriptions', '');
    RETURN true;
END
$$;

-- Delivers once more what has happened from p_from on, as far as it is kept, or goes on only there. Returns whether there is one of that name.
CREATE FUNCTION tasker.replay_subscription(p_name text, p_from timestamptz) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    UPDATE tasker.deliveries d
    SET positions = array_fill(least((extract(epoch FROM p_from) * 1000000)::bigint - 1, (SELECT o.position FROM tasker.event_order o)), ARRAY[16]),
        failing_since = array_fill(NULL::timestamptz, ARRAY[16]), setting = d.setting + 1
    FROM tasker.subscriptions s WHERE s.name = p_name AND d.subscription_id = s.id;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM tasker.notify('tasker_subscriptions', '');
    RETURN true;
END
$$;
