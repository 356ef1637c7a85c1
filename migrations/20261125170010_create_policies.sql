-- What bots are for and what becomes of messages that are not: a row an owner, a row a version, and what
-- each version says in a table of its own, for it may be a thousand times the size of the rest.
CREATE TABLE read.policies (
    policy_id        uuid        PRIMARY KEY,
    workspace        uuid        NOT NULL,
    -- empty for a workspace's own policy
    bot_id           uuid,
    -- the one in force; empty while none is
    version          bigint,
    last_version     bigint      NOT NULL,
    changed_at       timestamptz NOT NULL,
    created_position bigint      NOT NULL UNIQUE,
    updated_position bigint      NOT NULL
);
CREATE INDEX policies_workspace ON read.policies (workspace);

CREATE TABLE read.policy_versions (
    policy_id         uuid        NOT NULL,
    version           bigint      NOT NULL,
    workspace         uuid        NOT NULL,
    bot_id            uuid,
    -- whether it began by watching, and until when; without an end until another version
    dry_run           boolean     NOT NULL,
    dry_run_until     timestamptz,
    note              text,
    -- empty when somebody with a shell did it
    published_by      uuid,
    published_at      timestamptz NOT NULL,
    -- when another version took its place, or it was withdrawn; empty while it is in force
    ended_at          timestamptz,
    withdrawn         boolean     NOT NULL,
    withdrawn_by      uuid,
    withdrawal_reason text,
    created_position  bigint      NOT NULL UNIQUE,
    updated_position  bigint      NOT NULL,
    PRIMARY KEY (policy_id, version)
);
CREATE INDEX policy_versions_workspace ON read.policy_versions (workspace, created_position DESC);

CREATE TABLE read.policy_terms (
    policy_id uuid   NOT NULL,
    version   bigint NOT NULL,
    terms     jsonb  NOT NULL,
    PRIMARY KEY (policy_id, version)
);

GRANT SELECT, INSERT, UPDATE, DELETE ON read.policies, read.policy_versions, read.policy_terms TO botledger_writer;
