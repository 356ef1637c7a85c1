-- What the detectors saw in a message and which policy judged it, so that lists can be narrowed to what
-- was found. Messages recorded before this were never scored: their rows are right as they are.
ALTER TABLE read.turns
    ADD COLUMN policy_owner   text,
    ADD COLUMN policy_version bigint,
    ADD COLUMN policy_dry_run boolean,
    ADD COLUMN findings       jsonb,
    ADD COLUMN oos_permille   integer,
    ADD COLUMN intent         text,
    ADD COLUMN flagged        text[]      NOT NULL DEFAULT '{}',
    ADD COLUMN scored_at      timestamptz;

-- Flagged messages are few among many: a list of them is read in its own order from here.
CREATE INDEX turns_flagged ON read.turns (workspace, created_position DESC) WHERE flagged <> '{}';
