-- A standing is also what messages earned: the ladder, a policy's trial, warnings and appeals. Every
-- default is what the events stored so far come to, so the rows need not be made again. A row that only
-- the score made has no operator who changed it.
ALTER TABLE read.standings ALTER COLUMN changed_by DROP NOT NULL;
ALTER TABLE read.standings
    ADD COLUMN ladder_state    text   NOT NULL DEFAULT 'ok',
    ADD COLUMN drift           bigint NOT NULL DEFAULT 0,
    ADD COLUMN violation       bigint NOT NULL DEFAULT 0,
    ADD COLUMN ladder_until    timestamptz,
    ADD COLUMN block_cause     text,
    ADD COLUMN trial_state     text   NOT NULL DEFAULT 'ok',
    ADD COLUMN trial_score     bigint NOT NULL DEFAULT 0,
    ADD COLUMN warnings        bigint NOT NULL DEFAULT 0,
    ADD COLUMN temp_blocks     bigint NOT NULL DEFAULT 0,
    ADD COLUMN policy_version  integer,
    ADD COLUMN model_version   text,
    ADD COLUMN scored_at       timestamptz,
    ADD COLUMN appeal_turn     uuid,
    ADD COLUMN appealed_at     timestamptz,
    ADD COLUMN appealable_from timestamptz;
