//! `botledger config check`

use anyhow::Result;
use botledger_local::progress::say;
use clap::Subcommand;
use serde_json::{Value, json};

use super::Settings;
use crate::config::problems;

#[derive(Clone, Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print every value in force with where it is from, and what is wrong with them
    Check {
        /// Print JSON: `{"settings": [{"key", "value", "origin"}], "problems": ["…"]}`
        #[arg(long)]
        json: bool,
        /// Also ask for what a running product needs: databases and keys
        #[arg(long)]
        serving: bool,
    },
}

impl ConfigCommand {
    /// Gives 1 when something is wrong.
    ///
    /// # Errors
    /// When the configuration cannot be read at all.
    pub fn run(self, settings: Settings) -> Result<u8> {
        let Self::Check { json: as_json, serving } = self;
        let loaded = settings.load()?;
        let found = problems(&loaded.config, serving);
        let effective = loaded.effective();
        if as_json {
            say(serde_json::to_string_pretty(&json!({ "settings": effective, "problems": found }))?);
        } else {
            let width = effective.iter().map(|setting| setting.key.len()).max().unwrap_or(0);
            for setting in &effective {
                let value = match &setting.value {
                    Value::Null => "\"\"".to_owned(),
                    value => value.to_string(),
                };
                say(format!("{:<width$} = {value}  # {}", setting.key, setting.origin));
            }
            for problem in &found {
                say(format!("wrong: {problem}"));
            }
        }
        Ok(u8::from(!found.is_empty()))
    }
}
