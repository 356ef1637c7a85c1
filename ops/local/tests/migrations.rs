//! Migrating databases that are not quite what this build expects.

use botledger_local::migrate::{MIGRATOR, Schema, compare, migrate};
use sqlx::{ConnectOptions, PgPool};

fn url(pool: &PgPool) -> String {
    pool.connect_options().to_url_lossy().to_string()
}

#[sqlx::test(migrations = false)]
async fn an_empty_database_gets_everything_once(pool: PgPool) {
    let all = MIGRATOR.iter().count();
    let first = migrate(&url(&pool)).await.unwrap();
    assert_eq!((first.applied, first.total), (all, all));
    let second = migrate(&url(&pool)).await.unwrap();
    assert_eq!((second.applied, second.total), (0, all));
}

#[sqlx::test(migrations = false)]
async fn a_database_of_a_newer_build_is_refused(pool: PgPool) {
    migrate(&url(&pool)).await.unwrap();
    sqlx::query(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES (99990101000000, 'from the future', true, '', 0)",
    )
    .execute(&pool)
    .await
    .unwrap();
    let message = format!("{:#}", migrate(&url(&pool)).await.unwrap_err());
    assert!(message.contains("99990101000000") && message.contains("newer botledger"), "{message}");
}

#[sqlx::test(migrations = false)]
async fn an_edited_migration_is_refused(pool: PgPool) {
    migrate(&url(&pool)).await.unwrap();
    sqlx::query("UPDATE _sqlx_migrations SET checksum = '\\x00' WHERE version = (SELECT min(version) FROM _sqlx_migrations)")
        .execute(&pool)
        .await
        .unwrap();
    let message = format!("{:#}", migrate(&url(&pool)).await.unwrap_err());
    assert!(message.contains("was changed after"), "{message}");
}

#[sqlx::test(migrations = false)]
async fn a_schema_that_is_not_this_builds_is_named(pool: PgPool) {
    let Schema::Foreign(why) = compare(&pool).await.unwrap() else { panic!("an empty database is not ours") };
    assert!(why.contains("botledger migrate"), "{why}");
    migrate(&url(&pool)).await.unwrap();
    assert_eq!(compare(&pool).await.unwrap(), Schema::InStep);
    let last = MIGRATOR.iter().last().unwrap().version;
    sqlx::query("DELETE FROM _sqlx_migrations WHERE version = $1").bind(last).execute(&pool).await.unwrap();
    let Schema::Foreign(why) = compare(&pool).await.unwrap() else { panic!("one migration is missing") };
    assert!(why.contains(&last.to_string()), "{why}");
    sqlx::query(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES (99990101000000, 'from the future', true, '', 0)",
    )
    .execute(&pool)
    .await
    .unwrap();
    let Schema::Foreign(why) = compare(&pool).await.unwrap() else {
        panic!("one migration is from the future")
    };
    assert!(why.contains("newer botledger"), "{why}");
}
