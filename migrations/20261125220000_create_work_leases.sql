-- Work that one process does at a time: applying a read model, relaying the ledger. The epoch is the
-- fencing token: whoever writes under a lease looks, in the same transaction, whether it is still the
-- holder's (ops/decisions/0019). A row stays when it is given back, so that the next epoch is higher.
CREATE TABLE public.work_leases (
    name       text        PRIMARY KEY,
    holder     uuid        NOT NULL,
    epoch      bigint      NOT NULL CHECK (epoch > 0),
    taken_at   timestamptz NOT NULL,
    expires_at timestamptz NOT NULL
);

-- Who takes part in what, and what each could do: from that all of them work out the same shares.
CREATE TABLE public.work_processes (
    instance   uuid        NOT NULL,
    kind       text        NOT NULL,
    -- the process's name, for people
    label      text        NOT NULL,
    able       text[]      NOT NULL,
    started_at timestamptz NOT NULL,
    seen_at    timestamptz NOT NULL,
    PRIMARY KEY (instance, kind)
);

GRANT SELECT, INSERT, UPDATE ON public.work_leases TO botledger_writer;
GRANT SELECT, INSERT, UPDATE, DELETE ON public.work_processes TO botledger_writer;
