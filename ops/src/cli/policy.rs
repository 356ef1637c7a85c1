//! `botledger policy …`: policies as files, for whoever has a shell on this machine.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use botledger_commands::{PolicyScope, SystemClock};
use botledger_domain::policy::{PolicyMode, PolicyOwner, PolicyTerms, PublishedPolicy, Trial};
use botledger_domain::{BotId, Clock, Reason, WorkspaceId, policy_stream};
use botledger_local::progress::say;
use botledger_projections::{
    Page, PolicyVersionFilter, ReadPool, policy, policy_terms, policy_versions_by_ids, policy_versions_page,
};
use chrono::{DateTime, SecondsFormat, Utc};
use clap::{Args, Subcommand};
use serde_json::json;

use super::what_if::TryPolicy;
use super::{Settings, address::only_workspace, bot};
use crate::platform::{Platform, answering_pool};

/// Versions shown at most.
const MOST: i64 = 10_000;

#[derive(Clone, Debug, Subcommand)]
pub enum PolicyCommand {
    /// Print the policy that judges now, or an old version: a file that can be published
    Show(Show),
    /// List the versions of a policy, newest first
    Versions {
        #[command(flatten)]
        whose: Whose,
        /// Print JSON: the rows of the read model
        #[arg(long)]
        json: bool,
    },
    /// Read a policy file and say what is wrong with it; needs no database
    Check {
        /// TOML, or JSON when it ends in .json
        file: PathBuf,
    },
    /// Make a file the next version of a policy
    Publish {
        /// TOML, or JSON when it ends in .json
        file: PathBuf,
        #[command(flatten)]
        whose: Whose,
        #[command(flatten)]
        how: How,
    },
    /// Take a policy out of force: a bot falls back to its workspace's, a workspace to the built-in one
    Withdraw {
        #[command(flatten)]
        whose: Whose,
        /// Why; kept in the ledger
        #[arg(long, default_value = "withdrawn at the command line")]
        reason: String,
    },
    /// Make an old version the next version
    Restore {
        /// Its number; `botledger policy versions` lists them
        version: u32,
        #[command(flatten)]
        whose: Whose,
        #[command(flatten)]
        how: How,
    },
    /// Say what would have come of recorded messages under other terms, as `botledger what-if` does
    WhatIf(TryPolicy),
}

/// A bot's own policy, or the workspace's.
#[derive(Clone, Debug, Args)]
pub struct Whose {
    /// Username or id of a bot [default: the workspace's own policy]
    #[arg(long, value_name = "BOT")]
    pub(super) bot: Option<String>,
    /// Id of the workspace [default: the only one there is]
    #[arg(long, value_name = "ID", conflicts_with = "bot")]
    workspace: Option<String>,
}

/// Whether a version acts. As the one before it by default; the first only watches for a week.
#[derive(Clone, Debug, Args)]
pub struct How {
    /// It acts from now on
    #[arg(long, conflicts_with_all = ["watch", "watch_until"])]
    live: bool,
    /// It only watches, until another version
    #[arg(long, conflicts_with = "watch_until")]
    watch: bool,
    /// It only watches until then (RFC 3339)
    #[arg(long, value_name = "TIME")]
    watch_until: Option<DateTime<Utc>>,
    /// Why; kept in the ledger
    #[arg(long)]
    note: Option<String>,
}

#[derive(Clone, Debug, Args)]
pub struct Show {
    #[command(flatten)]
    whose: Whose,
    /// An old version of it
    #[arg(long, value_name = "N")]
    version: Option<u32>,
    /// Print JSON: `{"owner", "version", "in_force", "watches", "watches_until", "terms"}`
    #[arg(long)]
    json: bool,
}

impl PolicyCommand {
    /// Runs the subcommand and gives its exit code: 1 when `check` found something wrong.
    ///
    /// # Errors
    /// When a file cannot be read, there is no such bot, the terms make no sense, or the database does not
    /// answer.
    pub async fn run(self, settings: Settings) -> Result<u8> {
        match self {
            Self::Check { file } => Ok(check(&file)),
            Self::Show(show) => show.run(settings).await,
            Self::Versions { whose, json } => {
                let pool = answering_pool(&settings.load_running()?.config).await?;
                let place = whose.find(&pool).await?;
                versions(&pool, place, json).await
            }
            Self::WhatIf(question) => question.run(settings).await,
            Self::Publish { file, whose, how } => {
                let terms = read(&file)?;
                changed(settings, &whose, "published", async |platform, scope| {
                    let (mode, note) = how.read()?;
                    let policies = &platform.app.policies;
                    let done = policies.publish(&platform.caller(), scope, terms, mode, note).await;
                    Ok(done.context("it cannot be published")?.after.state.current)
                })
                .await
            }
            Self::Restore { version, whose, how } => {
                changed(settings, &whose, "published", async |platform, scope| {
                    let (mode, note) = how.read()?;
                    let policies = &platform.app.policies;
                    let done = policies.restore(&platform.caller(), scope, version, mode, note).await;
                    Ok(done.context("it cannot be restored")?.after.state.current)
                })
                .await
            }
            Self::Withdraw { whose, reason } => {
                changed(settings, &whose, "withdrawn", async |platform, scope| {
                    let reason = Reason::parse(&reason)?;
                    let done = platform.app.policies.withdraw(&platform.caller(), scope, reason).await;
                    Ok(done.context("it cannot be withdrawn")?.after.state.current)
                })
                .await
            }
        }
    }
}

/// Where a policy belongs.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) workspace: WorkspaceId,
    pub(super) bot: Option<BotId>,
}

impl Place {
    fn scope(self) -> PolicyScope {
        self.bot.map_or(PolicyScope::Workspace(self.workspace), PolicyScope::Bot)
    }
}

impl Whose {
    pub(super) async fn find(&self, read: &ReadPool) -> Result<Place> {
        if let Some(name) = &self.bot {
            let row = bot::find(read, name).await?;
            return Ok(Place { workspace: WorkspaceId(row.workspace), bot: Some(BotId(row.bot_id)) });
        }
        let workspace = match &self.workspace {
            Some(id) => {
                WorkspaceId::parse(id.trim_start_matches("workspace:")).context("--workspace is no id")?
            }
            None => only_workspace(read).await?,
        };
        Ok(Place { workspace, bot: None })
    }

    fn words(&self) -> String {
        match &self.bot {
            Some(bot) => format!("the policy of {bot}"),
            None => "the workspace's policy".to_owned(),
        }
    }
}

impl How {
    fn read(&self) -> Result<(PolicyMode, Option<Reason>)> {
        let mode = match (self.live, self.watch, self.watch_until) {
            (true, ..) => PolicyMode::Live,
            (_, true, _) => PolicyMode::DryRun { until: None },
            (_, _, Some(until)) => PolicyMode::DryRun { until: Some(until) },
            _ => PolicyMode::Keep,
        };
        let note = self.note.as_deref().map(Reason::parse).transpose().context("--note")?;
        Ok((mode, note))
    }
}

/// Does something to a policy and says how it stands then.
async fn changed(
    settings: Settings,
    whose: &Whose,
    what: &str,
    change: impl AsyncFnOnce(&Platform, PolicyScope) -> Result<Option<PublishedPolicy>>,
) -> Result<u8> {
    let platform = Platform::open(&settings.load_running()?.config)?;
    let done = async {
        let place = whose.find(&platform.read).await?;
        let current = change(&platform, place.scope()).await?;
        Ok::<_, anyhow::Error>((current, platform.app.core.clock.now()))
    }
    .await;
    platform.close().await;
    let (current, now) = done?;
    say(match current {
        Some(current) => {
            format!(
                "{} is {what}: version {}, {}",
                whose.words(),
                current.version,
                acting(current.trial, now)
            )
        }
        None => format!("{} is {what}", whose.words()),
    });
    Ok(0)
}

pub(super) fn time(moment: DateTime<Utc>) -> String {
    moment.to_rfc3339_opts(SecondsFormat::Secs, true)
}

fn acting(trial: Trial, now: DateTime<Utc>) -> String {
    match trial {
        Trial::DryRun { until: Some(until) } if now < until => {
            format!("only watching until {}", time(until))
        }
        Trial::DryRun { until: None } => "only watching until another version".to_owned(),
        _ => "acting".to_owned(),
    }
}

/// Reads a policy file; whether it makes sense is another question.
///
/// # Errors
/// When it cannot be read, or holds what no policy has.
pub(super) fn read(file: &Path) -> Result<PolicyTerms> {
    let name = file.display();
    let text = std::fs::read_to_string(file).with_context(|| format!("{name} cannot be read"))?;
    let is_json = file.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"));
    let terms = match is_json {
        true => serde_json::from_str(&text).map_err(anyhow::Error::from),
        false => toml::from_str(&text).map_err(anyhow::Error::from),
    };
    terms.with_context(|| format!("{name} is no policy"))
}

fn check(file: &Path) -> u8 {
    let checked = read(file).and_then(|terms| {
        terms.check()?;
        Ok(terms)
    });
    match checked {
        Ok(terms) => {
            let examples: usize = terms.intents.iter().map(|intent| intent.examples.len()).sum();
            say(format!(
                "{} makes sense: {} intents with {examples} examples, {} categories, {} blocked words",
                file.display(),
                terms.intents.len(),
                terms.categories.len(),
                terms.blocked_words.len(),
            ));
            0
        }
        Err(error) => {
            say(format!("wrong: {error:#}"));
            1
        }
    }
}

/// A version of a policy.
pub(super) struct Version {
    owner: PolicyOwner,
    version: u32,
    trial: Trial,
    in_force: bool,
    pub(super) terms: PolicyTerms,
}

async fn find_version(pool: &ReadPool, place: Place, version: i64) -> Result<Option<Version>> {
    let stream = policy_stream(place.workspace, place.bot);
    let row = policy_versions_by_ids(pool, &[(stream, version)]).await?.pop();
    let Some((row, terms)) = row.zip(policy_terms(pool, stream, version).await?) else { return Ok(None) };
    Ok(Some(Version {
        owner: place.bot.map_or(PolicyOwner::Workspace, |_| PolicyOwner::Bot),
        version: u32::try_from(version).unwrap_or(u32::MAX),
        trial: row.trial(),
        in_force: row.ended_at.is_none(),
        terms,
    }))
}

/// An old version, or what judges now: the bot's own policy, else its workspace's, else the built-in one.
pub(super) async fn wanted(pool: &ReadPool, place: Place, version: Option<u32>) -> Result<Version> {
    if let Some(version) = version {
        let found = find_version(pool, place, version.into()).await?;
        return found.with_context(|| {
            format!("there is no version {version}; `botledger policy versions` lists them")
        });
    }
    for bot in place.bot.map(Some).into_iter().chain([None]) {
        let place = Place { bot, ..place };
        let row = policy(pool, place.workspace, bot).await?;
        if let Some(version) = row.and_then(|row| row.version)
            && let Some(found) = find_version(pool, place, version).await?
        {
            return Ok(found);
        }
    }
    Ok(Version {
        owner: PolicyOwner::BuiltIn,
        version: 0,
        trial: Trial::DryRun { until: None },
        in_force: true,
        terms: PolicyTerms::default(),
    })
}

impl Show {
    async fn run(self, settings: Settings) -> Result<u8> {
        let pool = answering_pool(&settings.load_running()?.config).await?;
        let place = self.whose.find(&pool).await?;
        let found = wanted(&pool, place, self.version).await?;
        let now = SystemClock.now();
        if self.json {
            let until = match found.trial {
                Trial::DryRun { until } => until,
                Trial::Live => None,
            };
            say(serde_json::to_string_pretty(&json!({
                "owner": found.owner,
                "version": found.version,
                "in_force": found.in_force,
                "watches": found.in_force && found.trial.is_dry_run(now),
                "watches_until": until,
                "terms": found.terms,
            }))?);
            return Ok(0);
        }
        let whose = match found.owner {
            PolicyOwner::Bot => "the bot's own policy",
            PolicyOwner::Workspace => "the workspace's policy",
            PolicyOwner::BuiltIn => "the policy of bots that have none",
        };
        let state = match found.in_force {
            true => acting(found.trial, now),
            false => "not in force any more".to_owned(),
        };
        say(format!("# Version {} of {whose}, {state}.", found.version));
        say(toml::to_string(&found.terms).context("it cannot be written as TOML")?);
        Ok(0)
    }
}

async fn versions(pool: &ReadPool, place: Place, as_json: bool) -> Result<u8> {
    let filter = PolicyVersionFilter {
        policy: Some(policy_stream(place.workspace, place.bot)),
        ..PolicyVersionFilter::default()
    };
    let rows = policy_versions_page(pool, place.workspace, &filter, Page::newest(MOST)).await?;
    if as_json {
        say(serde_json::to_string_pretty(&rows)?);
        return Ok(0);
    }
    if rows.is_empty() {
        say("nobody published one yet: `botledger policy publish FILE` does");
    }
    for row in rows {
        let state = match (row.ended_at, row.withdrawn) {
            (None, _) => "in force".to_owned(),
            (Some(at), true) => format!("withdrawn {}", time(at)),
            (Some(at), false) => format!("replaced {}", time(at)),
        };
        let by = row.published_by.map_or_else(|| "a shell".to_owned(), |by| format!("operator:{by}"));
        let note = row.note.as_ref().map(|note| format!(" ({note})")).unwrap_or_default();
        say(format!("{:>5}  {}  by {by}  {state}{note}", row.version, time(row.published_at)));
    }
    Ok(0)
}
