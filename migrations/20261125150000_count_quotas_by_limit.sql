-- A plan is a list of limits by now, so a quota's row holds a list of meters instead of one number. The
-- rows are made again from the ledger, and so are those of workspaces, which hold the plans: whoever runs
-- the release before this one stops projecting these two until it is replaced, and loses nothing.
DROP TABLE read.quotas;
CREATE TABLE read.quotas (
    quota_id          uuid        PRIMARY KEY,
    workspace         uuid        NOT NULL,
    subject           uuid        NOT NULL UNIQUE,
    plan              text        NOT NULL,
    -- limits and warnings of the plan, as it was assigned
    terms             jsonb       NOT NULL,
    -- one for every limit, in the same order
    meters            jsonb       NOT NULL,
    reserved_tokens   bigint      NOT NULL,
    reserved_messages bigint      NOT NULL,
    reserved_money    bigint      NOT NULL,
    overrides         jsonb       NOT NULL,
    -- given in the present windows
    warnings          jsonb       NOT NULL,
    refusals          bigint      NOT NULL,
    created_position  bigint      NOT NULL UNIQUE,
    updated_position  bigint      NOT NULL
);
GRANT SELECT, INSERT, UPDATE, DELETE ON read.quotas TO botledger_writer;

DELETE FROM read.operators;
DELETE FROM read.workspaces;
DELETE FROM public.projection_checkpoints WHERE name IN ('quotas', 'directory');
