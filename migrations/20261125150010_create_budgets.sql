-- Budgets of bots, workspaces and other holders, and the shares that turns reserve in. What is used of a
-- budget is what its meters say and what its shares have spent since they were last gathered.
CREATE TABLE read.budgets (
    budget_id        uuid        PRIMARY KEY,
    workspace        uuid        NOT NULL,
    holder_kind      text        NOT NULL,
    holder_id        uuid        NOT NULL,
    in_force         boolean     NOT NULL,
    -- limits and warnings
    terms            jsonb       NOT NULL,
    -- one for every limit, in the same order
    meters           jsonb       NOT NULL,
    raises           jsonb       NOT NULL,
    -- given in the present windows
    warnings         jsonb       NOT NULL,
    shares           bigint      NOT NULL,
    -- when a limit did not cover a turn for the first time in its present window
    exhausted_at     timestamptz,
    created_position bigint      NOT NULL UNIQUE,
    updated_position bigint      NOT NULL
);
CREATE INDEX budgets_workspace ON read.budgets (workspace, created_position DESC);

CREATE TABLE read.budget_shares (
    share_id          uuid   PRIMARY KEY,
    budget_id         uuid   NOT NULL,
    share             bigint NOT NULL,
    spent_tokens      bigint NOT NULL,
    spent_messages    bigint NOT NULL,
    spent_money       bigint NOT NULL,
    reserved_tokens   bigint NOT NULL,
    reserved_messages bigint NOT NULL,
    reserved_money    bigint NOT NULL,
    created_position  bigint NOT NULL UNIQUE,
    updated_position  bigint NOT NULL
);
CREATE INDEX budget_shares_budget ON read.budget_shares (budget_id);

GRANT SELECT, INSERT, UPDATE, DELETE ON read.budgets, read.budget_shares TO botledger_writer;
