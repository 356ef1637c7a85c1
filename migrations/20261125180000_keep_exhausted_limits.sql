-- A budget's row says which of its limits are exhausted, each until its own window ends or more of its unit
-- is granted. The rows are made again from the ledger.
DELETE FROM read.budgets;
DELETE FROM read.budget_shares;
DELETE FROM public.projection_checkpoints WHERE name = 'budgets';

ALTER TABLE read.budgets
    DROP COLUMN exhausted_at,
    -- limits that did not cover a turn in their present windows
    ADD COLUMN exhausted jsonb NOT NULL;
