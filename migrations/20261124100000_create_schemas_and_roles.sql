-- Read models live in schema `read`, data keys in schema `keys` (so that their backups can be
-- shorter). Projections name their tables without schema: a rebuild fills temporary tables of the same names.
CREATE SCHEMA read;
CREATE SCHEMA keys;

-- The running product works under this role; migrations run as the owner. Roles belong to the whole
-- cluster, so several databases may race to create it.
DO $$
BEGIN
    CREATE ROLE botledger_writer NOLOGIN;
EXCEPTION WHEN duplicate_object OR unique_violation THEN
    NULL;
END
$$;

DO $$
BEGIN
    EXECUTE format('ALTER DATABASE %I SET search_path = public, read', current_database());
END
$$;

GRANT USAGE ON SCHEMA public, read, keys TO botledger_writer;
