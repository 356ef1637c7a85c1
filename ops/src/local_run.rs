//! What `up` told the product, kept beside the secrets so that other commands can work with the same
//! database, Redis and keys while it runs.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use botledger_local::Layout;
use botledger_local::secrets::{Secrets, write_private};

const NAME: &str = "run.json";

/// Keeps the environment variables that `serve` was started with; readable by the owner only.
///
/// # Errors
/// When the folder is not writable.
pub fn remember(secrets: &Secrets, variables: &[(String, String)]) -> Result<()> {
    let variables: BTreeMap<_, _> = variables.iter().cloned().collect();
    write_private(&secrets.path(NAME), &serde_json::to_string_pretty(&variables)?)
}

/// The variables of the local run of `root`, or of the project folder we are in; none when there never
/// was one.
///
/// # Errors
/// When the file is damaged or another user's.
pub fn recall(root: Option<&Path>) -> Result<Vec<(String, String)>> {
    let Ok(layout) = Layout::discover(root) else { return Ok(Vec::new()) };
    let path = layout.secrets().join(NAME);
    match std::fs::read(&path) {
        Ok(bytes) => {
            let variables: BTreeMap<String, String> = serde_json::from_slice(&bytes)
                .with_context(|| format!("{} is damaged: start ops/up again", path.display()))?;
            Ok(variables.into_iter().collect())
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => {
            Err(error).with_context(|| format!("could not read {}: is it another user's?", path.display()))
        }
    }
}
