-- Circuit breakers (M. Nygard, Release It!): under a limit that has one, steps wait as soon as too many of them fail, instead of using up their
-- attempts. Closed, all pass. Open, none does, for a time. Half open, as many probes pass as the limit says: one that fails opens it again, and
-- when all have succeeded it is closed.

-- Written where permits are granted: by one at a time.
CREATE TABLE tasker.breakers (
    limit_id int NOT NULL,
    key      text NOT NULL,
    state    text NOT NULL DEFAULT 'closed' CHECK (state IN ('closed', 'open', 'half_open')),
    -- since when
    since    timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- closed: when `passed` and `failed` become the former ones; open: when the first probe passes
    until    timestamptz NOT NULL,
    -- Outcomes of this half of the time looked back on, and of the half before; half open, of the probes.
    passed   int NOT NULL DEFAULT 0,
    failed   int NOT NULL DEFAULT 0,
    former_passed int NOT NULL DEFAULT 0,
    former_failed int NOT NULL DEFAULT 0,
    PRIMARY KEY (limit_id, key)
) WITH (fillfactor = 50);
CREATE INDEX breakers_open ON tasker.breakers (limit_id) WHERE state = 'open';

-- Notes how the steps ended that gave back permits (p_failed, parallel with when these were granted), and moves the breaker on. A permit that was
-- granted before the breaker was half open is no probe.
CREATE FUNCTION tasker.note_outcomes(p_limit int, p_key text, p_failed boolean[], p_granted timestamptz[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_limit   tasker.limits;
    v_breaker tasker.breakers;
    v_passed  int;
    v_failed  int;
    v_now     timestamptz := clock_timestamp();
BEGIN
    SELECT * INTO v_limit FROM tasker.limits WHERE id = p_limit;
    INSERT INTO tasker.breakers (limit_id, key, until) VALUES (p_limit, p_key, v_now + v_limit.look_back / 2) ON CONFLICT DO NOTHING;
    SELECT * INTO v_breaker FROM tasker.breakers WHERE limit_id = p_limit AND key = p_key FOR UPDATE;

    IF v_breaker.state = 'open' AND v_breaker.until <= v_now THEN
        v_breaker := ROW(p_limit, p_key, 'half_open', v_now, v_now, 0, 0, 0, 0);
    ELSIF v_breaker.state = 'closed' AND v_breaker.until <= v_now THEN
        -- Two halves may have gone by.
        IF v_breaker.until + v_limit.look_back / 2 > v_now THEN
            v_breaker.former_passed := v_breaker.passed;
            v_breaker.former_failed := v_breaker.failed;
        ELSE
            v_breaker.former_passed := 0;
            v_breaker.former_failed := 0;
        END IF;
        v_breaker.passed := 0;
        v_breaker.failed := 0;
        v_breaker.until := v_now + v_limit.look_back / 2;
    END IF;

    SELECT count(*) FILTER (WHERE NOT o.failed), count(*) FILTER (WHERE o.failed)
    INTO v_passed, v_failed
    FROM unnest(p_failed, p_granted) AS o(failed, granted) WHERE v_breaker.state = 'closed' OR o.granted >= v_breaker.since;
    IF v_breaker.state <> 'open' THEN
        v_breaker.passed := v_breaker.passed + v_passed;
        v_breaker.failed := v_breaker.failed + v_failed;
    END IF;
    v_passed := v_breaker.passed + v_breaker.former_passed;
    v_failed := v_breaker.failed + v_breaker.former_failed;

    IF v_breaker.state = 'half_open' AND v_failed > 0
       OR v_breaker.state = 'closed' AND v_passed + v_failed >= v_limit.minimum AND v_failed >= v_limit.failure_rate * (v_passed + v_failed)
    THEN
        v_breaker := ROW(p_limit, p_key, 'open', v_now, v_now + v_limit.stays_open, 0, 0, 0, 0);
    ELSIF v_breaker.state = 'half_open' AND v_passed >= v_limit.probes THEN
        v_breaker := ROW(p_limit, p_key, 'closed', v_now, v_now + v_limit.look_back / 2, 0, 0, 0, 0);
    END IF;
    UPDATE tasker.breakers b
    SET (state, since, until, passed, failed, former_passed, former_failed)
        = (v_breaker.state, v_breaker.since, v_breaker.until, v_breaker.passed, v_breaker.failed, v_breaker.former_passed, v_breaker.former_failed)
    WHERE b.limit_id = p_limit AND b.key = p_key;
END
$$;

-- Closes the breakers of a limit, or that of one key. Returns how many were not closed.
-- Locks: those of grant_permits.
CREATE FUNCTION tasker.reset_breakers(p_namespace text, p_name text, p_key text DEFAULT NULL) RETURNS int
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_reset int;
BEGIN
    PERFORM tasker.await_turn('tasker.turn_permits');
    WITH reset AS (
        UPDATE tasker.breakers b
        SET state = 'closed', since = clock_timestamp(), until = clock_timestamp() + l.look_back / 2,
            passed = 0, failed = 0, former_passed = 0, former_failed = 0
        FROM tasker.limits l
        WHERE l.namespace = p_namespace AND l.name = p_name AND NOT l.removed AND b.limit_id = l.id AND b.state <> 'closed'
          AND coalesce(b.key = p_key, true)
        RETURNING b.limit_id, b.key
    )
    INSERT INTO tasker.limit_events (limit_id, key, at) SELECT r.limit_id, r.key, clock_timestamp() FROM reset r;
    GET DIAGNOSTICS v_reset = ROW_COUNT;
    PERFORM tasker.notify('tasker_due', '');
    RETURN v_reset;
END
$$;
