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

-- The product's role writes no tiles: this does, from the hashes beside the events and from the tiles below.
-- Fills those of a level from number `first` to before `upto` that are not there, and gives the roots of all
-- of them as they stand. The signer compares these with what it has computed itself.
CREATE FUNCTION public.log_tiles_fill(tile_level smallint, first bigint, upto bigint)
RETURNS TABLE (tile bigint, tile_root bytea)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    place  bigint;
    hashes bytea[];
    joined bytea;
BEGIN
    FOR place IN
        SELECT n FROM generate_series(first, upto - 1) n
        WHERE NOT EXISTS (SELECT FROM public.log_tiles t WHERE t.level = tile_level AND t.number = n)
    LOOP
        IF tile_level = 0 THEN
            SELECT array_agg(e.leaf_hash ORDER BY e.position), string_agg(e.leaf_hash, ''::bytea ORDER BY e.position)
            INTO hashes, joined
            FROM public.events e WHERE e.position > place * 256 AND e.position <= (place + 1) * 256;
        ELSE
            SELECT array_agg(t.root ORDER BY t.number), NULL
            INTO hashes, joined
            FROM public.log_tiles t
            WHERE t.level = tile_level - 1 AND t.number >= place * 256 AND t.number < (place + 1) * 256;
        END IF;
        IF cardinality(hashes) IS DISTINCT FROM 256 THEN
            RAISE EXCEPTION 'tile % of level % is not complete', place, tile_level;
        END IF;
        WHILE cardinality(hashes) > 1 LOOP
            hashes := ARRAY(
                SELECT sha256('\x01'::bytea || hashes[2 * pair - 1] || hashes[2 * pair])
                FROM generate_series(1, cardinality(hashes) / 2) pair ORDER BY pair
            );
        END LOOP;
        INSERT INTO public.log_tiles (level, number, root, leaves) VALUES (tile_level, place, hashes[1], joined);
    END LOOP;
    RETURN QUERY
        SELECT t.number, t.root FROM public.log_tiles t
        WHERE t.level = tile_level AND t.number >= first AND t.number < upto ORDER BY t.number;
END
$$;

REVOKE ALL ON FUNCTION public.log_tiles_fill FROM PUBLIC;
GRANT EXECUTE ON FUNCTION public.log_tiles_fill TO botledger_writer;
GRANT SELECT ON public.log_tiles TO botledger_writer;
GRANT SELECT, INSERT ON public.log_checkpoints, public.log_cosignatures TO botledger_writer;
