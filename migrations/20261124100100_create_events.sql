-- The ledger. The first seven columns and the primary key are those of postgres-es; the rest is ours.
-- The primary key is the arbiter of optimistic concurrency: a separate table of stream heads would
-- halve the throughput.
CREATE TABLE public.events (
    aggregate_type  text        NOT NULL,
    aggregate_id    text        NOT NULL,
    sequence        bigint      NOT NULL CHECK (sequence > 0),
    event_type      text        NOT NULL,
    event_version   text        NOT NULL,
    payload         json        NOT NULL,
    metadata        json        NOT NULL,
    -- Dense, from 1, in commit order over all streams.
    position        bigint      NOT NULL CHECK (position > 0),
    recorded_at     timestamptz NOT NULL,
    -- RFC 6962 leaf hash of the canonical bytes (domain/src/leaf.rs).
    leaf_hash       bytea       NOT NULL CHECK (octet_length(leaf_hash) = 32),
    -- On the first event of an append set only; `<workspace>/<caller's key>`.
    idempotency_key text,
    -- Number of events in the append set, on its first event only.
    set_size        integer,
    CONSTRAINT events_pkey PRIMARY KEY (aggregate_type, aggregate_id, sequence)
);

CREATE UNIQUE INDEX events_position_key ON public.events (position);
CREATE UNIQUE INDEX events_idempotency_key_key ON public.events (idempotency_key) WHERE idempotency_key IS NOT NULL;

CREATE FUNCTION public.refuse_ledger_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the ledger is append-only: % on % is refused', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'restrict_violation';
END
$$;

CREATE TRIGGER events_are_immutable BEFORE UPDATE OR DELETE OR TRUNCATE ON public.events
    FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_ledger_change();

-- No INSERT: the only door is the append function.
GRANT SELECT ON public.events TO botledger_writer;
