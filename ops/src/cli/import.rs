//! `botledger import`: an exported ledger into an empty installation.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use botledger_commands::SystemClock;
use botledger_domain::{Clock, merkle::Hash};
use botledger_journal::transfer::{Expected, FileKind, import, parse_hash, verify_files};
use botledger_local::migrate::{Schema, compare};
use botledger_local::progress::say;
use clap::Args;
use serde_json::json;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

use super::Settings;
use super::export::{fingerprints, telling};

#[derive(Clone, Debug, Args)]
pub struct Import {
    /// Folder of a finished `botledger export log`
    folder: PathBuf,
    /// Only compare the files with each other and with what is given here; needs no database
    #[arg(long)]
    check: bool,
    /// Tree head over the exported events, from a checkpoint kept elsewhere (hex). It says nothing about keys,
    /// logins, and what stands beside sealed texts
    #[arg(long, value_name = "HASH", value_parser = parse_hash)]
    root: Option<Hash>,
    /// SHA-256 of the manifest, as the export told it (hex): covers every file; needed where there is more than
    /// events
    #[arg(long, value_name = "HASH", value_parser = parse_hash)]
    manifest_sha256: Option<Hash>,
    /// Import although the master or pseudonym key here is not the source's, or the export has no keys: nothing
    /// sealed can be opened, nobody of the source can log in, and people who write again are strangers
    #[arg(long)]
    other_keys: bool,
    /// Print JSON: `{"events", "bodies", "root", "resumed"}`
    #[arg(long)]
    json: bool,
}

impl Import {
    /// Whether anything is written.
    #[must_use]
    pub fn acts(&self) -> bool {
        !self.check
    }

    /// Works as the owner of the tables (`database.migrate_url`, else `database.url`): the running product's
    /// role can only append.
    ///
    /// # Errors
    /// When a file is not what the manifest says, the installation is not empty, or the database does not
    /// answer.
    pub async fn run(self, settings: Settings) -> Result<u8> {
        let expected = Expected { root: self.root, manifest_sha256: self.manifest_sha256 };
        let verified = verify_files(&self.folder, &expected, telling(self.json))
            .with_context(|| format!("{} is not imported", self.folder.display()))?;
        let root = hex::encode(verified.manifest.after.root);
        if self.check {
            let events = verified.manifest.last - verified.manifest.before.size;
            let bodies = verified.manifest.lines(FileKind::Bodies);
            if self.json {
                say(json!({ "events": events, "bodies": bodies, "root": root, "resumed": false }).to_string());
            } else {
                say(format!("{events} events and {bodies} sealed bodies are whole; tree head {root}"));
            }
            return Ok(0);
        }
        let config = settings.load_running()?.config;
        let url = config.migrate_url();
        if url.is_empty() {
            bail!("database.url is not set: set BOTLEDGER_DATABASE__MIGRATE_URL or BOTLEDGER_DATABASE__URL");
        }
        // The driver's error would show the URL, and the URL holds a password.
        let options: PgConnectOptions = url.expose().parse().map_err(|_| {
            anyhow::anyhow!(
                "the database's URL cannot be read: it is postgres://user:password@host:port/database"
            )
        })?;
        let pool = PgPoolOptions::new()
            .max_connections(3)
            .connect_with(options.application_name("botledger-import"))
            .await
            .context("the database does not answer")?;
        if let Schema::Foreign(why) = compare(&pool).await.context("the schema cannot be compared")? {
            bail!(why);
        }
        let own = fingerprints(&config);
        let own = (!self.other_keys).then_some(&own);
        let imported = import(&pool, &self.folder, &verified, own, SystemClock.now(), telling(self.json))
            .await
            .with_context(|| format!("the import of {} has not finished", self.folder.display()))?;
        pool.close().await;
        if self.json {
            let told = json!({
                "events": imported.events, "bodies": imported.bodies, "root": root, "resumed": imported.resumed,
            });
            say(told.to_string());
        } else {
            say(format!(
                "{} events and {} sealed bodies are in; tree head {root}",
                imported.events, imported.bodies
            ));
            say("read models fold them when the product starts; `botledger replay --all` does it now");
        }
        Ok(0)
    }
}
