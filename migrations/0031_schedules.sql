-- Schedules: tasks that begin at their times. The library says which times these are (src/schedule.rs); what is here sees to it that each counts once,
-- however many orchestrators ask: they know the next time of a schedule, and whoever is first moves it on.

CREATE TABLE tasker.schedules (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name       text NOT NULL UNIQUE CHECK (length(name) BETWEEN 1 AND 200),
    -- of whose tasks: namespace/name
    template   text NOT NULL,
    -- as the library writes it: {cron, time_zone} or {every}, jitter, overlap, catch_up, starts_at, ends_at, input, priority, version
    definition jsonb NOT NULL,
    -- who may change it: an operator, its template, or a file of settings
    owner      text NOT NULL CHECK (owner IN ('operator', 'template', 'file')),
    -- how often it was changed
    revision   int NOT NULL DEFAULT 1,
    -- only times after that count
    since      timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- the next time; null: the library is to say, or none comes
    next_at    timestamptz,
    -- when there is something to do about it
    look_at    timestamptz DEFAULT clock_timestamp(),
    -- {at, who, why}; null: it is not
    paused     jsonb
);
CREATE INDEX schedules_look ON tasker.schedules (look_at) WHERE look_at IS NOT NULL;

-- What became of each time of a schedule.
CREATE TABLE tasker.ticks (
    schedule_id bigint NOT NULL,
    time        timestamptz NOT NULL,
    -- started, queued (behind others), or skipped (why)
    state       text NOT NULL CHECK (state IN ('started', 'queued', 'skipped')),
    task_id     uuid,
    why         text,
    at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (schedule_id, time)
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX ticks_queued ON tasker.ticks (schedule_id, time) WHERE state = 'queued';

-- Creates a schedule, or changes it: its old form never begins anything from then on. What is as it was stays as it is.
-- Errors: TK002, TK003 (see find_template), TK004 when it belongs to another owner; TK011 (see refuse_moved).
CREATE FUNCTION tasker.put_schedule(p_name text, p_template text, p_definition jsonb, p_owner text, OUT outcome text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_version  tasker.template_versions := tasker.find_template(p_template, p_definition ->> 'version');
    v_template text := (SELECT n.name || '/' || tp.name FROM tasker.templates tp JOIN tasker.namespaces n ON n.id = tp.namespace_id
                        WHERE tp.id = v_version.template_id);
    v_known    tasker.schedules;
BEGIN
    PERFORM tasker.refuse_moved(split_part(v_template, '/', 1));
    INSERT INTO tasker.schedules (name, template, definition, owner) VALUES (p_name, v_template, p_definition, p_owner) ON CONFLICT (name) DO NOTHING;
    outcome := CASE WHEN FOUND THEN 'created' END;
    IF outcome IS NULL THEN
        SELECT * INTO v_known FROM tasker.schedules s WHERE s.name = p_name FOR UPDATE;
        IF v_known.owner <> p_owner THEN
            RAISE EXCEPTION 'the schedule % belongs to %', p_name,
                CASE v_known.owner WHEN 'template' THEN 'its template' WHEN 'file' THEN 'a file of settings' ELSE 'an operator' END
                USING ERRCODE = 'TK004', HINT = 'change it there, or use another name';
        END IF;
        outcome := CASE WHEN (v_known.template, v_known.definition) = (v_template, p_definition) THEN 'unchanged' ELSE 'changed' END;
        UPDATE tasker.schedules s
        SET template = v_template, definition = p_definition, revision = s.revision + 1, since = clock_timestamp(), next_at = NULL, look_at = clock_timestamp()
        WHERE s.id = v_known.id AND outcome = 'changed';
    END IF;
    IF outcome <> 'unchanged' THEN
        PERFORM tasker.notify('tasker_due', '');
    END IF;
END
$$;

-- Deletes the schedule of that name, which must be an operator's. Returns whether there was one. What it began goes on.
-- Errors: TK004 when it belongs to another owner.
CREATE FUNCTION tasker.delete_schedule(p_name text) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_known tasker.schedules;
BEGIN
    DELETE FROM tasker.schedules s WHERE s.name = p_name RETURNING * INTO v_known;
    IF v_known.owner <> 'operator' THEN
        RAISE EXCEPTION 'the schedule % belongs to %', p_name, CASE v_known.owner WHEN 'template' THEN 'its template' ELSE 'a file of settings' END
            USING ERRCODE = 'TK004', HINT = 'take it out there; or pause it';
    END IF;
    DELETE FROM tasker.ticks t WHERE t.schedule_id = v_known.id;
    RETURN v_known.id IS NOT NULL;
END
$$;

-- Has a template, or the file of settings (p_template null), no other schedules than these: {name: definition}; of a file each names its template.
-- Locks: the schedules in the order of their names.
CREATE FUNCTION tasker.put_schedules(p_template text, p_schedules jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_owner text := CASE WHEN p_template IS NULL THEN 'file' ELSE 'template' END;
BEGIN
    WITH gone AS (
        DELETE FROM tasker.schedules s
        WHERE s.owner = v_owner AND (p_template IS NULL OR s.template = p_template) AND NOT p_schedules ? s.name RETURNING s.id
    )
    DELETE FROM tasker.ticks t WHERE t.schedule_id IN (SELECT g.id FROM gone g);
    PERFORM tasker.put_schedule(d.name, coalesce(p_template, d.definition ->> 'template'), d.definition - 'template', v_owner)
    FROM (SELECT e.name, e.definition FROM jsonb_each(p_schedules) AS e(name, definition) ORDER BY e.name) AS d;
END
$$;

-- Has a template the schedules of its current version, by the names namespace/template:schedule, and no others.
CREATE FUNCTION tasker.keep_schedules(p_template bigint, p_name text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_schedules jsonb := (SELECT tv.definition -> 'schedules' FROM tasker.templates t JOIN tasker.template_versions tv ON tv.id = t.current_version_id
                          WHERE t.id = p_template);
BEGIN
    IF v_schedules IS NOT NULL OR EXISTS (SELECT FROM tasker.schedules s WHERE s.owner = 'template' AND s.template = p_name) THEN
        PERFORM tasker.put_schedules(p_name, (SELECT coalesce(jsonb_object_agg(p_name || ':' || e.key, e.value), '{}')
                                              FROM jsonb_each(coalesce(v_schedules, '{}')) AS e(key, value)));
    END IF;
END
$$;

-- Pauses a schedule, or lets it go on: what would have been meanwhile does not begin. Returns whether there is one of that name.
CREATE FUNCTION tasker.pause_schedule(p_name text, p_paused boolean, p_who text, p_why text) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    UPDATE tasker.schedules s
    SET paused = CASE WHEN p_paused THEN coalesce(s.paused, jsonb_build_object('at', clock_timestamp(), 'who', p_who, 'why', p_why)) END,
        since = CASE WHEN p_paused OR s.paused IS NULL THEN s.since ELSE clock_timestamp() END,
        next_at = CASE WHEN p_paused OR s.paused IS NOT NULL THEN NULL ELSE s.next_at END,
        look_at = CASE WHEN p_paused THEN NULL WHEN s.paused IS NOT NULL THEN clock_timestamp() ELSE s.look_at END
    WHERE s.name = p_name;
    IF FOUND THEN
        PERFORM tasker.notify('tasker_due', '');
    END IF;
    RETURN FOUND;
END
$$;

-- The schedules about which there is something to do now, and what time it is.
CREATE FUNCTION tasker.due_schedules(p_limit int)
RETURNS TABLE (id bigint, name text, revision int, definition jsonb, since timestamptz, next_at timestamptz, now timestamptz)
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT s.id, s.name, s.revision, s.definition, s.since, s.next_at, clock_timestamp() FROM tasker.schedules s
    WHERE s.look_at <= (SELECT clock_timestamp()) ORDER BY s.look_at LIMIT p_limit;
END;

-- When there is something to do about any schedule; null: never.
CREATE FUNCTION tasker.schedules_due() RETURNS timestamptz
LANGUAGE sql STABLE BEGIN ATOMIC SELECT s.look_at FROM tasker.schedules s WHERE s.look_at IS NOT NULL ORDER BY s.look_at LIMIT 1; END;

-- The tasks of a schedule that run, or are about to.
CREATE FUNCTION tasker.running_ticks(p_schedule bigint) RETURNS uuid[]
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT coalesce(array_agg(t.id), '{}') FROM tasker.ticks k
    CROSS JOIN LATERAL (SELECT * FROM tasker.tasks WHERE id = k.task_id OFFSET 0) AS t
    WHERE k.schedule_id = p_schedule AND t.finished_at IS NULL AND t.state <> 'blocked';
END;

-- Creates the task of a time. Returns why it cannot; null: it has. A namespace that takes no tasks now has it later: 'later'.
-- Locks: the caller's, who has the schedule; then those of create_tasks.
CREATE FUNCTION tasker.start_tick(p_schedule tasker.schedules, p_time timestamptz, OUT task uuid, OUT problem text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_definition jsonb := p_schedule.definition;
    v_jitter     interval := tasker.duration(v_definition -> 'jitter');
BEGIN
    task := (SELECT c.id FROM tasker.create_tasks(
        p_schedule.template,
        ARRAY[(SELECT coalesce(jsonb_object_agg(e.key, CASE WHEN e.value = '"$time"' THEN to_jsonb(p_time) ELSE e.value END), '{}')
               FROM jsonb_each(coalesce(v_definition -> 'input', '{}')) AS e(key, value))],
        ARRAY['schedule/' || p_schedule.id || '/' || extract(epoch FROM p_time)], ARRAY[v_definition ->> 'priority'], v_definition ->> 'version', NULL,
        CASE WHEN v_jitter IS NOT NULL THEN ARRAY[greatest(p_time, clock_timestamp()) + random() * v_jitter] END) AS c);
EXCEPTION
    WHEN SQLSTATE 'TK007' THEN
        problem := 'later';
    -- It begins where its namespace lives.
    WHEN SQLSTATE 'TK011' THEN
        RAISE;
    WHEN OTHERS THEN
        problem := SQLERRM;
END
$$;

-- Does with a time what its schedule says about those that overlap; once, whoever asks.
-- Locks: the caller's, who has the schedule; then those of cancel_tasks and create_tasks.
CREATE FUNCTION tasker.tick(p_schedule tasker.schedules, p_time timestamptz, p_overlap text) RETURNS uuid
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_running uuid[];
    v_task    uuid;
    v_problem text;
BEGIN
    IF EXISTS (SELECT FROM tasker.ticks t WHERE t.schedule_id = p_schedule.id AND t.time = p_time) THEN
        RETURN NULL;
    END IF;
    IF p_overlap <> 'allow' THEN
        v_running := tasker.running_ticks(p_schedule.id);
        IF p_overlap = 'cancel_old' AND v_running <> '{}' THEN
            PERFORM tasker.cancel_tasks(v_running);
        ELSIF p_overlap = 'skip' AND v_running <> '{}' THEN
            v_problem := 'task ' || v_running[1] || ' has not ended';
        ELSIF p_overlap = 'queue' AND (v_running <> '{}' OR EXISTS (
            SELECT FROM tasker.ticks t WHERE t.schedule_id = p_schedule.id AND t.state = 'queued'))
        THEN
            v_problem := 'later';
        END IF;
    END IF;
    IF v_problem IS NULL THEN
        SELECT s.task, s.problem INTO v_task, v_problem FROM tasker.start_tick(p_schedule, p_time) AS s;
    END IF;
    INSERT INTO tasker.ticks (schedule_id, time, state, task_id, why)
    VALUES (p_schedule.id, p_time, CASE WHEN v_problem IS NULL THEN 'started' WHEN v_problem = 'later' THEN 'queued' ELSE 'skipped' END, v_task,
            nullif(v_problem, 'later'));
    RETURN v_task;
END
$$;

-- Begins the tasks of these times of a schedule, and those that are queued if it is their turn, and moves it on to p_next; unless somebody else has, or it
-- was changed, deleted or paused meanwhile. Returns how many began.
-- Locks: the schedule; then those of tick.
CREATE FUNCTION tasker.fire_schedule(p_id bigint, p_revision int, p_from timestamptz, p_times timestamptz[], p_next timestamptz) RETURNS int
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_schedule tasker.schedules;
    v_overlap  text;
    v_started  int := 0;
    v_time     timestamptz;
    v_task     uuid;
    v_problem  text;
BEGIN
    SELECT * INTO v_schedule FROM tasker.schedules s
    WHERE s.id = p_id AND s.revision = p_revision AND s.next_at IS NOT DISTINCT FROM p_from AND s.paused IS NULL FOR UPDATE;
    IF NOT FOUND THEN
        RETURN 0;
    END IF;
    v_overlap := coalesce(v_schedule.definition ->> 'overlap', 'allow');
    LOOP
        SELECT t.time INTO v_time FROM tasker.ticks t WHERE t.schedule_id = p_id AND t.state = 'queued' ORDER BY t.time LIMIT 1;
        EXIT WHEN v_time IS NULL OR v_overlap = 'queue' AND tasker.running_ticks(p_id) <> '{}';
        SELECT s.task, s.problem INTO v_task, v_problem FROM tasker.start_tick(v_schedule, v_time) AS s;
        EXIT WHEN v_problem = 'later';
        UPDATE tasker.ticks t SET state = CASE WHEN v_problem IS NULL THEN 'started' ELSE 'skipped' END, task_id = v_task, why = v_problem, at = clock_timestamp()
        WHERE t.schedule_id = p_id AND t.time = v_time;
        v_started := v_started + (v_problem IS NULL)::int;
    END LOOP;
    FOREACH v_time IN ARRAY p_times LOOP
        v_started := v_started + (tasker.tick(v_schedule, v_time, v_overlap) IS NOT NULL)::int;
    END LOOP;
    UPDATE tasker.schedules s
    SET next_at = p_next,
        look_at = CASE WHEN EXISTS (SELECT FROM tasker.ticks t WHERE t.schedule_id = p_id AND t.state = 'queued')
                  THEN least(p_next, clock_timestamp() + interval '1 second') ELSE p_next END
    WHERE s.id = p_id;
    RETURN v_started;
END
$$;

-- Begins tasks of a schedule by hand: now (p_times null), or for these times, each once, beside what runs. Returns their ids.
-- Errors: TK002 when there is no such schedule.
-- Locks: the schedule; then those of tick.
CREATE FUNCTION tasker.trigger_schedule(p_name text, p_times timestamptz[]) RETURNS SETOF uuid
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_schedule tasker.schedules;
    v_time     timestamptz;
    v_task     uuid;
BEGIN
    SELECT * INTO v_schedule FROM tasker.schedules s WHERE s.name = p_name FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'no schedule %', p_name USING ERRCODE = 'TK002';
    END IF;
    FOREACH v_time IN ARRAY coalesce(p_times, ARRAY[clock_timestamp()]) LOOP
        v_task := tasker.tick(v_schedule, v_time, 'allow');
        IF v_task IS NOT NULL THEN
            RETURN NEXT v_task;
        END IF;
    END LOOP;
END
$$;

-- The schedules, by name; with p_name that one, and its last p_ticks times.
CREATE FUNCTION tasker.list_schedules(p_name text DEFAULT NULL, p_ticks int DEFAULT 0) RETURNS SETOF jsonb
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT jsonb_build_object(
        'name', s.name, 'template', s.template, 'definition', s.definition, 'owner', s.owner, 'since', s.since, 'next_at', s.next_at, 'paused', s.paused,
        'last', (SELECT jsonb_build_object('time', t.time, 'state', t.state, 'task', t.task_id, 'why', t.why)
                 FROM tasker.ticks t WHERE t.schedule_id = s.id ORDER BY t.time DESC LIMIT 1),
        'ticks', (SELECT coalesce(jsonb_agg(jsonb_build_object('time', l.time, 'state', l.state, 'task', l.task_id, 'why', l.why) ORDER BY l.time DESC), '[]')
                  FROM (SELECT * FROM tasker.ticks t WHERE t.schedule_id = s.id ORDER BY t.time DESC LIMIT p_ticks) AS l))
    FROM tasker.schedules s WHERE p_name IS NULL OR s.name = p_name ORDER BY s.name;
END;

-- Forgets what became of times longer ago than p_age, but for tasks that have not ended; p_limit at most. Returns how many.
CREATE FUNCTION tasker.forget_ticks(p_age interval, p_limit int) RETURNS int
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_forgotten int;
BEGIN
    DELETE FROM tasker.ticks t WHERE t.ctid = ANY (ARRAY(
        SELECT o.ctid FROM tasker.ticks o WHERE o.at < clock_timestamp() - p_age AND o.state <> 'queued'
          AND NOT EXISTS (SELECT FROM tasker.tasks k WHERE k.id = o.task_id AND k.finished_at IS NULL) LIMIT p_limit));
    GET DIAGNOSTICS v_forgotten = ROW_COUNT;
    RETURN v_forgotten;
END
$$;
