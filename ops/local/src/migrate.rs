//! The embedded migrations and who may run them.

use anyhow::{Context, Result, bail};
use sqlx::migrate::MigrateError;
use sqlx::{Connection, PgConnection, PgPool};

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

/// How a database's schema stands to this build's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Schema {
    /// The same.
    InStep,
    /// Not the same: why, and what to do.
    Foreign(String),
}

/// Compares the schema over the running product's own connections, which may not migrate.
///
/// # Errors
/// When the database does not answer.
pub async fn compare(pool: &PgPool) -> Result<Schema, sqlx::Error> {
    let rows = sqlx::query_as::<_, (i64, Vec<u8>)>(
        "SELECT version, checksum FROM _sqlx_migrations WHERE success ORDER BY version",
    )
    .fetch_all(pool)
    .await;
    let known = match rows {
        Ok(rows) => rows,
        // No such table, or one that was made before the product might read it.
        Err(sqlx::Error::Database(refusal))
            if matches!(refusal.code().as_deref(), Some("42P01" | "42501")) =>
        {
            return Ok(Schema::Foreign(
                "the database has no schema of this build: run `botledger migrate` with the owner's URL"
                    .to_owned(),
            ));
        }
        Err(error) => return Err(error),
    };
    for (version, checksum) in &known {
        match MIGRATOR.iter().find(|ours| ours.version == *version) {
            None => return Ok(Schema::Foreign(explain(MigrateError::VersionMissing(*version)).to_string())),
            Some(ours) if *ours.checksum != **checksum => {
                return Ok(Schema::Foreign(explain(MigrateError::VersionMismatch(*version)).to_string()));
            }
            Some(_) => {}
        }
    }
    match MIGRATOR.iter().find(|ours| known.iter().all(|(version, _)| *version != ours.version)) {
        None => Ok(Schema::InStep),
        Some(missing) => Ok(Schema::Foreign(format!(
            "the database lacks migration {} ({}): run `botledger migrate` with the owner's URL",
            missing.version, missing.description
        ))),
    }
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
