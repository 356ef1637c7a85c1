-- The server's clock can be set back; the ledger's must not be. Where times never fall while positions
-- rise, a moment is one position, and looking it up needs no index of its own: an event gets the time
-- of the one before it until the clock has caught up. The function is otherwise what it was.
CREATE OR REPLACE FUNCTION public.journal_append(
    event_sets integer[], aggregate_types text[], aggregate_ids text[], sequences bigint[],
    event_types text[], event_versions text[], payloads text[], metadatas text[],
    stream_sets integer[], stream_types text[], stream_ids text[], stream_expected bigint[],
    set_keys text[], fence_bots uuid[], fence_epochs bigint[],
    body_sets integer[], body_ids uuid[], body_owners uuid[], body_purposes text[], body_key_versions integer[],
    body_nonces bytea[], body_ciphertexts bytea[], body_turns uuid[], body_conversations uuid[],
    body_sessions integer[], body_epochs integer[], body_prompts uuid[]
)
-- One row a set. outcome: appended, duplicate (first_position and event_count are those of the earlier
-- set), conflict (stream and its head), fenced.
RETURNS TABLE (
    set_number integer, outcome text, first_position bigint, event_count integer,
    conflict_type text, conflict_id text, actual bigint
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    base       bigint;
    moment     timestamptz;
    micros     bigint;
    appended   bigint;
    outcomes   text[];
    firsts     bigint[];
    counts     integer[];
    c_types    text[];
    c_ids      text[];
    c_actuals  bigint[];
    problem    record;
BEGIN
    PERFORM pg_advisory_xact_lock(7209065211);
    outcomes  := array_fill('appended'::text, ARRAY[cardinality(set_keys)]);
    firsts    := array_fill(NULL::bigint, ARRAY[cardinality(set_keys)]);
    counts    := array_fill(0, ARRAY[cardinality(set_keys)]);
    c_types   := array_fill(NULL::text, ARRAY[cardinality(set_keys)]);
    c_ids     := c_types;
    c_actuals := array_fill(NULL::bigint, ARRAY[cardinality(set_keys)]);

    -- Weakest reason first: a later loop overwrites, and a duplicate is an answer, not a refusal.
    FOR problem IN
        SELECT s.n, s.stream_type, s.stream_id, coalesce(head.sequence, 0) AS head
        FROM unnest(stream_sets, stream_types, stream_ids, stream_expected)
            AS s (n, stream_type, stream_id, expected)
        LEFT JOIN LATERAL (
            SELECT e.sequence FROM public.events e
            WHERE e.aggregate_type = s.stream_type AND e.aggregate_id = s.stream_id
            ORDER BY e.sequence DESC LIMIT 1
        ) head ON true
        WHERE coalesce(head.sequence, 0) <> s.expected
    LOOP
        outcomes[problem.n]  := 'conflict';
        c_types[problem.n]   := problem.stream_type;
        c_ids[problem.n]     := problem.stream_id;
        c_actuals[problem.n] := problem.head;
    END LOOP;

    IF num_nonnulls(VARIADIC fence_bots) > 0 THEN
        FOR problem IN
            SELECT f.n, lease.epoch
            FROM unnest(fence_bots, fence_epochs) WITH ORDINALITY AS f (bot, epoch, n)
            LEFT JOIN public.bot_leases lease ON lease.bot_id = f.bot
            WHERE f.bot IS NOT NULL AND lease.epoch IS DISTINCT FROM f.epoch
        LOOP
            outcomes[problem.n]  := 'fenced';
            c_actuals[problem.n] := problem.epoch;
        END LOOP;
    END IF;

    IF num_nonnulls(VARIADIC set_keys) > 0 THEN
        FOR problem IN
            SELECT k.n, e.position, e.set_size
            FROM unnest(set_keys) WITH ORDINALITY AS k (key, n)
            JOIN public.events e ON e.idempotency_key = k.key
        LOOP
            outcomes[problem.n] := 'duplicate';
            firsts[problem.n]   := problem.position;
            counts[problem.n]   := problem.set_size;
        END LOOP;
    END IF;

    SELECT e.position, e.recorded_at INTO base, moment FROM public.events e ORDER BY e.position DESC LIMIT 1;
    base   := coalesce(base, 0);
    moment := greatest(moment, clock_timestamp());
    micros := (extract(epoch FROM moment) * 1000000)::bigint;

    WITH accepted AS (
        SELECT i.*, base + row_number() OVER (ORDER BY i.ordinal) AS new_position,
            row_number() OVER (PARTITION BY i.n ORDER BY i.ordinal) AS place, count(*) OVER (PARTITION BY i.n) AS size
        FROM unnest(event_sets, aggregate_types, aggregate_ids, sequences, event_types, event_versions,
                    payloads, metadatas) WITH ORDINALITY
            AS i (n, aggregate_type, aggregate_id, sequence, event_type, event_version, payload, metadata, ordinal)
        WHERE outcomes[i.n] = 'appended'
    ), written AS (
        INSERT INTO public.events (aggregate_type, aggregate_id, sequence, event_type, event_version, payload,
            metadata, position, recorded_at, leaf_hash, idempotency_key, set_size)
        SELECT a.aggregate_type, a.aggregate_id, a.sequence, a.event_type, a.event_version, a.payload::json,
            a.metadata::json, a.new_position, moment,
            public.event_leaf_hash(a.new_position, micros, a.sequence, a.aggregate_type, a.aggregate_id,
                a.event_type, a.event_version, a.payload, a.metadata),
            CASE WHEN a.place = 1 THEN set_keys[a.n] END,
            CASE WHEN a.place = 1 THEN a.size END
        FROM accepted a
    ), firsts_of AS (
        SELECT a.n, min(a.new_position) AS first, count(*)::integer AS size FROM accepted a GROUP BY a.n
    ), placed AS (
        SELECT array_agg(f.first ORDER BY s.n) AS first, array_agg(f.size ORDER BY s.n) AS size, sum(f.size) AS total
        FROM generate_series(1, cardinality(set_keys)) AS s (n) LEFT JOIN firsts_of f ON f.n = s.n
    )
    SELECT ARRAY(SELECT coalesce(p, o) FROM unnest(placed.first, firsts) WITH ORDINALITY AS u (p, o, i) ORDER BY i),
        ARRAY(SELECT coalesce(p, o) FROM unnest(placed.size, counts) WITH ORDINALITY AS u (p, o, i) ORDER BY i),
        coalesce(placed.total, 0)
    INTO firsts, counts, appended FROM placed;

    IF cardinality(body_ids) > 0 THEN
        INSERT INTO public.message_bodies (body_id, owner, purpose, key_version, nonce, ciphertext, turn_id,
            position, conversation, session, context_epoch, prompt_body)
        SELECT b.id, b.owner, b.purpose, b.key_version, b.nonce, b.ciphertext, b.turn, firsts[b.n],
            b.conversation, b.session, b.epoch, b.prompt
        FROM unnest(body_sets, body_ids, body_owners, body_purposes, body_key_versions, body_nonces,
                    body_ciphertexts, body_turns, body_conversations, body_sessions, body_epochs, body_prompts)
            AS b (n, id, owner, purpose, key_version, nonce, ciphertext, turn, conversation, session, epoch, prompt)
        WHERE outcomes[b.n] = 'appended';
    END IF;

    IF appended > 0 THEN
        PERFORM pg_notify('botledger_events', (base + appended)::text);
    END IF;

    RETURN QUERY SELECT n::integer, o, f, c, t, i, a
    FROM unnest(outcomes, firsts, counts, c_types, c_ids, c_actuals) WITH ORDINALITY AS r (o, f, c, t, i, a, n);
END
$$;
