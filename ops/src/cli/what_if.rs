//! `botledger what-if …`: recorded decisions, decided again under other rules. Nothing is written to the
//! ledger; the same ledger gives the same answer.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use botledger_commands::SystemClock;
use botledger_domain::account::{Amounts, PlanTerms};
use botledger_domain::standing::ladder::OffenceKind;
use botledger_domain::{Clock, PlanName};
use botledger_local::progress::say;
use botledger_local::secrets::write_whole;
use botledger_projections::{
    Demand, Limit, Outcome, PlanReport, PlanWhatIf, Rungs, Saved, WhatIf, WhatIfReport, plan_what_if,
    policy_what_if,
};
use chrono::{DateTime, TimeDelta, Utc};
use clap::Args;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::Settings;
use super::policy::{Whose, read, time, wanted};
use crate::platform::answering_pool;

/// Rules to try, and on what.
#[derive(Clone, Debug, Args)]
pub struct TryRules {
    /// A policy: TOML, or JSON when it ends in .json
    #[arg(long, value_name = "FILE", required_unless_present = "plan", conflicts_with = "plan")]
    policy: Option<PathBuf>,
    /// A plan, in the place of everybody's: TOML, or JSON when it ends in .json
    #[arg(long, value_name = "FILE", conflicts_with_all = ["bot", "live"])]
    plan: Option<PathBuf>,
    /// Only in the place of this plan: people on others are left out
    #[arg(long, value_name = "NAME", requires = "plan")]
    of_plan: Option<String>,
    #[command(flatten)]
    whose: Whose,
    #[command(flatten)]
    how: Asking,
}

/// Terms of a policy to try, and on what.
#[derive(Clone, Debug, Args)]
pub struct TryPolicy {
    /// TOML, or JSON when it ends in .json [default: what is in force]
    file: Option<PathBuf>,
    /// An old version instead
    #[arg(long, value_name = "N", conflicts_with = "file")]
    version: Option<u32>,
    #[command(flatten)]
    whose: Whose,
    #[command(flatten)]
    how: Asking,
}

/// Which time, and how the answer is shown.
#[derive(Clone, Debug, Args)]
struct Asking {
    /// Of so many days
    #[arg(long, default_value_t = 7, conflicts_with = "from")]
    days: u16,
    /// Of what came at or after this time (RFC 3339)
    #[arg(long, value_name = "TIME")]
    from: Option<DateTime<Utc>>,
    /// Of what came before this time [default: now]
    #[arg(long, visible_alias = "to", value_name = "TIME")]
    until: Option<DateTime<Utc>>,
    /// As if the terms acted wherever the version before them only watched
    #[arg(long)]
    live: bool,
    /// Keep in this file how far the answer has come, and go on from there: for long times. The file goes
    /// when the answer is there
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// Decisions and people shown at most; `--json` shows all
    #[arg(long, default_value_t = 20)]
    limit: usize,
    /// Print JSON: the whole report
    #[arg(long)]
    json: bool,
}

/// What is kept between two runs.
#[derive(Serialize, Deserialize)]
struct Kept<R> {
    /// What was asked; another question begins anew, in another file.
    question: Value,
    saved: Saved<R>,
}

/// The file of an answer that takes long.
struct StateFile {
    path: Option<PathBuf>,
    question: Value,
}

impl StateFile {
    fn load<R: DeserializeOwned>(&self) -> Result<Option<Saved<R>>> {
        let Some(path) = &self.path else { return Ok(None) };
        let name = path.display();
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("{name} cannot be read")),
        };
        let kept: Kept<R> =
            serde_json::from_str(&text).with_context(|| format!("{name} keeps no answer of this kind"))?;
        // The end of the time is that of the first run, unless somebody says otherwise.
        if kept.question != self.question {
            bail!("{name} belongs to another question: give another file, or remove it");
        }
        Ok(Some(kept.saved))
    }

    fn keep<R: Serialize + Clone>(&self, saved: &Saved<R>) -> Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let kept = Kept { question: self.question.clone(), saved: saved.clone() };
        // Whoever is interrupted here goes on from before.
        write_whole(path, &serde_json::to_string(&kept)?, 0o666)
    }

    /// Ends an answer that is shown: a failure to keep it on the way spoils nothing any more.
    fn done(&self, failure: Option<anyhow::Error>) {
        if let Some(error) = failure {
            // Nobody may be looking.
            let _ = writeln!(std::io::stderr(), "how far the answer had come could not be kept: {error:#}");
        }
        if let Some(path) = &self.path {
            // The answer is there; a file that stays says so once more.
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Asking {
    /// The time, in whole seconds where it is told from now: two runs a moment apart ask the same.
    fn time(&self) -> Result<(DateTime<Utc>, DateTime<Utc>)> {
        let until = self.until.unwrap_or_else(|| SystemClock.now());
        let from = self.from.or_else(|| until.checked_sub_signed(TimeDelta::days(self.days.into())));
        if self.state.is_some() && self.until.is_none() {
            bail!("with --state give --until (and --from): a run that goes on must ask the same");
        }
        Ok((from.context("--days reaches back before there were days")?, until))
    }

    /// Tells how far it is, and keeps it; the first failure to keep it is told after the answer.
    fn keeper<'a, R: Serialize + Clone>(
        state: &'a StateFile,
        failure: &'a mut Option<anyhow::Error>,
    ) -> impl FnMut(&Saved<R>, u64) + Send + 'a {
        let mut shown = std::time::Instant::now();
        move |saved, all| {
            if let Err(error) = state.keep(saved) {
                failure.get_or_insert(error);
            }
            let mut stderr = std::io::stderr();
            if saved.done >= all || shown.elapsed().as_millis() >= 500 {
                shown = std::time::Instant::now();
                let end = if stderr.is_terminal() && saved.done < all { "\r" } else { "\n" };
                // Nobody may be looking.
                let _ = write!(stderr, "{} of {all} people{end}", saved.done);
            }
        }
    }

    fn show<R: Serialize>(&self, report: &R, lines: impl FnOnce() -> Vec<String>) -> Result<u8> {
        if self.json {
            say(serde_json::to_string_pretty(report)?);
        } else {
            lines().into_iter().for_each(say);
        }
        Ok(0)
    }
}

async fn ask_policy(pool: &botledger_projections::ReadPool, question: WhatIf, how: &Asking) -> Result<u8> {
    let asked = json!({
        "rules": "policy", "workspace": question.workspace, "bot": question.bot, "from": question.from,
        "until": question.until, "terms": question.terms, "acts": question.acts,
    });
    let state = StateFile { path: how.state.clone(), question: asked };
    let saved = state.load()?;
    let mut failure = None;
    let report = policy_what_if(pool, &question, saved, Asking::keeper(&state, &mut failure)).await?;
    let shown = how.show(&report, || lines(&report, &question, how.limit))?;
    state.done(failure);
    Ok(shown)
}

impl TryPolicy {
    /// Tries terms of a policy.
    ///
    /// # Errors
    /// When the file cannot be read, the terms make no sense, or the database does not answer.
    pub async fn run(self, settings: Settings) -> Result<u8> {
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
        let (from, until) = self.how.time()?;
        let acts = self.how.live;
        let question = WhatIf { workspace: place.workspace, bot: place.bot, from, until, terms, acts };
        ask_policy(&pool, question, &self.how).await
    }
}

/// Reads a plan file.
///
/// # Errors
/// When it cannot be read, or is no plan that makes sense.
fn read_plan(file: &Path) -> Result<PlanTerms> {
    let name = file.display();
    let text = std::fs::read_to_string(file).with_context(|| format!("{name} cannot be read"))?;
    let is_json = file.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"));
    let terms: Result<PlanTerms> = match is_json {
        true => serde_json::from_str(&text).map_err(anyhow::Error::from),
        false => toml::from_str(&text).map_err(anyhow::Error::from),
    };
    Ok(terms.with_context(|| format!("{name} is no plan"))?.checked()?)
}

impl TryRules {
    /// Tries a policy or a plan.
    ///
    /// # Errors
    /// When the file cannot be read, the rules make no sense, or the database does not answer.
    pub async fn run(self, settings: Settings) -> Result<u8> {
        let Some(plan) = &self.plan else {
            let Self { policy, whose, how, .. } = self;
            return TryPolicy { file: policy, version: None, whose, how }.run(settings).await;
        };
        let terms = read_plan(plan)?;
        let of_plan = self.of_plan.as_deref().map(PlanName::parse).transpose().context("--of-plan")?;
        let (from, until) = self.how.time()?;
        let pool = answering_pool(&settings.load_running()?.config).await?;
        let workspace = self.whose.find(&pool).await?.workspace;
        let question = PlanWhatIf { workspace, from, until, terms, of_plan };
        let asked = json!({
            "rules": "plan", "workspace": workspace, "from": from, "until": until, "terms": question.terms,
            "of_plan": question.of_plan,
        });
        let state = StateFile { path: self.how.state.clone(), question: asked };
        let saved = state.load()?;
        let mut failure = None;
        let report =
            plan_what_if(&pool, &question, None, saved, Asking::keeper(&state, &mut failure)).await?;
        let shown = self.how.show(&report, || plan_lines(&report, &question, self.how.limit))?;
        state.done(failure);
        Ok(shown)
    }
}

fn amounts(amounts: Amounts) -> String {
    format!("{} tokens, {} messages, {} money", amounts.tokens, amounts.messages, amounts.money)
}

fn plan_lines(report: &PlanReport, question: &PlanWhatIf, limit: usize) -> Vec<String> {
    let (before, after) = (report.before, report.after);
    let mut lines = vec![format!(
        "{} demands of {} people from {} until {} made again (ledger at {})",
        before.held + before.refused,
        report.people,
        time(question.from),
        time(question.until),
        report.position,
    )];
    if report.estimated > 0 {
        lines.push(format!(
            "  {} that were refused would have been held: they count with what their person's answers before took",
            report.estimated
        ));
    }
    if report.unknown > 0 {
        lines.push(format!(
            "  {} that were refused count so again: how much they asked for of what this plan limits is not known",
            report.unknown
        ));
    }
    lines.push(format!("{:<24} {:>15} {:>15}", "", "before", "after"));
    for (name, was, would_be) in [
        ("held", before.held, after.held),
        ("refused", before.refused, after.refused),
        ("warnings", before.warnings, after.warnings),
        ("tokens charged", before.charged.tokens, after.charged.tokens),
        ("messages charged", before.charged.messages, after.charged.messages),
        ("money charged", before.charged.money, after.charged.money),
    ] {
        lines.push(format!("  {name:<22} {was:>15} {would_be:>15}"));
    }
    lines.push(format!(
        "{} demands and {} people fare differently",
        report.demands.len(),
        report.people_changed.len()
    ));
    for one in report.people_changed.iter().take(limit) {
        let (was, would_be) = (one.before, one.after);
        lines.push(format!(
            "  person:{}: {} refused, {} warnings, {} -> {} refused, {} warnings, {}",
            one.subject,
            was.refused,
            was.warnings,
            amounts(was.charged),
            would_be.refused,
            would_be.warnings,
            amounts(would_be.charged),
        ));
    }
    for one in report.demands.iter().take(limit) {
        let side = |demand: Demand, charged: Amounts| match demand {
            Demand::Held => format!("held ({})", amounts(charged)),
            Demand::Refused(unit) => format!("refused for {}", unit.as_ref()),
        };
        let was = side(one.before, one.charged_before);
        let would_be = side(one.after, one.charged_after);
        lines.push(format!("  turn:{} {}: {was} -> {would_be}", one.reservation, time(one.demanded_at)));
    }
    lines
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
    use botledger_domain::policy::PolicyTerms;
    use botledger_domain::standing::ladder::LadderState;
    use botledger_domain::{BotId, Position, SubjectId, TurnId, WorkspaceId};
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
