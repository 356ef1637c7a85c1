-- A ledger may be brought in from the files of another installation, into an empty one. While that is
-- under way nobody else writes: a position taken in between could never be given to the event it belongs to.
CREATE TABLE public.log_imports (
    -- An installation is empty once.
    one             boolean     PRIMARY KEY DEFAULT true CHECK (one),
    -- SHA-256 of the manifest
    manifest        bytea       NOT NULL CHECK (octet_length(manifest) = 32),
    -- Leaf hash of the first event: whose ledger this is.
    ledger          bytea       NOT NULL CHECK (octet_length(ledger) = 32),
    -- What the exporting installation called itself.
    instance        text        NOT NULL,
    last_position   bigint      NOT NULL CHECK (last_position > 0),
    -- Head of the Merkle tree over all imported events.
    root            bytea       NOT NULL CHECK (octet_length(root) = 32),
    -- Lines of body files that are in already; events count themselves.
    bodies          bigint      NOT NULL DEFAULT 0,
    began_at        timestamptz NOT NULL,
    finished_at     timestamptz
);

GRANT SELECT ON public.log_imports TO botledger_writer;

CREATE FUNCTION public.refuse_append_while_importing() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- Anybody can set the word; only the tables' owner may do what an import does.
    IF current_setting('botledger.importing', true) IS DISTINCT FROM 'on'
        OR NOT pg_has_role(session_user, (SELECT relowner FROM pg_class WHERE oid = TG_RELID), 'MEMBER')
    THEN
        RAISE EXCEPTION 'a ledger is being imported here: run botledger import again until it has finished'
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    RETURN NULL;
END
$$;

-- The importer, as the owner, puts it in force and out of it; an ordinary append does not pay for it.
CREATE TRIGGER events_wait_for_an_import BEFORE INSERT ON public.events
    FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_append_while_importing();
ALTER TABLE public.events DISABLE TRIGGER events_wait_for_an_import;
