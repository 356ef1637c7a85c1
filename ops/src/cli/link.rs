//! `botledger link`: the way in for the first owner.

use anyhow::{Context, Result};
use botledger_api::activation_link;
use botledger_local::progress::say;
use clap::Args;
use serde_json::json;

use super::Settings;
use crate::config::Config;
use crate::platform::{Platform, default_plan};

/// Name of the workspace that the first owner gets.
const FIRST_WORKSPACE: &str = "Main";

#[derive(Clone, Debug, Args)]
pub struct Link {
    /// Print JSON: `{"link": "…" or null}`
    #[arg(long)]
    json: bool,
}

impl Link {
    /// Gives 1 when an owner has a password already.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn run(self, settings: Settings) -> Result<u8> {
        let config = settings.load_running()?.config;
        let platform = Platform::open(&config)?;
        let link = first_owner_link(&platform, &config).await;
        platform.close().await;
        let link = link?;
        match (&link, self.json) {
            (link, true) => say(json!({ "link": link }).to_string()),
            (Some(link), false) => say(link),
            (None, false) => {
                say("an owner has a password already: log in, and invite others with operatorInvite")
            }
        }
        Ok(u8::from(link.is_none()))
    }
}

/// A one-time link while nobody has a password; earlier links end with it. Makes the first workspace
/// when there is none.
///
/// # Errors
/// When ledger or database cannot be used.
pub async fn first_owner_link(platform: &Platform, config: &Config) -> Result<Option<String>> {
    let (plan, terms) = default_plan(config)?;
    let secret = platform
        .app
        .operators
        .bootstrap_owner(&platform.caller(), FIRST_WORKSPACE, plan, terms)
        .await
        .context("the first owner cannot be let in")?;
    Ok(secret.map(|secret| activation_link(&config.public_url(), &secret)))
}
