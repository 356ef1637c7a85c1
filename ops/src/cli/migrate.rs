//! `botledger migrate`

use anyhow::{Result, bail};
use botledger_local::migrate::migrate;
use botledger_local::progress::say;
use clap::Args;
use serde_json::json;

use super::Settings;

#[derive(Clone, Debug, Args)]
pub struct Migrate {
    /// Print JSON: `{"applied", "total"}`
    #[arg(long)]
    json: bool,
}

impl Migrate {
    /// Migrates as the owner (`database.migrate_url`, else `database.url`).
    ///
    /// # Errors
    /// When neither is set, the server is too old or unreachable, or a migration fails.
    pub async fn run(self, settings: Settings) -> Result<u8> {
        let config = settings.load()?.config;
        let url = config.migrate_url();
        if url.is_empty() {
            bail!("database.url is not set: set BOTLEDGER_DATABASE__URL or DATABASE_URL");
        }
        let migrated = migrate(url.expose()).await?;
        if self.json {
            say(json!({ "applied": migrated.applied, "total": migrated.total }).to_string());
        } else {
            say(format!("{} migrations applied, {} in all", migrated.applied, migrated.total));
        }
        Ok(0)
    }
}
