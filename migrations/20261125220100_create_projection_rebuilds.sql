-- Rebuilds beside the live tables (ops/decisions/0020). A new set of tables fills in schema read_next,
-- trades places with the live one, and the old set is kept in read_previous until somebody lets go of it.
CREATE SCHEMA read_next;
CREATE SCHEMA read_previous;
GRANT USAGE ON SCHEMA read_next, read_previous TO botledger_writer;

CREATE TABLE public.projection_rebuilds (
    id                bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name              text        NOT NULL,
    version           integer     NOT NULL,
    tables            text[]      NOT NULL,
    -- filling; stopped at an event it cannot apply; ready, that is compared and following; swapped, that is
    -- live with the previous rows kept; done, the previous rows are gone; rolled_back; cancelled
    state             text        NOT NULL DEFAULT 'filling' CHECK (state IN
                                  ('filling', 'stopped', 'ready', 'swapped', 'done', 'rolled_back', 'cancelled')),
    position          bigint      NOT NULL DEFAULT 0,
    -- where it is going: at first where the live rows are, once compared the head of the ledger
    target            bigint      NOT NULL DEFAULT 0,
    -- events a second over its last page
    rate              bigint,
    failed_position   bigint,
    error             text,
    -- both sets of rows stood here when they were compared
    compared_position bigint,
    rows              bigint,
    live_rows         bigint,
    different         bigint,
    -- some of the rows that differ: [{table, live, replayed}]
    differences       jsonb,
    previous_version  integer,
    previous_position bigint,
    started_at        timestamptz NOT NULL DEFAULT now(),
    updated_at        timestamptz NOT NULL DEFAULT now()
);
-- One set of tables fills and one is kept, for each read model.
CREATE UNIQUE INDEX projection_rebuilds_open ON public.projection_rebuilds (name)
    WHERE state IN ('filling', 'stopped', 'ready');
CREATE UNIQUE INDEX projection_rebuilds_kept ON public.projection_rebuilds (name) WHERE state = 'swapped';

-- What operators did to read models, with the change itself: who, why, when. Only added to.
CREATE TABLE public.projection_changes (
    id         bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    rebuild_id bigint      NOT NULL,
    name       text        NOT NULL,
    change     text        NOT NULL CHECK (change IN ('started', 'resumed', 'swapped', 'rolled_back', 'cancelled', 'forgotten')),
    position   bigint      NOT NULL,
    -- as events name actors: operator:<id>, system:cli
    actor      text        NOT NULL,
    reason     text        NOT NULL,
    changed_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX projection_changes_name ON public.projection_changes (name, id);

GRANT SELECT, INSERT, UPDATE ON public.projection_rebuilds TO botledger_writer;
GRANT SELECT, INSERT ON public.projection_changes TO botledger_writer;

-- The running product owns no table and may create none. These functions let it keep copies of read
-- tables in the two schemas above, trade them with the live ones, and nothing else.
CREATE FUNCTION public.read_model_prepare(names text[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    wanted text;
    live regclass;
    statement text;
BEGIN
    FOREACH wanted IN ARRAY names LOOP
        live := to_regclass(format('read.%I', wanted));
        IF live IS NULL THEN
            RAISE EXCEPTION 'there is no read table %', wanted;
        END IF;
        EXECUTE format('DROP TABLE IF EXISTS read_next.%I', wanted);
        EXECUTE format('CREATE TABLE read_next.%I (LIKE read.%I INCLUDING ALL EXCLUDING INDEXES)', wanted, wanted);
        -- Indexes under their own names: later migrations name them.
        FOR statement IN
            SELECT format('ALTER TABLE read_next.%I ADD CONSTRAINT %I %s', wanted, conname, pg_get_constraintdef(oid))
            FROM pg_constraint WHERE conrelid = live AND contype IN ('p', 'u', 'x')
            UNION ALL
            SELECT replace(pg_get_indexdef(i.indexrelid), format(' ON read.%I USING ', wanted),
                           format(' ON read_next.%I USING ', wanted))
            FROM pg_index i
            WHERE i.indrelid = live
              AND NOT EXISTS (SELECT FROM pg_constraint c WHERE c.conindid = i.indexrelid AND c.conrelid = live)
            UNION ALL
            SELECT format('GRANT %s ON read_next.%I TO %s', privilege_type, wanted,
                          CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END)
            FROM pg_class c, aclexplode(c.relacl) WHERE c.oid = live AND grantee <> c.relowner
        LOOP
            EXECUTE statement;
        END LOOP;
    END LOOP;
END
$$;

CREATE FUNCTION public.read_model_drop(place text, names text[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    wanted text;
BEGIN
    IF place NOT IN ('read_next', 'read_previous') THEN
        RAISE EXCEPTION 'copies are never in %', place;
    END IF;
    FOREACH wanted IN ARRAY names LOOP
        EXECUTE format('DROP TABLE IF EXISTS %I.%I', place, wanted);
    END LOOP;
END
$$;

-- The tables in `place` become the live ones. Those that were live go to read_previous, or are dropped
-- when it was from there that others came back.
CREATE FUNCTION public.read_model_trade(place text, names text[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    wanted text;
    looks text[] := '{}';
    look record;
    statement text;
BEGIN
    IF place NOT IN ('read_next', 'read_previous') THEN
        RAISE EXCEPTION 'copies are never in %', place;
    END IF;
    -- Until the commit: a caller who is paused with these locks must not keep readers out.
    PERFORM set_config('idle_in_transaction_session_timeout', '3s', true);
    FOREACH wanted IN ARRAY names LOOP
        EXECUTE format('LOCK TABLE read.%I IN ACCESS EXCLUSIVE MODE', wanted);
        IF EXISTS (
            SELECT FROM (
                SELECT attname, atttypid, atttypmod, attnum, attnotnull FROM pg_attribute
                WHERE attrelid = to_regclass(format('read.%I', wanted)) AND attnum > 0 AND NOT attisdropped
            ) AS live
            FULL JOIN (
                SELECT attname, atttypid, atttypmod, attnum, attnotnull FROM pg_attribute
                WHERE attrelid = to_regclass(format('%I.%I', place, wanted)) AND attnum > 0 AND NOT attisdropped
            ) AS copy USING (attname, atttypid, atttypmod, attnotnull)
            WHERE live.attname IS NULL OR copy.attname IS NULL
        ) THEN
            RAISE EXCEPTION 'table % was changed by a migration since its copy was made', wanted
                USING ERRCODE = 'object_not_in_prerequisite_state';
        END IF;
    END LOOP;
    -- Views know their tables by identity and not by name: they are made again over the new ones.
    FOR look IN
        SELECT DISTINCT v.oid, v.relkind, v.oid::regclass::text AS name, pg_get_viewdef(v.oid) AS body,
               array_to_string(v.reloptions, ', ') AS options
        FROM unnest(names) AS n
        JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = to_regclass(format('read.%I', n))
        JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
        JOIN pg_class v ON v.oid = r.ev_class
        ORDER BY v.oid
    LOOP
        IF look.relkind <> 'v' THEN
            RAISE EXCEPTION '% is no plain view and would go on showing the old rows', look.name
                USING ERRCODE = 'feature_not_supported';
        END IF;
        looks := looks || format('CREATE OR REPLACE VIEW %s %s AS %s', look.name,
                                 coalesce('WITH (' || look.options || ')', ''), look.body);
    END LOOP;
    FOREACH wanted IN ARRAY names LOOP
        IF place = 'read_previous' THEN
            EXECUTE format('ALTER TABLE read.%I SET SCHEMA read_next', wanted);
            EXECUTE format('ALTER TABLE read_previous.%I SET SCHEMA read', wanted);
        ELSE
            EXECUTE format('DROP TABLE IF EXISTS read_previous.%I', wanted);
            EXECUTE format('ALTER TABLE read.%I SET SCHEMA read_previous', wanted);
            EXECUTE format('ALTER TABLE read_next.%I SET SCHEMA read', wanted);
        END IF;
    END LOOP;
    FOREACH statement IN ARRAY looks LOOP
        EXECUTE statement;
    END LOOP;
    IF place = 'read_previous' THEN
        PERFORM public.read_model_drop('read_next', names);
    END IF;
END
$$;

REVOKE ALL ON FUNCTION public.read_model_prepare, public.read_model_drop, public.read_model_trade FROM PUBLIC;
GRANT EXECUTE ON FUNCTION public.read_model_prepare, public.read_model_drop, public.read_model_trade TO botledger_writer;
