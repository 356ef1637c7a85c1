-- Who did or tried what, and from where: every call of an operator or a shell, not only what was refused.
-- What a call changed is in the ledger, under the same correlation id.
ALTER TABLE public.audit_log
    -- `graphql` or `cli`
    ADD COLUMN source     text NOT NULL DEFAULT 'graphql',
    ADD COLUMN user_agent text,
    -- the process that was asked
    ADD COLUMN instance   uuid,
    -- of the operator
    ADD COLUMN workspace  uuid;

-- Earlier rows knew no workspace; whose they are is known, and nobody may say it later.
UPDATE public.audit_log AS noted SET workspace = login.workspace
FROM public.operator_logins AS login WHERE login.operator_id = noted.operator_id;

-- One's own traces are not swept away either.
CREATE TRIGGER audit_log_is_immutable BEFORE UPDATE OR DELETE OR TRUNCATE ON public.audit_log
    FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_ledger_change();

-- Reports are of periods. Not CONCURRENTLY: the table holds what people did by hand, and building it so waits
-- for a second migrator, which waits for this one.
CREATE INDEX audit_log_time ON public.audit_log (happened_at, id);
