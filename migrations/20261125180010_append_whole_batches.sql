-- The usual batch holds nothing that has to be refused: one look at the heads, one insert, and the caller knows
-- every set's place from the first position. Where a set is stale, fenced or known already nothing is written, and
-- journal_append says set by set what became of them.
CREATE FUNCTION public.journal_append_all(
    aggregate_types text[], aggregate_ids text[], sequences bigint[], event_types text[], event_versions text[],
    payloads text[], metadatas text[],
    -- of an event that begins a set; elsewhere NULL
    keys text[], set_sizes integer[],
    -- heads that have to stand as they were seen; a stream that begins with its set needs none, its key is taken
    -- or not
    stream_types text[], stream_ids text[], stream_expected bigint[],
    fence_bots uuid[], fence_epochs bigint[],
    -- number of the event that the body came with
    body_places bigint[], body_ids uuid[], body_owners uuid[], body_purposes text[], body_key_versions integer[],
    body_nonces bytea[], body_ciphertexts bytea[], body_turns uuid[], body_conversations uuid[],
    body_sessions integer[], body_epochs integer[], body_prompts uuid[],
    -- whether the commit may wait for the disk when nobody else waits for the ledger's lock
    may_flush boolean,
    -- position before the first event; NULL when nothing was written
    OUT base bigint,
    -- whether the commit waits for the disk
    OUT flushed boolean
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    moment timestamptz;
    micros bigint;
BEGIN
    flushed := may_flush AND pg_try_advisory_xact_lock(7209065211);
    IF flushed THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    ELSE
        PERFORM pg_advisory_xact_lock(7209065211);
    END IF;

    IF EXISTS (
        SELECT FROM unnest(stream_types, stream_ids, stream_expected) AS s (stream_type, stream_id, expected)
        WHERE s.expected <> coalesce((
            SELECT e.sequence FROM public.events e
            WHERE e.aggregate_type = s.stream_type AND e.aggregate_id = s.stream_id
            ORDER BY e.sequence DESC LIMIT 1
        ), 0)
    ) THEN
        RETURN;
    END IF;
    IF cardinality(fence_bots) > 0 AND EXISTS (
        SELECT FROM unnest(fence_bots, fence_epochs) AS f (bot, epoch)
        WHERE f.epoch IS DISTINCT FROM (SELECT lease.epoch FROM public.bot_leases lease WHERE lease.bot_id = f.bot)
    ) THEN
        RETURN;
    END IF;

    SELECT e.position, e.recorded_at INTO base, moment FROM public.events e ORDER BY e.position DESC LIMIT 1;
    base   := coalesce(base, 0);
    moment := greatest(moment, clock_timestamp());
    micros := (extract(epoch FROM moment) * 1000000)::bigint;

    INSERT INTO public.events (aggregate_type, aggregate_id, sequence, event_type, event_version, payload,
        metadata, position, recorded_at, leaf_hash, idempotency_key, set_size)
    SELECT i.aggregate_type, i.aggregate_id, i.sequence, i.event_type, i.event_version, i.payload::json,
        i.metadata::json, base + i.ordinal, moment,
        public.event_leaf_hash(base + i.ordinal, micros, i.sequence, i.aggregate_type, i.aggregate_id,
            i.event_type, i.event_version, i.payload, i.metadata),
        i.key, i.set_size
    FROM unnest(aggregate_types, aggregate_ids, sequences, event_types, event_versions, payloads, metadatas,
                keys, set_sizes) WITH ORDINALITY
        AS i (aggregate_type, aggregate_id, sequence, event_type, event_version, payload, metadata, key, set_size,
              ordinal);

    IF cardinality(body_ids) > 0 THEN
        INSERT INTO public.message_bodies (body_id, owner, purpose, key_version, nonce, ciphertext, turn_id,
            position, conversation, session, context_epoch, prompt_body)
        SELECT b.id, b.owner, b.purpose, b.key_version, b.nonce, b.ciphertext, b.turn, base + b.place,
            b.conversation, b.session, b.epoch, b.prompt
        FROM unnest(body_places, body_ids, body_owners, body_purposes, body_key_versions, body_nonces,
                    body_ciphertexts, body_turns, body_conversations, body_sessions, body_epochs, body_prompts)
            AS b (place, id, owner, purpose, key_version, nonce, ciphertext, turn, conversation, session, epoch, prompt);
    END IF;

    PERFORM pg_notify('botledger_events', (base + cardinality(sequences))::text);
END
$$;

REVOKE ALL ON FUNCTION public.journal_append_all FROM PUBLIC;
GRANT EXECUTE ON FUNCTION public.journal_append_all TO botledger_writer;
