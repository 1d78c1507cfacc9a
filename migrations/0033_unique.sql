-- Unique tasks: while there is a task that is the same by its rule, another one is not created beside it. A rule is a template's (unique), or is given
-- with the task: {by, while, within, on_conflict}, where by has SQL/JSON paths over {input}: tasks that have the same there are the same; without
-- any, those with the same input.

-- What is the same, and who was created under it. Its row is what those who create the same at the same time wait for.
CREATE TABLE tasker.uniques (
    template_id bigint NOT NULL,
    sameness    uuid NOT NULL,
    -- of those that are there, the ones that may stand in the way of another yet, in the order in which they came
    tasks       uuid[] NOT NULL DEFAULT '{}',
    -- when to look whether any still does
    look_at     timestamptz NOT NULL,
    PRIMARY KEY (template_id, sameness)
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX uniques_look ON tasker.uniques (look_at);

-- What is wrong with a rule; null: nothing.
CREATE FUNCTION tasker.unique_problem(p_rule jsonb) RETURNS text
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN CASE
        WHEN jsonb_typeof(p_rule) <> 'object' OR p_rule - '{by, while, within, on_conflict}'::text[] <> '{}'
        THEN 'expected an object of by, while, within and on_conflict'
        WHEN p_rule ? 'by' AND NOT (jsonb_typeof(p_rule -> 'by') = 'array' AND jsonb_path_match(p_rule, 'strict !exists($.by[*] ? (@.type() != "string"))'))
        THEN 'expected by to be an array of SQL/JSON paths'
        WHEN NOT coalesce(p_rule ->> 'while' IN ('queued', 'running', 'live'), true) THEN 'expected while to be queued, running or live'
        WHEN p_rule ? 'within' AND coalesce(tasker.duration(p_rule -> 'within') <= interval '0', true)
        THEN 'expected within to be such as {"secs": 3600, "nanos": 0}'
        WHEN NOT coalesce(p_rule ->> 'on_conflict' IN ('return', 'reject', 'replace', 'reschedule'), true)
        THEN 'expected on_conflict to be return, reject, replace or reschedule'
        WHEN p_rule ->> 'on_conflict' = 'reschedule' AND p_rule ->> 'while' IS DISTINCT FROM 'queued'
        THEN 'on_conflict: reschedule is for while: queued: what has begun cannot begin later' END;
END
$$;

-- What makes tasks of a template the same: a digest of what the paths find in the input.
CREATE FUNCTION tasker.sameness(p_rule jsonb, p_input jsonb) RETURNS uuid
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_same jsonb := p_input;
BEGIN
    IF p_rule ? 'by' THEN
        v_same := (
            SELECT jsonb_agg(jsonb_build_array(b.path, jsonb_path_query_first(jsonb_build_object('input', p_input), b.path::jsonpath, '{}', true)) ORDER BY b.n)
            FROM jsonb_array_elements_text(p_rule -> 'by') WITH ORDINALITY AS b(path, n));
    END IF;
    RETURN encode(substring(sha256(convert_to(v_same::text, 'UTF8')) FOR 16), 'hex')::uuid;
END
$$;

-- Whether a task stands in the way of another that is the same. One that is blocked does not, until somebody has settled it; nor one that failed, or is
-- not wanted any more.
CREATE FUNCTION tasker.is_in_the_way(p_task tasker.tasks, p_rule jsonb) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN p_task.state IN ('pending', 'running', 'waiting', 'complete')
       AND coalesce(p_task.created_at > clock_timestamp() - tasker.duration(p_rule -> 'within'), true)
       AND CASE coalesce(p_rule ->> 'while', CASE WHEN NOT p_rule ? 'within' THEN 'live' END)
           WHEN 'queued' THEN p_task.started_at IS NULL
           WHEN 'running' THEN p_task.started_at IS NOT NULL AND p_task.finished_at IS NULL
           WHEN 'live' THEN p_task.finished_at IS NULL
           ELSE true END;
END
$$;

-- Gives a task that has not begun what a new one has that is to be in its place: it begins by that one's version, when that one would.
-- Locks: the caller's, who has that of the task.
CREATE FUNCTION tasker.reschedule_task(
    p_task uuid, p_version tasker.template_versions, p_input jsonb, p_priority text, p_run_at timestamptz, p_tags jsonb
) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_priority smallint    := coalesce(tasker.priority_number(p_priority), p_version.priority);
    v_begins   timestamptz := greatest(p_run_at, now());
    v_due      boolean     := coalesce(p_run_at <= now(), true);
BEGIN
    UPDATE tasker.tasks t
    SET version_id = p_version.id, input = p_input, priority = v_priority, state = CASE WHEN v_due THEN 'pending' ELSE 'waiting' END::tasker.task_state,
        claim_order = CASE WHEN v_due THEN clock_timestamp() - v_priority * tasker.aging() END,
        run_at = p_run_at, due_at = CASE WHEN NOT v_due THEN p_run_at END, tags = tasker.tags_of(p_version.definition, p_input, p_tags),
        deadline_at = v_begins + p_version.deadline, look_at = v_begins + least(p_version.deadline, tasker.shortest_limit(p_version))
    WHERE t.id = p_task;
END
$$;

-- Of tasks that are about to be created, which are not to be: of each, the task that stands for it; null: it is to be created. One whose key is known is
-- left alone. What is in the way is cancelled where the rule says replace, and gets what the new one has where it says reschedule.
-- Of those of one call that are the same, the first counts, or with these two the last.
-- Errors: TK010 one is in the way, and its rule says reject.
-- Locks: what is the same, in order; of that which waits to begin, the tasks in id order, so that none begins before the caller's transaction ends; then
-- those of cancel_tasks.
CREATE FUNCTION tasker.settle_uniques(
    p_version tasker.template_versions, p_ids uuid[], p_inputs jsonb[], p_keys text[], p_priorities text[], p_run_ats timestamptz[], p_tags jsonb[],
    p_rules jsonb[]
) RETURNS uuid[]
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_sameness uuid[] := ARRAY(
        SELECT CASE WHEN w.rule IS NOT NULL THEN tasker.sameness(w.rule, w.input) END
        FROM unnest(p_rules, p_inputs) WITH ORDINALITY AS w(rule, input, n) ORDER BY w.n);
    v_instead  uuid[] := array_fill(NULL::uuid, ARRAY[cardinality(p_ids)]);
    v_counts   int[];
    v_rule     jsonb;
    v_n        int;
    v_way      uuid[];
    v_rest     uuid[];
    v_moved    boolean := EXISTS (SELECT FROM tasker.templates t JOIN tasker.namespaces n ON n.id = t.namespace_id
                                  WHERE t.id = p_version.template_id AND n.also_in IS NOT NULL);
BEGIN
    INSERT INTO tasker.uniques (template_id, sameness, look_at)
    SELECT DISTINCT p_version.template_id, s.sameness, clock_timestamp() FROM unnest(v_sameness) AS s(sameness)
    WHERE s.sameness IS NOT NULL ORDER BY s.sameness ON CONFLICT DO NOTHING;
    PERFORM 1 FROM tasker.uniques u WHERE u.template_id = p_version.template_id AND u.sameness = ANY (v_sameness) ORDER BY u.sameness FOR UPDATE;
    PERFORM 1 FROM tasker.tasks t
    WHERE t.started_at IS NULL AND t.finished_at IS NULL AND t.id = ANY (ARRAY(
        SELECT unnest(u.tasks) FROM unnest(v_sameness, p_rules) AS w(sameness, rule)
        JOIN tasker.uniques u ON u.template_id = p_version.template_id AND u.sameness = w.sameness WHERE w.rule ->> 'while' = 'queued'))
    ORDER BY t.id FOR NO KEY UPDATE;

    v_sameness := ARRAY(
        SELECT CASE WHEN NOT EXISTS (SELECT FROM tasker.tasks t WHERE t.template_id = p_version.template_id AND t.key = w.key)
                     AND NOT (v_moved AND EXISTS (SELECT FROM tasker.moved_keys m WHERE m.template_id = p_version.template_id AND m.key = w.key))
               THEN w.sameness END
        FROM unnest(v_sameness, p_keys) WITH ORDINALITY AS w(sameness, key, n) WHERE w.n <= cardinality(p_ids) ORDER BY w.n);
    v_counts := ARRAY(
        SELECT CASE WHEN w.sameness IS NULL OR w.rule ->> 'while' = 'running' THEN w.n
                    WHEN w.rule ->> 'on_conflict' IN ('replace', 'reschedule') THEN max(w.n) OVER same ELSE min(w.n) OVER same END
        FROM unnest(v_sameness, p_rules) WITH ORDINALITY AS w(sameness, rule, n) WINDOW same AS (PARTITION BY w.sameness, w.rule) ORDER BY w.n);

    FOR v_n IN SELECT c.n FROM unnest(v_counts) WITH ORDINALITY AS c(counts, n) WHERE c.counts = c.n AND v_sameness[c.n] IS NOT NULL ORDER BY c.n LOOP
        v_rule := p_rules[v_n];
        IF v_moved THEN
            v_instead[v_n] := tasker.moved_in_the_way(p_version, v_sameness[v_n], v_rule);
            CONTINUE WHEN v_instead[v_n] IS NOT NULL;
        END IF;
        SELECT coalesce(array_agg(w.id ORDER BY w.n) FILTER (WHERE tasker.is_in_the_way(t, v_rule)), '{}'),
               coalesce(array_agg(w.id ORDER BY w.n) FILTER (
                   WHERE w.id = ANY (p_ids) OR t.finished_at IS NULL AND t.id IS NOT NULL
                      OR t.created_at > clock_timestamp() - tasker.duration(v_rule -> 'within')), '{}')
        INTO v_way, v_rest
        FROM tasker.uniques u CROSS JOIN LATERAL unnest(u.tasks) WITH ORDINALITY AS w(id, n) LEFT JOIN tasker.tasks t ON t.id = w.id
        WHERE u.template_id = p_version.template_id AND u.sameness = v_sameness[v_n];
        IF v_way <> '{}' AND v_rule ->> 'on_conflict' = 'reject' THEN
            PERFORM tasker.refuse_the_same(p_version, v_way[cardinality(v_way)]);
        ELSIF v_way <> '{}' AND v_rule ->> 'on_conflict' = 'replace' THEN
            PERFORM tasker.cancel_tasks(v_way);
        ELSIF v_way <> '{}' THEN
            v_instead[v_n] := v_way[cardinality(v_way)];
            PERFORM tasker.reschedule_task(v_instead[v_n], p_version, p_inputs[v_n], p_priorities[v_n], p_run_ats[v_n], p_tags[v_n])
            WHERE v_rule ->> 'on_conflict' = 'reschedule';
        END IF;
        UPDATE tasker.uniques u
        SET tasks = CASE WHEN v_instead[v_n] IS NULL THEN v_rest || p_ids[v_n] ELSE v_rest END,
            look_at = greatest(u.look_at, clock_timestamp() + greatest(tasker.duration(v_rule -> 'within'), interval '1 hour'))
        WHERE u.template_id = p_version.template_id AND u.sameness = v_sameness[v_n];
    END LOOP;

    FOR v_n IN SELECT c.n FROM unnest(v_counts) WITH ORDINALITY AS c(counts, n) WHERE c.counts <> c.n LOOP
        v_instead[v_n] := coalesce(v_instead[v_counts[v_n]], p_ids[v_counts[v_n]]);
        PERFORM tasker.refuse_the_same(p_version, v_instead[v_n]) WHERE p_rules[v_n] ->> 'on_conflict' = 'reject';
    END LOOP;
    RETURN v_instead;
END
$$;

CREATE FUNCTION tasker.refuse_the_same(p_version tasker.template_versions, p_task uuid) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION '% has a task that is the same: %', (SELECT t.name FROM tasker.templates t WHERE t.id = p_version.template_id), p_task
        USING ERRCODE = 'TK010', DETAIL = p_task, HINT = 'its rule (unique) says on_conflict: reject';
END
$$;

-- Forgets what was the same where nothing is left that can be in the way. Looks at p_limit of them at most, and returns at how many.
-- Locks: those, skipping what somebody creates at the moment.
CREATE FUNCTION tasker.forget_uniques(p_limit int) RETURNS int
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_places tid[] := ARRAY(
        SELECT u.ctid FROM tasker.uniques u WHERE u.look_at < clock_timestamp() ORDER BY u.look_at LIMIT p_limit FOR UPDATE SKIP LOCKED);
BEGIN
    DELETE FROM tasker.uniques u
    WHERE u.ctid = ANY (v_places) AND NOT EXISTS (SELECT FROM tasker.tasks t WHERE t.id = ANY (u.tasks) AND t.finished_at IS NULL);
    UPDATE tasker.uniques u SET look_at = clock_timestamp() + interval '1 hour' WHERE u.ctid = ANY (v_places);
    RETURN cardinality(v_places);
END
$$;
