-- A budget's row says which of its limits are exhausted, each until its own window ends or more of its unit
-- is granted. The rows are made again from the ledger. The checkpoint comes first: it is what a projector holds
-- while it writes, and under the new version one of the release before this one finds nothing to do.
UPDATE public.projection_checkpoints
SET version = 2, position = 0, status = 'running', failed_position = NULL, error = NULL, updated_at = now()
WHERE name = 'budgets';
TRUNCATE read.budgets, read.budget_shares;

ALTER TABLE read.budgets
    DROP COLUMN exhausted_at,
    -- limits that did not cover a turn in their present windows
    ADD COLUMN exhausted jsonb NOT NULL;
