-- How operators get in. Secrets are no events: they may have to be deleted. Hashes only.
CREATE TABLE public.operator_logins (
    login       text PRIMARY KEY,
    operator_id uuid NOT NULL UNIQUE,
    workspace   uuid NOT NULL,
    -- argon2id PHC string; absent until the one-time link was used
    password_hash text
);

CREATE TABLE public.one_time_links (
    -- SHA-256 of the link's secret
    secret_hash bytea       PRIMARY KEY CHECK (octet_length(secret_hash) = 32),
    operator_id uuid        NOT NULL,
    created_at  timestamptz NOT NULL,
    expires_at  timestamptz NOT NULL,
    used_at     timestamptz
);

CREATE TABLE public.refresh_tokens (
    -- SHA-256 of the token
    token_hash  bytea       PRIMARY KEY CHECK (octet_length(token_hash) = 32),
    family      uuid        NOT NULL,
    operator_id uuid        NOT NULL,
    issued_at   timestamptz NOT NULL,
    expires_at  timestamptz NOT NULL,
    -- set when it was exchanged; a second use after the grace time revokes the family
    used_at     timestamptz,
    revoked_at  timestamptz
);
CREATE INDEX refresh_tokens_family ON public.refresh_tokens (family);

-- Logins, refused and forbidden calls of operators: who, what, from where, how it ended.
CREATE TABLE public.audit_log (
    id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    happened_at    timestamptz NOT NULL,
    operator_id    uuid,
    action         text        NOT NULL,
    outcome        text        NOT NULL,
    detail         jsonb       NOT NULL DEFAULT '{}',
    source_ip      text,
    correlation_id uuid
);
CREATE INDEX audit_log_operator ON public.audit_log (operator_id, id DESC);

GRANT SELECT, INSERT, UPDATE ON public.operator_logins, public.one_time_links, public.refresh_tokens TO botledger_writer;
GRANT SELECT, INSERT ON public.audit_log TO botledger_writer;
