-- What operators said about the pace of a subject, for lists and for whoever asks "since when, why, by
-- whom". The limiter itself reads the ledger. A row stays when the override is removed or has run out.
CREATE TABLE read.rate_overrides (
    override_id      uuid        PRIMARY KEY,
    workspace        uuid        NOT NULL,
    subject_kind     text        NOT NULL,
    subject_id       text        NOT NULL,
    rule             jsonb       NOT NULL,
    reason           text        NOT NULL,
    -- false once it was removed
    standing         boolean     NOT NULL,
    expires_at       timestamptz,
    changed_by       uuid        NOT NULL,
    changed_at       timestamptz NOT NULL,
    created_position bigint      NOT NULL UNIQUE,
    updated_position bigint      NOT NULL
);
CREATE INDEX rate_overrides_workspace ON read.rate_overrides (workspace, created_position DESC);

GRANT SELECT, INSERT, UPDATE, DELETE ON read.rate_overrides TO botledger_writer;
