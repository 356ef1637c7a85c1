//! `botledger keys`

use anyhow::{Context, Result};
use botledger_local::progress::say;
use clap::Subcommand;
use serde_json::json;

use super::Settings;
use crate::platform::Platform;

#[derive(Clone, Debug, Subcommand)]
pub enum KeysCommand {
    /// Wrap all keys of people and bots under the present master key; the product may run meanwhile
    Rewrap {
        /// Print JSON: `{"rewrapped"}`
        #[arg(long)]
        json: bool,
    },
}

impl KeysCommand {
    /// Afterwards no key needs `keys.previous_master_keys`.
    ///
    /// # Errors
    /// When a master key is missing, or the database does not answer.
    pub async fn run(self, settings: Settings) -> Result<u8> {
        let Self::Rewrap { json: as_json } = self;
        let platform = Platform::open(&settings.load_running()?.config)?;
        let rewrapped = platform.app.core.vault.rewrap().await;
        platform.close().await;
        let rewrapped = rewrapped.context("the keys cannot be wrapped anew")?;
        if as_json {
            say(json!({ "rewrapped": rewrapped }).to_string());
        } else {
            say(format!(
                "{rewrapped} keys wrapped under the present master key, none is left under an earlier one"
            ));
        }
        Ok(0)
    }
}
