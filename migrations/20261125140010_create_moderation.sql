-- What moderators work with: every scoring with what it rests on, and the cases that ask for a human.
-- Neither holds a word of what anybody wrote; evidence is places in a text, the text stays sealed.
CREATE TABLE read.scorings (
    -- of its event
    created_position bigint      PRIMARY KEY,
    standing_id      uuid        NOT NULL,
    bot_id           uuid        NOT NULL,
    subject          uuid        NOT NULL,
    turn_id          uuid        NOT NULL,
    kinds            text[]      NOT NULL,
    points           bigint      NOT NULL,
    offences         jsonb       NOT NULL,
    state_before     text        NOT NULL,
    drift_before     bigint      NOT NULL,
    violation_before bigint      NOT NULL,
    state_after      text        NOT NULL,
    drift_after      bigint      NOT NULL,
    violation_after  bigint      NOT NULL,
    policy_version   integer     NOT NULL,
    model_version    text        NOT NULL,
    dry_run          boolean     NOT NULL,
    scored_at        timestamptz NOT NULL
);
CREATE INDEX scorings_standing ON read.scorings (standing_id, created_position DESC);
CREATE INDEX scorings_turn ON read.scorings (turn_id);

CREATE TABLE read.moderation_cases (
    case_id          uuid        PRIMARY KEY,
    standing_id      uuid        NOT NULL,
    bot_id           uuid        NOT NULL,
    subject          uuid        NOT NULL,
    kind             text        NOT NULL,
    status           text        NOT NULL,
    turn_id          uuid        NOT NULL,
    appeal_body      uuid,
    against          text        NOT NULL,
    cause            text,
    score            bigint,
    until            timestamptz,
    policy_version   integer,
    decision         text,
    decided_by       uuid,
    decided_at       timestamptz,
    reason           text,
    opened_at        timestamptz NOT NULL,
    created_position bigint      NOT NULL UNIQUE,
    updated_position bigint      NOT NULL
);
CREATE INDEX moderation_cases_bot ON read.moderation_cases (bot_id, created_position DESC);
CREATE INDEX moderation_cases_standing ON read.moderation_cases (standing_id);
CREATE INDEX moderation_cases_waiting ON read.moderation_cases (bot_id, created_position DESC)
    WHERE status IN ('open', 'undone');

GRANT SELECT, INSERT, UPDATE, DELETE ON read.scorings, read.moderation_cases TO botledger_writer;
