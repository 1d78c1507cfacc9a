-- Deliveries: how far each subscription was told what it wants to know, and who tells it. An orchestrator holds a delivery as long as its membership lasts; which of them, they
-- settle among themselves: each takes what is nobody's, up to its share.

-- How far each of them was delivered. The events of a task are in one of sixteen lanes (see lane_of), in each of which one comes after the other.
CREATE TABLE tasker.deliveries (
    subscription_id bigint PRIMARY KEY REFERENCES tasker.subscriptions ON DELETE CASCADE,
    -- the position of each lane's last event that was delivered, or that it did not want
    positions       bigint[] NOT NULL,
    -- since when each lane fails; null: it does not
    failing_since   timestamptz[] NOT NULL DEFAULT array_fill(NULL::timestamptz, ARRAY[16]),
    -- why, as it was last told
    problem         text,
    delivered       bigint NOT NULL DEFAULT 0,
    -- how often somebody has set the positions: whoever delivers from those before is told
    setting         int NOT NULL DEFAULT 0,
    -- the orchestrator that delivers it; null: nobody does
    member          int
) WITH (fillfactor = 20, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);

-- The subscriptions, by name, without their secrets; with p_name that one. lag: for how many seconds the oldest event waits that it was not given yet
-- (or was not seen not to want); 0: none waits.
CREATE FUNCTION tasker.list_subscriptions(p_name text DEFAULT NULL) RETURNS SETOF jsonb
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT jsonb_build_object(
        'name', s.name, 'types', s.types, 'namespaces', s.namespaces, 'templates', s.templates, 'tags', s.tags, 'sink', s.sink, 'owner', s.owner,
        'created_at', s.created_at, 'paused', s.paused, 'disabled', s.disabled, 'delivered', d.delivered, 'problem', d.problem,
        'failing_since', (SELECT min(f.since) FROM unnest(d.failing_since) AS f(since)), 'member', d.member,
        'lag', CASE WHEN s.sink ? 'pull' THEN 0 ELSE (
            SELECT coalesce(greatest(0, extract(epoch FROM clock_timestamp()) - min(e.position) / 1e6), 0)::float8
            FROM unnest(d.positions) WITH ORDINALITY AS l(position, n)
            CROSS JOIN LATERAL (
                SELECT e.position FROM tasker.events e WHERE e.lane = l.n - 1 AND e.position > l.position ORDER BY e.position LIMIT 1) AS e) END)
    FROM tasker.subscriptions s JOIN tasker.deliveries d ON d.subscription_id = s.id
    WHERE p_name IS NULL OR s.name = p_name ORDER BY s.name;
END;

-- The orchestrators that deliver, and to which kinds of sink: those of before did not, and not every build knows all of them.
CREATE TABLE tasker.deliverers (
    member int PRIMARY KEY REFERENCES tasker.members ON DELETE CASCADE,
    sinks  text[] NOT NULL
);

-- Has an orchestrator deliver what nobody does, of those whose sinks it knows (p_sinks), up to its share of them. Whose membership is over has none any more. Returns whether
-- there are subscriptions at all, and those that are its own; those beyond its share are to be let go (see release_delivery):
-- {subscribed, held: [{id, name, sink, secrets, revision, positions, setting, surplus}]}.
-- Locks: deliveries, skipping those that somebody else has.
CREATE FUNCTION tasker.hold_deliveries(p_member int, p_sinks text[]) RETURNS jsonb
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_present int[];
    v_sink    text;
    v_all     bigint[];
    v_share   int;
    v_held    bigint[];
    v_surplus bigint[];
BEGIN
    IF NOT EXISTS (SELECT FROM tasker.subscriptions) THEN
        RETURN '{"subscribed": false, "held": []}';
    END IF;
    v_present := ARRAY(SELECT m.id FROM tasker.members m WHERE m.left_at IS NULL AND m.kind = 'orchestrator' AND m.lease_until > clock_timestamp());
    IF p_member <> ALL (v_present) THEN
        RETURN '{"subscribed": true, "held": []}';
    END IF;
    INSERT INTO tasker.deliverers (member, sinks) VALUES (p_member, p_sinks) ON CONFLICT DO NOTHING;
    FOREACH v_sink IN ARRAY p_sinks LOOP
        v_all := ARRAY(SELECT s.id FROM tasker.subscriptions s WHERE s.paused IS NULL AND s.disabled IS NULL AND s.sink ? v_sink ORDER BY s.id);
        v_share := ceil(cardinality(v_all)::float8 / (SELECT count(*) FROM tasker.deliverers d WHERE d.member = ANY (v_present) AND v_sink = ANY (d.sinks)));
        v_held := ARRAY(SELECT d.subscription_id FROM tasker.deliveries d WHERE d.member = p_member AND d.subscription_id = ANY (v_all) ORDER BY 1);
        v_surplus := v_surplus || v_held[v_share + 1:];
        UPDATE tasker.deliveries d SET member = p_member
        WHERE d.subscription_id = ANY (ARRAY(
            SELECT f.subscription_id FROM tasker.deliveries f
            WHERE f.subscription_id = ANY (v_all) AND (f.member IS NULL OR f.member <> ALL (v_present))
            ORDER BY f.subscription_id LIMIT greatest(0, v_share - cardinality(v_held)) FOR UPDATE SKIP LOCKED));
    END LOOP;
    RETURN jsonb_build_object('subscribed', true, 'held', (
        SELECT coalesce(jsonb_agg(to_jsonb(h)), '[]') FROM (
            SELECT s.id, s.name, s.sink, s.secrets, s.revision, d.positions, d.setting, s.id = ANY (v_surplus) IS TRUE AS surplus
            FROM tasker.subscriptions s JOIN tasker.deliveries d ON d.subscription_id = s.id
            WHERE d.member = p_member AND s.paused IS NULL AND s.disabled IS NULL AND s.sink ?| p_sinks) AS h));
END
$$;

-- Lets others deliver what this orchestrator has delivered.
CREATE FUNCTION tasker.release_delivery(p_id bigint, p_member int) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    UPDATE tasker.deliveries d SET member = NULL WHERE d.subscription_id = p_id AND d.member = p_member;
    PERFORM tasker.notify('tasker_subscriptions', '');
END
$$;

-- Notes how far these lanes (from 0) are delivered, p_delivered events more than before, and which of them fail (p_failing, parallel) for p_problem. One that fails for as long as
-- p_patience has its subscription disabled: disabled says so. Not held: somebody else delivers it by now, its positions were set, or it does not go on;
-- nothing is noted then.
CREATE FUNCTION tasker.advance_delivery(
    p_id bigint, p_member int, p_setting int, p_lanes smallint[], p_positions bigint[], p_failing boolean[], p_problem text, p_delivered bigint,
    p_patience interval, OUT held boolean, OUT disabled boolean)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_since timestamptz;
    v_name  text;
BEGIN
    disabled := false;
    UPDATE tasker.deliveries d
    SET positions = ARRAY(
            SELECT coalesce(n.position, o.position) FROM unnest(d.positions) WITH ORDINALITY AS o(position, lane)
            LEFT JOIN unnest(p_lanes, p_positions) AS n(lane, position) ON n.lane = o.lane - 1 ORDER BY o.lane),
        failing_since = ARRAY(
            SELECT CASE WHEN n.lane IS NULL THEN o.since WHEN n.failing THEN coalesce(o.since, clock_timestamp()) END
            FROM unnest(d.failing_since) WITH ORDINALITY AS o(since, lane)
            LEFT JOIN unnest(p_lanes, p_failing) AS n(lane, failing) ON n.lane = o.lane - 1 ORDER BY o.lane),
        problem = coalesce(p_problem, d.problem), delivered = d.delivered + p_delivered
    WHERE d.subscription_id = p_id AND d.member = p_member AND d.setting = p_setting
      AND EXISTS (SELECT FROM tasker.members m WHERE m.id = p_member AND m.left_at IS NULL AND m.lease_until > clock_timestamp())
    RETURNING (SELECT min(f.since) FROM unnest(d.failing_since) AS f(since)) INTO v_since;
    held := FOUND;
    IF v_since < clock_timestamp() - p_patience THEN
        UPDATE tasker.subscriptions s SET disabled = jsonb_build_object('at', clock_timestamp(), 'why', p_problem)
        WHERE s.id = p_id AND s.disabled IS NULL RETURNING s.name INTO v_name;
        disabled := FOUND;
        IF disabled THEN
            INSERT INTO tasker.alerts (namespace, template, step, subscription, problem) VALUES ('', '', '', v_name, p_problem)
            ON CONFLICT (namespace, template, step, subscription) WHERE cleared_at IS NULL DO NOTHING;
            PERFORM tasker.notify('tasker_dead_letters', '');
        END IF;
    END IF;
END
$$;

-- An event in the form of CloudEvents 1.0 (https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md), with its extensions for
-- tracing, partitioning and sequence. What is known of a task by GET /tasks/{id}/events has the same ids.
CREATE FUNCTION tasker.cloud_event(p_event tasker.events) RETURNS jsonb
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT jsonb_strip_nulls(jsonb_build_object(
        'specversion', '1.0',
        'id', (extract(epoch FROM p_event.at) * 1000000)::bigint || '-' || p_event.type || coalesce('-' || p_event.step, '') || coalesce('-' || (p_event.data ->> 'alert'), ''),
        'source', CASE WHEN p_event.task_id IS NULL THEN '/alerts' ELSE '/tasks/' || p_event.task_id END,
        'type', 'tasker.' || p_event.type, 'time', p_event.at, 'datacontenttype', 'application/json', 'sequence', lpad(p_event.position::text, 17, '0'),
        'partitionkey', p_event.task_id, 'traceparent', p_event.trace))
        || jsonb_build_object('data', p_event.data || jsonb_build_object(
            'namespace', p_event.namespace, 'template', p_event.template, 'step', coalesce(p_event.step, p_event.data ->> 'step'), 'tags', p_event.tags));
END;

-- The next events of these lanes behind these positions (parallel), p_limit of each at most: those that the subscription wants, and the last of each lane that was looked
-- at (event null: it does not want that one). In the form of CloudEvents 1.0.
CREATE FUNCTION tasker.read_events(p_id bigint, p_lanes smallint[], p_positions bigint[], p_limit int)
RETURNS TABLE (lane smallint, place bigint, event jsonb)
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT r.lane, (r.found).position, CASE WHEN r.wanted THEN tasker.cloud_event(r.found) END
    FROM (
        SELECT l.lane, e.found, tasker.is_wanted(s, (e.found).type, (e.found).namespace, (e.found).template, (e.found).tags) AS wanted,
               row_number() OVER (PARTITION BY l.lane ORDER BY (e.found).position DESC) = 1 AS is_last
        FROM tasker.subscriptions s, unnest(p_lanes, p_positions) AS l(lane, position)
        CROSS JOIN LATERAL (
            SELECT f AS found FROM tasker.events f WHERE f.lane = l.lane AND f.position > l.position ORDER BY f.position LIMIT p_limit) AS e
        WHERE s.id = p_id) AS r
    WHERE r.wanted OR r.is_last ORDER BY r.lane, (r.found).position;
END;

-- The same for whoever asks for them: of the next p_limit events behind that position (null: behind all there are), those that the subscription wants, and the
-- last, in the order of their positions. Errors: TK002 when there is no such subscription.
CREATE FUNCTION tasker.pull_events(p_name text, p_after bigint, p_limit int) RETURNS TABLE (place bigint, event jsonb)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM tasker.subscriptions s WHERE s.name = p_name) THEN
        RAISE EXCEPTION 'no subscription %', p_name USING ERRCODE = 'TK002';
    END IF;
    IF p_after IS NULL THEN
        RETURN QUERY SELECT o.position, NULL::jsonb FROM tasker.event_order o;
        RETURN;
    END IF;
    RETURN QUERY
    SELECT (r.found).position, CASE WHEN r.wanted THEN tasker.cloud_event(r.found) END
    FROM (
        SELECT e.found, tasker.is_wanted(s, (e.found).type, (e.found).namespace, (e.found).template, (e.found).tags) AS wanted,
               row_number() OVER (ORDER BY (e.found).position DESC) = 1 AS is_last
        FROM tasker.subscriptions s, (
            SELECT l.found FROM generate_series(0, 15) AS n(lane)
            CROSS JOIN LATERAL (
                SELECT f AS found FROM tasker.events f WHERE f.lane = n.lane AND f.position > p_after ORDER BY f.position LIMIT p_limit) AS l
            ORDER BY (l.found).position LIMIT p_limit) AS e
        WHERE s.name = p_name) AS r
    WHERE r.wanted OR r.is_last ORDER BY (r.found).position;
END
$$;

-- Deletes events that are older than p_keep, and that every subscription has had which is not disabled; p_limit of each lane at most. Returns how many.
CREATE FUNCTION tasker.forget_events(p_keep interval, p_limit int) RETURNS int
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_before    bigint := (extract(epoch FROM clock_timestamp() - p_keep) * 1000000)::bigint;
    v_forgotten int;
BEGIN
    DELETE FROM tasker.events e WHERE e.ctid = ANY (ARRAY(
        SELECT o.place FROM generate_series(0, 15) AS l(lane)
        CROSS JOIN LATERAL (
            SELECT least(v_before, min(d.positions[l.lane + 1])) AS until FROM tasker.deliveries d JOIN tasker.subscriptions s ON s.id = d.subscription_id
            WHERE s.disabled IS NULL AND NOT s.sink ? 'pull') AS k
        CROSS JOIN LATERAL (
            SELECT f.ctid AS place FROM tasker.events f WHERE f.lane = l.lane AND f.position <= k.until ORDER BY f.position LIMIT p_limit) AS o));
    GET DIAGNOSTICS v_forgotten = ROW_COUNT;
    RETURN v_forgotten;
END
$$;
