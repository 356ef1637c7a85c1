-- How far each projection has come. The row is also its lease: whoever holds its lock applies.
CREATE TABLE public.projection_checkpoints (
    name            text        PRIMARY KEY,
    version         integer     NOT NULL,
    position        bigint      NOT NULL DEFAULT 0,
    -- running, or stopped at an event it cannot apply
    status          text        NOT NULL DEFAULT 'running' CHECK (status IN ('running', 'stopped')),
    failed_position bigint,
    error           text,
    updated_at      timestamptz NOT NULL DEFAULT now()
);

-- What operators decided about such events: kept for ever, a rebuild obeys the skips.
CREATE TABLE public.projection_decisions (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name        text        NOT NULL,
    position    bigint      NOT NULL,
    decision    text        NOT NULL CHECK (decision IN ('retry', 'skip')),
    reason      text        NOT NULL,
    operator_id uuid,
    decided_at  timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX projection_decisions_name ON public.projection_decisions (name, position);

-- The audit's filters over the whole ledger.
CREATE INDEX events_correlation ON public.events ((metadata ->> 'correlation_id'));
CREATE INDEX events_type ON public.events (event_type, position);

GRANT SELECT, INSERT, UPDATE ON public.projection_checkpoints TO botledger_writer;
GRANT SELECT, INSERT ON public.projection_decisions TO botledger_writer;
