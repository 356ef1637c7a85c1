-- The read models. Every row can be made again from the ledger. `created_position` is the position of
-- the event that brought a row: unique, dense, never moving, so it orders lists and serves as cursor.
-- `updated_position` is that of the last event that changed it.
CREATE TABLE read.bots (
    bot_id           uuid        PRIMARY KEY,
    workspace        uuid        NOT NULL,
    username         text        NOT NULL,
    telegram_id      bigint      NOT NULL,
    mode             text        NOT NULL,
    status           text        NOT NULL,
    status_reason    text,
    settings         jsonb       NOT NULL,
    holder           uuid,
    lease_epoch      bigint      NOT NULL,
    registered_at    timestamptz NOT NULL,
    changed_at       timestamptz NOT NULL,
    created_position bigint      NOT NULL UNIQUE,
    updated_position bigint      NOT NULL
);

CREATE TABLE read.people (
    subject          uuid        PRIMARY KEY,
    workspace        uuid        NOT NULL,
    first_bot        uuid        NOT NULL,
    language         text        NOT NULL,
    language_chosen  boolean     NOT NULL,
    -- sealed; opened by the API for those who may
    profile          jsonb       NOT NULL,
    messages         bigint      NOT NULL,
    first_seen_at    timestamptz NOT NULL,
    last_seen_at     timestamptz NOT NULL,
    created_position bigint      NOT NULL UNIQUE,
    updated_position bigint      NOT NULL
);

CREATE TABLE read.quotas (
    quota_id         uuid        PRIMARY KEY,
    workspace        uuid        NOT NULL,
    subject          uuid        NOT NULL UNIQUE,
    plan             text        NOT NULL,
    plan_tokens      bigint      NOT NULL,
    period           text        NOT NULL,
    window_start     timestamptz NOT NULL,
    window_end       timestamptz NOT NULL,
    used             bigint      NOT NULL,
    reserved         bigint      NOT NULL,
    overrides        jsonb       NOT NULL,
    refusals         bigint      NOT NULL,
    created_position bigint      NOT NULL UNIQUE,
    updated_position bigint      NOT NULL
);

CREATE TABLE read.standings (
    standing_id      uuid        PRIMARY KEY,
    bot_id           uuid        NOT NULL,
    subject          uuid        NOT NULL,
    blocked          boolean     NOT NULL,
    reason           text        NOT NULL,
    blocked_until    timestamptz,
    changed_by       uuid        NOT NULL,
    changed_at       timestamptz NOT NULL,
    created_position bigint      NOT NULL UNIQUE,
    updated_position bigint      NOT NULL
);

CREATE TABLE read.conversations (
    conversation     uuid        PRIMARY KEY,
    workspace        uuid        NOT NULL,
    bot_id           uuid        NOT NULL,
    subject          uuid        NOT NULL,
    chat_kind        text        NOT NULL,
    messages         bigint      NOT NULL,
    current_session  integer     NOT NULL,
    started_at       timestamptz NOT NULL,
    last_message_at  timestamptz NOT NULL,
    created_position bigint      NOT NULL UNIQUE,
    updated_position bigint      NOT NULL
);
CREATE INDEX conversations_subject ON read.conversations (subject);
CREATE INDEX conversations_bot ON read.conversations (bot_id);

CREATE TABLE read.sessions (
    conversation     uuid        NOT NULL,
    session          integer     NOT NULL,
    title            jsonb,
    context_epoch    integer     NOT NULL,
    opened_at        timestamptz NOT NULL,
    created_position bigint      NOT NULL UNIQUE,
    updated_position bigint      NOT NULL,
    PRIMARY KEY (conversation, session)
);

CREATE TABLE read.turns (
    turn_id           uuid        PRIMARY KEY,
    workspace         uuid        NOT NULL,
    bot_id            uuid        NOT NULL,
    subject           uuid        NOT NULL,
    conversation      uuid        NOT NULL,
    update_id         bigint      NOT NULL,
    chat_kind         text        NOT NULL,
    ask               text        NOT NULL,
    command           text,
    lane              text        NOT NULL,
    language          text        NOT NULL,
    phase             text        NOT NULL,
    open              boolean     NOT NULL,
    session           integer,
    prompt_body       uuid        NOT NULL,
    reply_body        uuid,
    refusal_kind      text,
    refusal           jsonb,
    failure           text,
    provider          text,
    model             text,
    reserved_tokens   bigint,
    prompt_tokens     bigint,
    completion_tokens bigint,
    estimated         boolean,
    finish            text,
    latency_ms        bigint,
    message_ids       bigint[]    NOT NULL,
    sent_at           timestamptz NOT NULL,
    received_at       timestamptz NOT NULL,
    decided_at        timestamptz,
    answered_at       timestamptz,
    ended_at          timestamptz,
    created_position  bigint      NOT NULL UNIQUE,
    updated_position  bigint      NOT NULL
);
CREATE INDEX turns_open ON read.turns (bot_id, created_position) WHERE open;
CREATE INDEX turns_bot ON read.turns (bot_id, created_position DESC);
CREATE INDEX turns_subject ON read.turns (subject, created_position DESC);
CREATE INDEX turns_conversation ON read.turns (conversation, created_position DESC);

-- Sums by the time of the event, in UTC. One shape, three grains. Counts and integers only.
CREATE TABLE read.usage_minute (
    bucket            timestamptz NOT NULL,
    bot_id            uuid        NOT NULL,
    -- empty where no model took part
    model             text        NOT NULL,
    workspace         uuid        NOT NULL,
    messages          bigint      NOT NULL,
    admitted          bigint      NOT NULL,
    refused           bigint      NOT NULL,
    answered          bigint      NOT NULL,
    failed            bigint      NOT NULL,
    delivered         bigint      NOT NULL,
    undeliverable     bigint      NOT NULL,
    outcome_unknown   bigint      NOT NULL,
    prompt_tokens     bigint      NOT NULL,
    completion_tokens bigint      NOT NULL,
    latency_ms_sum    bigint      NOT NULL,
    PRIMARY KEY (bucket, bot_id, model)
);
CREATE TABLE read.usage_hour (LIKE read.usage_minute INCLUDING ALL);
CREATE TABLE read.usage_day (LIKE read.usage_minute INCLUDING ALL);

CREATE TABLE read.operators (
    operator_id      uuid        PRIMARY KEY,
    workspace        uuid        NOT NULL,
    login            text        NOT NULL,
    role             text        NOT NULL,
    status           text        NOT NULL,
    invited_by       uuid,
    invited_at       timestamptz NOT NULL,
    changed_at       timestamptz NOT NULL,
    created_position bigint      NOT NULL UNIQUE,
    updated_position bigint      NOT NULL
);

CREATE TABLE read.workspaces (
    workspace        uuid        PRIMARY KEY,
    name             text        NOT NULL,
    default_plan     text,
    plans            jsonb       NOT NULL,
    created_at       timestamptz NOT NULL,
    changed_at       timestamptz NOT NULL,
    created_position bigint      NOT NULL UNIQUE,
    updated_position bigint      NOT NULL
);

GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA read TO botledger_writer;
