-- Who is let in and who is not: an entry a row, and a row a list for the doors it is closed for.
CREATE TABLE read.access_lists (
    list_id            uuid        PRIMARY KEY,
    workspace          uuid        NOT NULL,
    -- empty in a workspace's own list
    bot_id             uuid,
    closed_to_messages boolean     NOT NULL,
    closed_to_requests boolean     NOT NULL,
    created_position   bigint      NOT NULL UNIQUE,
    updated_position   bigint      NOT NULL
);
CREATE INDEX access_lists_workspace ON read.access_lists (workspace);

CREATE TABLE read.access_entries (
    list_id          uuid        NOT NULL,
    target_kind      text        NOT NULL,
    -- a person's pseudonym, a conversation's id, or a network
    target           text        NOT NULL,
    workspace        uuid        NOT NULL,
    bot_id           uuid,
    effect           text        NOT NULL,
    reason           text        NOT NULL,
    -- false once it was taken out; reason, who and when are then those of that
    standing         boolean     NOT NULL,
    expires_at       timestamptz,
    changed_by       uuid        NOT NULL,
    changed_at       timestamptz NOT NULL,
    created_position bigint      NOT NULL UNIQUE,
    updated_position bigint      NOT NULL,
    PRIMARY KEY (list_id, target_kind, target)
);
CREATE INDEX access_entries_workspace ON read.access_entries (workspace, created_position DESC);

GRANT SELECT, INSERT, UPDATE, DELETE ON read.access_lists, read.access_entries TO botledger_writer;
