-- How far the ledger has been relayed to another event store, for people and for lag. What is true is
-- the last event of the target's stream: a relay begins there, not here (ops/decisions/0021).
CREATE TABLE public.relay_progress (
    stream          text        PRIMARY KEY,
    -- hosts, without credentials
    target          text        NOT NULL,
    position        bigint      NOT NULL CHECK (position >= 0),
    state           text        NOT NULL CHECK (state IN ('relaying', 'retrying', 'refused')),
    -- why it is retrying or refused
    reason          text,
    -- the event to blame, where one is
    failed_position bigint,
    -- since when it is in this state
    since           timestamptz NOT NULL,
    updated_at      timestamptz NOT NULL,
    CHECK ((state = 'relaying') = (reason IS NULL))
);

GRANT SELECT, INSERT, UPDATE ON public.relay_progress TO botledger_writer;
