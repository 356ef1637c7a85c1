//! `botledger policy …`: policies as files, for whoever has a shell on this machine.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use botledger_commands::{PolicyScope, SystemClock};
use botledger_domain::policy::{PolicyMode, PolicyOwner, PolicyTerms, PublishedPolicy, Trial};
use botledger_domain::standing::ladder::OffenceKind;
use botledger_domain::{BotId, Clock, Reason, WorkspaceId, policy_stream};
use botledger_local::progress::say;
use botledger_projections::{
    Limit, Outcome, Page, PolicyVersionFilter, ReadPool, Rungs, WhatIf, WhatIfReport, policy, policy_terms,
    policy_versions_by_ids, policy_versions_page, what_if,
};
use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use clap::{Args, Subcommand};
use serde_json::json;

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
    /// Say what would have come of recorded messages under other terms; writes nothing
    WhatIf(Try),
}

/// A bot's own policy, or the workspace's.
#[derive(Clone, Debug, Args)]
pub struct Whose {
    /// Username or id of a bot [default: the workspace's own policy]
    #[arg(long, value_name = "BOT")]
    bot: Option<String>,
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

#[derive(Clone, Debug, Args)]
pub struct Try {
    /// TOML, or JSON when it ends in .json [default: what is in force]
    file: Option<PathBuf>,
    /// An old version instead
    #[arg(long, value_name = "N", conflicts_with = "file")]
    version: Option<u32>,
    #[command(flatten)]
    whose: Whose,
    /// Messages of so many days
    #[arg(long, default_value_t = 7, conflicts_with = "from")]
    days: u16,
    /// Messages received at or after this time (RFC 3339)
    #[arg(long, value_name = "TIME")]
    from: Option<DateTime<Utc>>,
    /// Messages received before this time [default: now]
    #[arg(long, value_name = "TIME")]
    until: Option<DateTime<Utc>>,
    /// As if the terms acted wherever the version before them only watched
    #[arg(long)]
    live: bool,
    /// Messages and people shown at most; `--json` shows all
    #[arg(long, default_value_t = 20)]
    limit: usize,
    /// Print JSON: the whole report
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
            Self::WhatIf(trial) => trial.run(settings).await,
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
struct Place {
    workspace: WorkspaceId,
    bot: Option<BotId>,
}

impl Place {
    fn scope(self) -> PolicyScope {
        self.bot.map_or(PolicyScope::Workspace(self.workspace), PolicyScope::Bot)
    }
}

impl Whose {
    async fn find(&self, read: &ReadPool) -> Result<Place> {
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

fn time(moment: DateTime<Utc>) -> String {
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
fn read(file: &Path) -> Result<PolicyTerms> {
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
struct Version {
    owner: PolicyOwner,
    version: u32,
    trial: Trial,
    in_force: bool,
    terms: PolicyTerms,
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
async fn wanted(pool: &ReadPool, place: Place, version: Option<u32>) -> Result<Version> {
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

impl Try {
    async fn run(self, settings: Settings) -> Result<u8> {
        let pool = answering_pool(&settings.load_running()?.config).await?;
        let place = self.whose.find(&pool).await?;
        let terms = match &self.file {
            Some(file) => {
                let terms = read(file)?;
                terms.check()?;
                terms
            }
            None => wanted(&pool, place, self.version).await?.terms,
        };
        let until = self.until.unwrap_or_else(|| SystemClock.now());
        let from = self.from.or_else(|| until.checked_sub_signed(TimeDelta::days(self.days.into())));
        let question = WhatIf {
            workspace: place.workspace,
            bot: place.bot,
            from: from.context("--days reaches back before there were days")?,
            until,
            terms,
            acts: self.live,
        };
        let report = what_if(&pool, &question).await?;
        if self.json {
            say(serde_json::to_string_pretty(&report)?);
        } else {
            for line in lines(&report, &question, self.limit) {
                say(line);
            }
        }
        Ok(0)
    }
}

/// A table of two sides: every name that either has.
fn compared<K: Ord + AsRef<str>>(
    title: &str,
    before: &BTreeMap<K, u64>,
    after: &BTreeMap<K, u64>,
) -> Vec<String> {
    let names: std::collections::BTreeSet<&K> = before.keys().chain(after.keys()).collect();
    if names.is_empty() {
        return Vec::new();
    }
    let mut lines = vec![format!("{title:<24} {:>9} {:>9}", "before", "after")];
    lines.extend(names.into_iter().map(|name| {
        let of = |side: &BTreeMap<K, u64>| side.get(name).copied().unwrap_or(0);
        format!("  {:<22} {:>9} {:>9}", name.as_ref(), of(before), of(after))
    }));
    lines
}

fn lines(report: &WhatIfReport, question: &WhatIf, limit: usize) -> Vec<String> {
    let mut lines = vec![format!(
        "{} texts from {} until {} judged again, {} by other policies, {} that nothing looked at (ledger at {})",
        report.judged,
        time(question.from),
        time(question.until),
        report.of_other_policies,
        report.not_looked_at,
        report.position,
    )];
    for (kind, messages) in &report.limits {
        lines.push(match kind {
            Limit::Intents => format!(
                "  {messages} were measured against other intents: how far they are off these topics is not known"
            ),
            Limit::BlockedWords => {
                format!("  {messages} were never searched for the blocked words that are new")
            }
            Limit::Moderation => {
                format!("  {messages} were shown to other moderation services than the terms ask")
            }
        });
    }
    let (before, after) = (&report.before, &report.after);
    lines.extend(compared("messages", &before.messages, &after.messages));
    lines.extend(compared("offences", &before.offences, &after.offences));
    lines.extend(compared("people, highest state", &before.people, &after.people));
    if report.before.people_on_trial != report.after.people_on_trial {
        let (before, after) = (&before.people_on_trial, &after.people_on_trial);
        lines.extend(compared("the same in dry runs", before, after));
    }
    lines.push(format!(
        "{} messages and {} people fare differently",
        report.turns.len(),
        report.people.len()
    ));
    let rungs = |rungs: Rungs| format!("{} then {}", rungs.highest.as_ref(), rungs.last.as_ref());
    for one in report.people.iter().take(limit) {
        let (was, would_be) = (rungs(one.before), rungs(one.after));
        lines.push(format!("  person:{} with bot:{}: {was} -> {would_be}", one.subject, one.bot));
    }
    for one in report.turns.iter().take(limit) {
        let side = |outcome: Outcome, offences: &[OffenceKind]| {
            let offences: Vec<&str> = offences.iter().map(AsRef::as_ref).collect();
            match offences.is_empty() {
                true => outcome.as_ref().to_owned(),
                false => format!("{} ({})", outcome.as_ref(), offences.join(", ")),
            }
        };
        let was = side(one.before, &one.offences_before);
        let would_be = side(one.after, &one.offences_after);
        lines.push(format!("  turn:{} {}: {was} -> {would_be}", one.turn, time(one.received_at)));
    }
    lines
}

#[cfg(test)]
mod tests {
    use botledger_domain::standing::ladder::LadderState;
    use botledger_domain::{Position, SubjectId, TurnId};
    use botledger_projections::{PersonDifference, Sums, TurnDifference};
    use uuid::Uuid;

    use super::*;

    fn moment() -> DateTime<Utc> {
        DateTime::from_timestamp(1_780_000_000, 0).expect("a moment")
    }

    #[test]
    fn a_report_names_sums_limits_and_who_fares_differently() {
        let workspace = WorkspaceId(Uuid::nil());
        let (bot, subject, turn) = (BotId(Uuid::nil()), SubjectId(Uuid::nil()), TurnId(Uuid::nil()));
        let (from, until) = (moment(), moment() + TimeDelta::days(1));
        let terms = PolicyTerms::default();
        let question = WhatIf { workspace, bot: None, from, until, terms, acts: true };
        let sums = |outcome, state| Sums {
            messages: BTreeMap::from([(outcome, 12)]),
            offences: BTreeMap::new(),
            people: BTreeMap::from([(state, 3)]),
            people_on_trial: BTreeMap::new(),
        };
        let turn = TurnDifference {
            turn,
            bot,
            subject,
            position: 7,
            received_at: moment(),
            before: Outcome::Passed,
            after: Outcome::Content,
            offences_before: vec![],
            offences_after: vec![OffenceKind::Spam],
        };
        let after = Rungs { highest: LadderState::Throttled, ..Rungs::default() };
        let person = PersonDifference { bot, subject, position: 7, before: Rungs::default(), after };
        let report = WhatIfReport {
            position: Position(99),
            judged: 12,
            of_other_policies: 0,
            not_looked_at: 1,
            limits: BTreeMap::from([(Limit::BlockedWords, 4)]),
            before: sums(Outcome::Passed, LadderState::Ok),
            after: sums(Outcome::Content, LadderState::Throttled),
            turns: vec![turn.clone(), turn],
            people: vec![person],
        };
        let said = lines(&report, &question, 1).join("\n");
        for part in [
            "12 texts from 2026-05-28T20:26:40Z until 2026-05-29T20:26:40Z judged again",
            "1 that nothing looked at (ledger at 99)",
            "4 were never searched for the blocked words that are new",
            "  passed                        12         0",
            "  throttled                      0         3",
            "2 messages and 1 people fare differently",
            "ok then ok -> throttled then ok",
            "passed -> content (spam)",
        ] {
            assert!(said.contains(part), "{part} is missing in:\n{said}");
        }
        assert_eq!(said.matches("passed -> content").count(), 1, "no more than asked for");
        assert!(!said.contains("dry runs"), "nobody was on trial");
    }
}
