-- Moves: a namespace begins anew in another shard, while it works. Its tasks stay where they are until they are over, as their ids say; those that are created
-- from then on are in the other one. Each of the two databases knows of it (namespaces.lives_in, also_in), so that whoever comes to the wrong one is sent on.
--
-- The order, which src/engine/shard_move.rs keeps:
-- 1. The new shard receives the namespace, closed: lives_in is the old one. The old one says also_in, so that workers come to both.
-- 2. Versions, and the keys of tasks that are there, are copied.
-- 3. The old shard closes (lives_in is the new one), and every transaction that was open then comes to its end: nothing new is created in either.
-- 4. What was written since step 2 is copied: versions, keys, what is unique, pauses, schedules.
-- 5. The new shard opens.

-- Keys of tasks that are in the shard where their namespace was.
CREATE TABLE tasker.moved_keys (
    template_id bigint NOT NULL,
    key         text NOT NULL,
    task_id     uuid NOT NULL,
    PRIMARY KEY (template_id, key)
);

-- The tasks there that may stand in the way of one that is the same (see 0033_unique.sql).
CREATE TABLE tasker.moved_uniques (
    template_id bigint NOT NULL,
    sameness    uuid NOT NULL,
    task_id     uuid NOT NULL,
    -- {state, created_at, started_at, finished_at}, as it was when somebody looked
    task        jsonb NOT NULL,
    PRIMARY KEY (template_id, sameness, task_id)
);
CREATE INDEX moved_uniques_unfinished ON tasker.moved_uniques (task_id) WHERE task ->> 'finished_at' IS NULL;

-- One moves at a time.
CREATE TABLE tasker.turn_moves ();

-- The namespaces of which this database knows where they live, or where else they have tasks, by the numbers of shards.
CREATE FUNCTION tasker.list_moves() RETURNS TABLE (namespace text, lives_in int, also_in int)
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT n.name, n.lives_in, n.also_in FROM tasker.namespaces n WHERE n.lives_in IS NOT NULL OR n.also_in IS NOT NULL ORDER BY n.name;
END;

-- Errors with TK011 where a namespace lives in another shard; the detail is its number.
CREATE FUNCTION tasker.refuse_moved(p_namespace text) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_lives_in int := (SELECT n.lives_in FROM tasker.namespaces n WHERE n.name = p_namespace);
BEGIN
    IF v_lives_in <> tasker.shard() THEN
        RAISE EXCEPTION 'the namespace % lives in shard %', p_namespace, v_lives_in
            USING ERRCODE = 'TK011', DETAIL = v_lives_in, HINT = 'go there; tasker.yml is to say so under shards';
    END IF;
END
$$;

-- Of tasks with these keys, those that are in the shard where their namespace was; each null where there is none.
CREATE FUNCTION tasker.find_moved_keys(p_template bigint, p_keys text[]) RETURNS uuid[]
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN ARRAY(
        SELECT m.task_id FROM unnest(p_keys) WITH ORDINALITY AS k(key, n)
        LEFT JOIN tasker.moved_keys m ON m.template_id = p_template AND m.key = k.key ORDER BY k.n);
END
$$;

-- The task in the shard where its namespace was that stands in the way of a new one; null: none does.
-- Errors: TK007 while it has not ended, since nobody here can say what it does at this moment; TK010 (see refuse_the_same).
CREATE FUNCTION tasker.moved_in_the_way(p_version tasker.template_versions, p_sameness uuid, p_rule jsonb) RETURNS uuid
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_task uuid;
    v_over boolean;
BEGIN
    SELECT m.task_id, m.task ->> 'finished_at' IS NOT NULL INTO v_task, v_over FROM tasker.moved_uniques m
    WHERE m.template_id = p_version.template_id AND m.sameness = p_sameness
      AND tasker.is_in_the_way(jsonb_populate_record(NULL::tasker.tasks, m.task), p_rule)
    ORDER BY m.task ->> 'finished_at' IS NOT NULL, m.task_id DESC LIMIT 1;
    IF NOT v_over THEN
        RAISE EXCEPTION 'a task that is the same has not ended in the shard where its namespace was: %', v_task
            USING ERRCODE = 'TK007', DETAIL = 1, HINT = 'try again later: see tasker shard move';
    END IF;
    PERFORM tasker.refuse_the_same(p_version, v_task) WHERE v_task IS NOT NULL AND p_rule ->> 'on_conflict' = 'reject';
    RETURN CASE WHEN p_rule ->> 'on_conflict' IS DISTINCT FROM 'replace' THEN v_task END;
END
$$;

-- What must move with these namespaces, or cannot move: templates of which a step is of one of them, and another step, or the template, is not.
CREATE FUNCTION tasker.find_ties(p_names text[]) RETURNS TABLE (template text, other text)
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT DISTINCT n.name || '/' || t.name, CASE WHEN n.name = ANY (p_names) THEN o.name ELSE n.name END
    FROM tasker.namespaces n JOIN tasker.templates t ON t.namespace_id = n.id JOIN tasker.template_steps ts ON ts.version_id = t.current_version_id
    CROSS JOIN LATERAL (SELECT ts.namespace AS name UNION SELECT split_part(ts.spawn ->> 'template', '/', 1) WHERE ts.spawn IS NOT NULL) AS o
    WHERE (n.name = ANY (p_names)) <> (o.name = ANY (p_names))
    ORDER BY 1, 2;
END;

-- Has a namespace here that lives in another shard yet.
CREATE FUNCTION tasker.receive_namespaces(p_names text[], p_from int) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM tasker.ensure_namespaces(p_names);
    UPDATE tasker.namespaces n SET lives_in = p_from, also_in = p_from WHERE n.name = ANY (p_names);
END
$$;

-- Says where else these namespaces have tasks, or are about to; null: nowhere.
CREATE FUNCTION tasker.announce_move(p_names text[], p_shard int) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    UPDATE tasker.namespaces n SET also_in = p_shard WHERE n.name = ANY (p_names);
END
$$;

-- The versions of the templates of these namespaces after p_after, in the order of their ids, each whole: its id, whether it is the current one, its row
-- and those of its steps. One that has steps elsewhere, which can only be an old one, stays behind.
CREATE FUNCTION tasker.export_versions(p_names text[], p_after int, p_limit int) RETURNS SETOF jsonb
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT jsonb_build_object('id', tv.id, 'namespace', n.name, 'name', t.name, 'current', tv.id = t.current_version_id, 'version', to_jsonb(tv),
                              'steps', (SELECT jsonb_agg(to_jsonb(ts)) FROM tasker.template_steps ts WHERE ts.version_id = tv.id))
    FROM tasker.template_versions tv JOIN tasker.templates t ON t.id = tv.template_id JOIN tasker.namespaces n ON n.id = t.namespace_id
    WHERE tv.id > p_after AND n.name = ANY (p_names)
      AND NOT EXISTS (SELECT FROM tasker.template_steps ts WHERE ts.version_id = tv.id
                      AND NOT (ts.namespace = ANY (p_names) AND coalesce(split_part(ts.spawn ->> 'template', '/', 1) = ANY (p_names), true)))
    ORDER BY tv.id LIMIT p_limit;
END;

-- Has that version here; again, nothing happens.
-- Errors: TK001 where it is there with other content.
CREATE FUNCTION tasker.import_version(p_version jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_template bigint;
    v_id       int;
    v_digest   text;
BEGIN
    INSERT INTO tasker.templates (namespace_id, name) SELECT n.id, p_version ->> 'name' FROM tasker.namespaces n WHERE n.name = p_version ->> 'namespace'
    ON CONFLICT DO NOTHING;
    SELECT t.id INTO v_template FROM tasker.templates t JOIN tasker.namespaces n ON n.id = t.namespace_id
    WHERE n.name = p_version ->> 'namespace' AND t.name = p_version ->> 'name' FOR NO KEY UPDATE OF t;
    INSERT INTO tasker.template_versions (template_id, version, automatic, digest, definition, priority, sinks, roots, dead_state, deadline,
                                          pending_limit, enqueued_limit, in_progress_limit, created_at)
    SELECT v_template, r.version, r.automatic, r.digest, r.definition, r.priority, r.sinks, r.roots, r.dead_state, r.deadline,
           r.pending_limit, r.enqueued_limit, r.in_progress_limit, r.created_at
    FROM jsonb_populate_record(NULL::tasker.template_versions, p_version -> 'version') AS r
    ON CONFLICT DO NOTHING RETURNING id INTO v_id;
    IF v_id IS NOT NULL THEN
        INSERT INTO tasker.template_steps
        SELECT r.* FROM jsonb_array_elements(p_version -> 'steps') AS s(step),
             jsonb_populate_record(NULL::tasker.template_steps, s.step || jsonb_build_object('version_id', v_id)) AS r;
    ELSE
        SELECT tv.id, tv.digest INTO v_id, v_digest FROM tasker.template_versions tv
        WHERE tv.template_id = v_template AND tv.version = p_version -> 'version' ->> 'version';
        IF v_digest <> p_version -> 'version' ->> 'digest' THEN
            RAISE EXCEPTION 'template %/% version % is registered with other content in the new shard', p_version ->> 'namespace', p_version ->> 'name',
                p_version -> 'version' ->> 'version' USING ERRCODE = 'TK001';
        END IF;
    END IF;
    IF (p_version ->> 'current')::boolean THEN
        UPDATE tasker.templates t SET current_version_id = v_id WHERE t.id = v_template AND t.current_version_id IS DISTINCT FROM v_id;
    END IF;
END
$$;

-- The next p_limit tasks after p_after, and before p_before (null: to the last), whosever they are: the last of them (null: there is none), and of those of
-- these namespaces how many there are, how many have not ended, and the keys: [template, key, task].
CREATE FUNCTION tasker.walk_tasks(p_names text[], p_after uuid, p_before uuid, p_limit int)
RETURNS TABLE (last uuid, tasks bigint, unfinished bigint, keys jsonb)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_namespaces int[] := ARRAY(SELECT n.id FROM tasker.namespaces n WHERE n.name = ANY (p_names));
BEGIN
    RETURN QUERY
    SELECT (array_agg(w.id ORDER BY w.id DESC))[1], count(*) FILTER (WHERE w.own), count(*) FILTER (WHERE w.own AND w.finished_at IS NULL),
           jsonb_agg(jsonb_build_array(w.namespace || '/' || w.template, w.key, w.id)) FILTER (WHERE w.own AND w.key IS NOT NULL)
    FROM (SELECT t.id, t.key, t.finished_at, t.namespace_id = ANY (v_namespaces) AS own, n.name AS namespace, tp.name AS template
          FROM (SELECT * FROM tasker.tasks s WHERE s.id > p_after AND s.id < coalesce(p_before, 'ffffffff-ffff-ffff-ffff-ffffffffffff') ORDER BY s.id LIMIT p_limit) AS t
          JOIN tasker.templates tp ON tp.id = t.template_id JOIN tasker.namespaces n ON n.id = t.namespace_id) AS w;
END
$$;

-- The keys of tasks that are in the shard where these namespaces were before: [template, key, task].
CREATE FUNCTION tasker.export_moved_keys(p_names text[]) RETURNS SETOF jsonb
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT jsonb_build_array(n.name || '/' || t.name, m.key, m.task_id)
    FROM tasker.namespaces n JOIN tasker.templates t ON t.namespace_id = n.id JOIN tasker.moved_keys m ON m.template_id = t.id
    WHERE n.name = ANY (p_names);
END;

-- Knows from now on these keys, [template, key, task] each; those of tasks that are here it has.
CREATE FUNCTION tasker.import_keys(p_keys jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO tasker.moved_keys (template_id, key, task_id)
    SELECT t.id, k.entry ->> 1, (k.entry ->> 2)::uuid
    FROM jsonb_array_elements(p_keys) AS k(entry)
    JOIN tasker.namespaces n ON n.name = split_part(k.entry ->> 0, '/', 1)
    JOIN tasker.templates t ON t.namespace_id = n.id AND t.name = split_part(k.entry ->> 0, '/', 2)
    WHERE NOT EXISTS (SELECT FROM tasker.tasks o WHERE o.template_id = t.id AND o.key = k.entry ->> 1)
    ON CONFLICT DO NOTHING;
END
$$;

-- How a task is, to one that is the same.
CREATE FUNCTION tasker.unique_task(p_task tasker.tasks) RETURNS jsonb
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT jsonb_build_object('id', p_task.id, 'state', p_task.state, 'created_at', p_task.created_at, 'started_at', p_task.started_at,
                              'finished_at', p_task.finished_at);
END;

-- What is unique in these namespaces: [template, sameness, task, how it is].
CREATE FUNCTION tasker.export_uniques(p_names text[]) RETURNS SETOF jsonb
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT jsonb_build_array(n.name || '/' || tp.name, u.sameness, t.id, tasker.unique_task(t))
    FROM tasker.namespaces n JOIN tasker.templates tp ON tp.namespace_id = n.id JOIN tasker.uniques u ON u.template_id = tp.id
    CROSS JOIN LATERAL unnest(u.tasks) AS w(id) JOIN tasker.tasks t ON t.id = w.id
    WHERE n.name = ANY (p_names);
END;

CREATE FUNCTION tasker.import_uniques(p_uniques jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO tasker.moved_uniques (template_id, sameness, task_id, task)
    SELECT t.id, (u.entry ->> 1)::uuid, (u.entry ->> 2)::uuid, u.entry -> 3
    FROM jsonb_array_elements(p_uniques) AS u(entry)
    JOIN tasker.namespaces n ON n.name = split_part(u.entry ->> 0, '/', 1)
    JOIN tasker.templates t ON t.namespace_id = n.id AND t.name = split_part(u.entry ->> 0, '/', 2)
    ON CONFLICT (template_id, sameness, task_id) DO UPDATE SET task = excluded.task;
END
$$;

-- Tasks elsewhere that are unique, and had not ended when somebody looked; of these namespaces' shard p_limit at most, after p_after.
CREATE FUNCTION tasker.moved_unfinished(p_after uuid, p_limit int) RETURNS SETOF uuid
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT m.task_id FROM tasker.moved_uniques m WHERE m.task ->> 'finished_at' IS NULL AND m.task_id > p_after ORDER BY m.task_id LIMIT p_limit;
END;

-- How these tasks are; of those that are not there any more nothing is said.
CREATE FUNCTION tasker.read_uniques(p_tasks uuid[]) RETURNS SETOF jsonb
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT tasker.unique_task(t) FROM unnest(p_tasks) AS w(id) CROSS JOIN LATERAL (SELECT * FROM tasker.tasks WHERE id = w.id OFFSET 0) AS t;
END;

-- Of these tasks elsewhere, those that are said how they are are so; the others are gone.
CREATE FUNCTION tasker.note_uniques(p_tasks uuid[], p_now jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    UPDATE tasker.moved_uniques m SET task = e.task FROM jsonb_array_elements(p_now) AS e(task)
    WHERE m.task_id = (e.task ->> 'id')::uuid AND m.task ->> 'finished_at' IS NULL AND m.task <> e.task;
    DELETE FROM tasker.moved_uniques m
    WHERE m.task ->> 'finished_at' IS NULL AND m.task_id = ANY (p_tasks)
      AND NOT EXISTS (SELECT FROM jsonb_array_elements(p_now) AS e(task) WHERE (e.task ->> 'id')::uuid = m.task_id);
END
$$;

-- From now on these namespaces live in another shard. Their schedules begin nothing more here.
-- Errors: TK004 where one of them lives elsewhere already.
-- Locks: the namespaces; then their schedules.
CREATE FUNCTION tasker.close_namespaces(p_names text[], p_to int) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_elsewhere text;
BEGIN
    SELECT n.name INTO v_elsewhere FROM tasker.namespaces n WHERE n.name = ANY (p_names) AND n.lives_in <> ALL (ARRAY[tasker.shard(), p_to]) LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'the namespace % does not live here', v_elsewhere USING ERRCODE = 'TK004';
    END IF;
    UPDATE tasker.namespaces n SET lives_in = p_to, also_in = p_to WHERE n.name = ANY (p_names);
    UPDATE tasker.schedules s SET revision = s.revision + 1, look_at = NULL WHERE split_part(s.template, '/', 1) = ANY (p_names);
END
$$;

-- From now on these namespaces live here, and their schedules begin tasks.
-- Locks: the turn of ensure_namespaces; the namespaces; then their schedules.
CREATE FUNCTION tasker.open_namespaces(p_names text[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM tasker.await_turn('tasker.turn_namespaces');
    PERFORM tasker.apply_limits((SELECT c.overrides FROM tasker.configurations c ORDER BY c.version DESC LIMIT 1));
    UPDATE tasker.namespaces n SET lives_in = tasker.shard() WHERE n.name = ANY (p_names);
    UPDATE tasker.schedules s SET look_at = CASE WHEN s.paused IS NULL THEN coalesce(s.next_at, clock_timestamp()) END
    WHERE split_part(s.template, '/', 1) = ANY (p_names);
    PERFORM tasker.notify('tasker_due', '');
END
$$;

-- The transactions that are open in this database and may write, but for that of p_but: by their virtual ids, which everybody may see.
CREATE FUNCTION tasker.open_transactions(p_but int) RETURNS text[]
LANGUAGE sql VOLATILE BEGIN ATOMIC
    SELECT coalesce(array_agg(DISTINCT l.virtualtransaction), '{}') FROM pg_locks l
    WHERE l.pid IS DISTINCT FROM pg_backend_pid() AND l.pid IS DISTINCT FROM p_but
      AND (l.locktype = 'virtualxid' OR l.relation = 'tasker.namespaces'::regclass)
      AND (l.database IS NULL OR l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database()))
      AND NOT EXISTS (SELECT FROM pg_stat_activity a
                      WHERE a.pid = l.pid AND (a.datname <> current_database() OR a.backend_type = 'autovacuum worker'));
END;

-- The schedules of these namespaces, with those of their times that wait behind others.
CREATE FUNCTION tasker.export_schedules(p_names text[]) RETURNS SETOF jsonb
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT to_jsonb(s) || jsonb_build_object('ticks', (
        SELECT coalesce(jsonb_agg(to_jsonb(k)), '[]') FROM tasker.ticks k WHERE k.schedule_id = s.id AND k.state = 'queued'))
    FROM tasker.schedules s WHERE split_part(s.template, '/', 1) = ANY (p_names) ORDER BY s.id;
END;

-- Has that schedule here, until open_namespaces without beginning anything; again, nothing happens.
CREATE FUNCTION tasker.import_schedule(p_schedule jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_id bigint;
BEGIN
    INSERT INTO tasker.schedules (name, template, definition, owner, revision, since, next_at, look_at, paused)
    SELECT r.name, r.template, r.definition, r.owner, r.revision, r.since, r.next_at, NULL, r.paused
    FROM jsonb_populate_record(NULL::tasker.schedules, p_schedule) AS r ON CONFLICT DO NOTHING RETURNING id INTO v_id;
    INSERT INTO tasker.ticks (schedule_id, time, state, why, at)
    SELECT v_id, r.time, r.state, r.why, r.at FROM jsonb_populate_recordset(NULL::tasker.ticks, p_schedule -> 'ticks') AS r WHERE v_id IS NOT NULL;
END
$$;

-- Deletes the schedules of these namespaces, which are in another shard by now.
CREATE FUNCTION tasker.drop_moved_schedules(p_names text[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    WITH gone AS (DELETE FROM tasker.schedules s WHERE split_part(s.template, '/', 1) = ANY (p_names) RETURNING s.id)
    DELETE FROM tasker.ticks t WHERE t.schedule_id IN (SELECT g.id FROM gone g);
END
$$;

-- What is paused of these namespaces, but for single tasks.
CREATE FUNCTION tasker.export_pauses(p_names text[]) RETURNS SETOF jsonb
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT to_jsonb(p) FROM tasker.pauses p WHERE p.kind <> 'task' AND p.resumed_at IS NULL AND split_part(p.name, '/', 1) = ANY (p_names) ORDER BY p.id;
END;

CREATE FUNCTION tasker.import_pause(p_pause jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO tasker.pauses (kind, name, who, why, since)
    SELECT r.kind, r.name, r.who, r.why, r.since FROM jsonb_populate_record(NULL::tasker.pauses, p_pause) AS r ON CONFLICT DO NOTHING;
END
$$;

-- Nothing of these namespaces is left where they were.
CREATE FUNCTION tasker.end_move(p_names text[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_templates bigint[] := ARRAY(SELECT t.id FROM tasker.templates t JOIN tasker.namespaces n ON n.id = t.namespace_id WHERE n.name = ANY (p_names));
BEGIN
    UPDATE tasker.namespaces n SET also_in = NULL WHERE n.name = ANY (p_names);
    DELETE FROM tasker.moved_keys m WHERE m.template_id = ANY (v_templates);
    DELETE FROM tasker.moved_uniques m WHERE m.template_id = ANY (v_templates);
END
$$;
