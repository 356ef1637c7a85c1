-- What makes proofs over the ledger short, and the signed heads of its tree (ops/decisions/0014).
-- Verification takes hashes from the events themselves; these tables are compared with them.

-- A tile is 256 neighbouring hashes; only full ones are kept. At level 0 they are leaf hashes, above
-- they are the roots of 256 tiles of the level below. May be emptied by the owner: it is filled again.
CREATE TABLE public.log_tiles (
    level  smallint NOT NULL CHECK (level BETWEEN 0 AND 7),
    number bigint   NOT NULL CHECK (number >= 0),
    root   bytea    NOT NULL CHECK (octet_length(root) = 32),
    -- The hashes one after another, at level 0 only.
    leaves bytea    CHECK (octet_length(leaves) = 8192),
    CONSTRAINT log_tiles_pkey PRIMARY KEY (level, number),
    CONSTRAINT log_tiles_leaves CHECK ((leaves IS NOT NULL) = (level = 0))
);

-- Signed heads, for ever: what was once told about history.
CREATE TABLE public.log_checkpoints (
    -- Leaves of the tree; one head a size.
    size      bigint      CONSTRAINT log_checkpoints_pkey PRIMARY KEY CHECK (size > 0),
    root      bytea       NOT NULL CHECK (octet_length(root) = 32),
    -- The signed note, letter by letter.
    note      text        NOT NULL,
    signed_at timestamptz NOT NULL
);

CREATE TRIGGER log_checkpoints_are_immutable BEFORE UPDATE OR DELETE OR TRUNCATE ON public.log_checkpoints
    FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_ledger_change();

-- What witnesses said of heads, for ever: signature lines that belong under the head's note.
CREATE TABLE public.log_cosignatures (
    size    bigint NOT NULL REFERENCES public.log_checkpoints (size),
    -- Name of its key.
    witness text   NOT NULL,
    line    text   NOT NULL,
    CONSTRAINT log_cosignatures_pkey PRIMARY KEY (size, witness)
);

CREATE TRIGGER log_cosignatures_are_immutable BEFORE UPDATE OR DELETE OR TRUNCATE ON public.log_cosignatures
    FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_ledger_change();

GRANT SELECT, INSERT ON public.log_tiles, public.log_checkpoints, public.log_cosignatures TO botledger_writer;
