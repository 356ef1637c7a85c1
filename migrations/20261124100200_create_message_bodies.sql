-- Sealed message texts, outside the ledger so that they can be erased; events carry id, size and the
-- hash of the ciphertext. Rows come in through the append function, in the events' own transaction.
CREATE TABLE public.message_bodies (
    body_id       uuid    PRIMARY KEY,
    -- Whose key seals it: a subject or a bot.
    owner         uuid    NOT NULL,
    purpose       text    NOT NULL,
    key_version   integer NOT NULL,
    nonce         bytea   NOT NULL CHECK (octet_length(nonce) = 24),
    ciphertext    bytea   NOT NULL,
    turn_id       uuid    NOT NULL,
    -- Position of the first event of the append set that brought it.
    position      bigint  NOT NULL,
    -- Only on answers of a model: where they belong, so that the next turn finds its context
    -- without waiting for a read model.
    conversation  uuid,
    session       integer,
    context_epoch integer,
    prompt_body   uuid
);

CREATE INDEX message_bodies_context ON public.message_bodies (conversation, session, context_epoch, position DESC)
    WHERE conversation IS NOT NULL;
CREATE INDEX message_bodies_owner ON public.message_bodies (owner);

GRANT SELECT, DELETE ON public.message_bodies TO botledger_writer;
