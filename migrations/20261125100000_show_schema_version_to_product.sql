-- A process that serves first asks whether the database has its schema: an older or newer one is named
-- instead of failing somewhere in the middle. The migrator makes its table before the first migration.
GRANT SELECT ON public._sqlx_migrations TO botledger_writer;
