-- History: a task that has ended is deleted, with all that is known of it, when its namespace does not want to know it any longer.
--
-- Ids are in the order of time, so the primary key leads to what is old enough: there is no index of when tasks ended, which every one of them would have to write.
-- What has not ended when its time is looked at is found when the look begins anew, once a day.

-- How far was looked, for each length of time that namespaces keep their history.
CREATE TABLE tasker.history_marks (
    seconds float8 PRIMARY KEY,
    after   uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
    -- when to look again, and when to begin anew
    look_at timestamptz NOT NULL DEFAULT '-infinity',
    anew_at timestamptz NOT NULL
);

-- No id of a task that was created before that time is above this.
CREATE FUNCTION tasker.id_at(p_time timestamptz) RETURNS uuid
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT encode(substring(int8send((extract(epoch FROM p_time) * 1000)::bigint) FROM 3) || '\x00000000000000000000', 'hex')::uuid;
END;

-- Deletes these tasks with all that is known of them, but those that somebody is at, whose parent is there, or that have children which have not ended. Returns them.
-- Locks: the tasks in the order in which they are given (by id), and waits for none.
CREATE FUNCTION tasker.delete_tasks(p_tasks uuid[]) RETURNS uuid[]
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_gone uuid[] := ARRAY(
        SELECT t.id FROM unnest(p_tasks) AS g(id) JOIN tasker.tasks t ON t.id = g.id
        WHERE NOT EXISTS (SELECT FROM tasker.tasks p WHERE p.id = t.parent_id)
          AND NOT EXISTS (SELECT FROM tasker.tasks c WHERE c.parent_id = t.id AND c.finished_at IS NULL)
        FOR UPDATE OF t SKIP LOCKED);
BEGIN
    DELETE FROM tasker.steps s USING unnest(v_gone) AS g(id) WHERE s.task_id = g.id;
    DELETE FROM tasker.fan_outs f USING unnest(v_gone) AS g(id) WHERE f.task_id = g.id;
    DELETE FROM tasker.waits w USING unnest(v_gone) AS g(id) WHERE w.task_id = g.id;
    DELETE FROM tasker.held_replays h USING unnest(v_gone) AS g(id) WHERE h.parent_id = g.id;
    DELETE FROM tasker.memories m USING unnest(v_gone) AS g(id) WHERE m.task_id = g.id;
    DELETE FROM tasker.task_values v USING unnest(v_gone) AS g(id) WHERE v.task_id = g.id;
    DELETE FROM tasker.signals s USING unnest(v_gone) AS g(id) WHERE s.task_id = g.id;
    DELETE FROM tasker.paused_steps s USING unnest(v_gone) AS g(id), tasker.pauses p WHERE p.task_id = g.id AND s.pause_id = p.id;
    DELETE FROM tasker.pauses p USING unnest(v_gone) AS g(id) WHERE p.task_id = g.id;
    DELETE FROM tasker.tasks t USING unnest(v_gone) AS g(id) WHERE t.id = g.id;
    RETURN v_gone;
END
$$;

-- Looks at p_limit tasks at most, and deletes those whose time is over. Kept are those that have not ended, or have a dead letter, those whose parent is kept, and those of which
-- there is a fork. Returns how many it looked at and deleted; fewer than p_limit: there are no more for now.
-- Locks: one mark, without waiting; then as delete_tasks.
CREATE FUNCTION tasker.forget_tasks(p_limit int, OUT looked int, OUT forgotten int)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_mark   tasker.history_marks;
    v_before timestamptz;
    v_slice  uuid[];
    v_old    uuid[];
    v_gone   uuid[];
BEGIN
    looked := 0;
    forgotten := 0;
    INSERT INTO tasker.history_marks (seconds, anew_at)
    SELECT DISTINCT n.history_seconds, now() + interval '1 day' FROM tasker.namespaces n
    WHERE n.history_seconds IS NOT NULL AND NOT EXISTS (SELECT FROM tasker.history_marks m WHERE m.seconds = n.history_seconds)
    ON CONFLICT DO NOTHING;
    SELECT m.* INTO v_mark FROM tasker.history_marks m
    WHERE m.look_at <= clock_timestamp() AND EXISTS (SELECT FROM tasker.namespaces n WHERE n.history_seconds = m.seconds)
    LIMIT 1 FOR UPDATE OF m SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    v_before := clock_timestamp() - v_mark.seconds * interval '1 second';
    v_slice := ARRAY(
        SELECT t.id FROM tasker.tasks t WHERE t.id > v_mark.after AND t.id < tasker.id_at(v_before) ORDER BY t.id LIMIT p_limit);
    looked := cardinality(v_slice);
    v_old := ARRAY(
        SELECT t.id FROM unnest(v_slice) AS s(id) JOIN tasker.tasks t ON t.id = s.id JOIN tasker.namespaces n ON n.id = t.namespace_id
        WHERE n.history_seconds = v_mark.seconds AND t.finished_at < v_before AND t.state IN ('complete', 'failed', 'cancelled', 'discarded')
          AND NOT EXISTS (SELECT FROM tasker.tasks f WHERE f.forked_from = t.id)
          AND NOT EXISTS (
              SELECT FROM tasker.steps s WHERE s.task_id = t.id AND (s.state IN ('enqueued', 'in_progress', 'cancelling') OR s.state = 'dead' AND NOT EXISTS (
                  SELECT FROM tasker.dead_letter_actions a JOIN tasker.template_steps ts ON ts.version_id = t.version_id AND ts.name = a.step
                  WHERE a.task_id = t.id AND ts.step = s.step AND a.action IN ('discard', 'purge') AND a.at >= s.finished_at))));
    -- The children of those that are gone by now can go, too.
    LOOP
        v_gone := tasker.delete_tasks(v_old);
        EXIT WHEN cardinality(v_gone) = 0;
        forgotten := forgotten + cardinality(v_gone);
    END LOOP;
    UPDATE tasker.history_marks m SET
        after = CASE WHEN looked < p_limit AND m.anew_at <= clock_timestamp() THEN '00000000-0000-0000-0000-000000000000'
                     ELSE coalesce(v_slice[looked], m.after) END,
        anew_at = CASE WHEN looked < p_limit AND m.anew_at <= clock_timestamp() THEN clock_timestamp() + interval '1 day' ELSE m.anew_at END,
        -- As often as what was created meanwhile is a hundredth of what is kept.
        look_at = CASE WHEN looked < p_limit THEN clock_timestamp() + least(greatest(m.seconds / 100, 1), 3600) * interval '1 second' ELSE m.look_at END
    WHERE m.seconds = v_mark.seconds;
END
$$;
