-- Who runs a bot. The epoch is the fencing token: the append function refuses a set that carries an
-- older one. Only the lease functions change it, under the ledger's own lock.
CREATE TABLE public.bot_leases (
    bot_id     uuid        PRIMARY KEY,
    instance   uuid        NOT NULL,
    epoch      bigint      NOT NULL CHECK (epoch > 0),
    expires_at timestamptz NOT NULL
);

GRANT SELECT ON public.bot_leases TO botledger_writer;
