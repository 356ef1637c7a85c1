//! The embedded migrations and who may run them.

use anyhow::{Context, Result, bail};
use sqlx::migrate::MigrateError;
use sqlx::{Connection, PgConnection};

/// The oldest PostgreSQL this works with.
pub const OLDEST_MAJOR: u32 = 14;

/// Every migration of this build.
pub static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!("../../migrations");

/// What migrating did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Migrated {
    /// Migrations that ran now.
    pub applied: usize,
    /// Migrations the database has in all.
    pub total: usize,
}

/// Brings the database at `url` (its owner's connection) to this build's schema. A second run
/// applies nothing.
///
/// # Errors
/// When the server is unreachable or too old, the database belongs to a newer build, an applied
/// migration was edited since, or one fails.
pub async fn migrate(url: &str) -> Result<Migrated> {
    let mut connection =
        PgConnection::connect(url).await.context("could not connect to the database to migrate")?;
    let version = server_version_num(&mut connection).await?;
    if version / 10_000 < OLDEST_MAJOR {
        bail!(
            "the database server is PostgreSQL {}, botledger needs {OLDEST_MAJOR} or newer: upgrade it, or unset \
             DATABASE_URL to let `ops/up` start its own",
            version / 10_000
        );
    }
    let before = applied(&mut connection).await;
    if let Err(error) = MIGRATOR.run(&mut connection).await {
        return Err(explain(error));
    }
    let total = applied(&mut connection).await;
    connection.close().await.ok();
    Ok(Migrated { applied: total.saturating_sub(before), total })
}

/// The server's version as PostgreSQL counts it, 150018 for 15.18.
///
/// # Errors
/// When the connection breaks.
pub async fn server_version_num(connection: &mut PgConnection) -> Result<u32> {
    let version: String = sqlx::query_scalar("SHOW server_version_num").fetch_one(connection).await?;
    version.parse().context("the server's version is not a number")
}

async fn applied(connection: &mut PgConnection) -> usize {
    // The table does not exist before the first run.
    let count: Result<i64, _> =
        sqlx::query_scalar("SELECT count(*) FROM _sqlx_migrations WHERE success").fetch_one(connection).await;
    count.ok().and_then(|count| usize::try_from(count).ok()).unwrap_or(0)
}

fn explain(error: MigrateError) -> anyhow::Error {
    match error {
        MigrateError::VersionMissing(version) => anyhow::anyhow!(
            "the database has migration {version}, which this build does not know: it was migrated by a newer \
             botledger. Run that one, or point DATABASE_URL at another database"
        ),
        MigrateError::VersionMismatch(version) => anyhow::anyhow!(
            "migration {version} was changed after this database ran it. Take back the change and add a new \
             migration; for a private database that may be lost, `ops/reset`"
        ),
        MigrateError::Dirty(version) => anyhow::anyhow!(
            "migration {version} broke off half way: repair the database by hand or restore it, then migrate again"
        ),
        other => anyhow::Error::new(other).context("a migration failed"),
    }
}
