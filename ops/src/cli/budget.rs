//! `botledger budget …`: what bots and workspaces may use, for whoever has a shell on this machine.

use anyhow::{Context, Result, bail};
use botledger_domain::account::{Holder, Limit, LimitLeft, PlanTerms, Unit};
use botledger_domain::{BotId, Reason, WorkspaceId};
use botledger_local::progress::say;
use botledger_projections::ReadPool;
use chrono::{DateTime, Utc};
use clap::{Args, Subcommand};
use serde_json::json;

use super::Settings;
use super::address::only_workspace;
use super::bot::bots;
use crate::platform::Platform;

/// Millionths in one.
const MILLION: u64 = 1_000_000;
/// Digits behind the point of a millionth.
const PLACES: usize = 6;

#[derive(Clone, Debug, Subcommand)]
pub enum BudgetCommand {
    /// Give a bot or workspace a budget, or change it
    Set(Set),
    /// What is left of a budget, exactly
    Show {
        #[command(flatten)]
        whose: Whose,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Grant more until a moment
    Raise(Raise),
    /// Take a budget away: nothing limits its holder any more
    Remove {
        #[command(flatten)]
        whose: Whose,
        /// Why; kept in the ledger
        #[arg(long, default_value = "removed at the command line")]
        reason: String,
    },
}

#[derive(Clone, Debug, Args)]
pub struct Whose {
    /// `workspace`, or a bot by its username or id
    holder: String,
    /// Id of the workspace [default: the bot's, or the only one there is]
    #[arg(long, value_name = "ID")]
    workspace: Option<String>,
}

#[derive(Clone, Debug, Args)]
pub struct Set {
    #[command(flatten)]
    whose: Whose,
    /// UNIT/PERIOD=AMOUNT, with +CAP behind it where what is left goes over; may be given several times.
    /// Units are tokens, messages and money, for example messages/day=5000 money/month=120.50+20
    #[arg(long = "limit", value_name = "LIMIT", required = true, num_args = 1.., value_parser = parse_limit)]
    limits: Vec<Limit>,
    /// Percent of a limit at which operators are warned
    #[arg(long = "warn", value_name = "PERCENT", value_delimiter = ',', default_values_t = [80, 95])]
    warn_at_percent: Vec<u8>,
    /// How many turns may reserve at the same moment without waiting for each other, 1 to 64 [default: 16]
    #[arg(long, value_name = "N")]
    shares: Option<u16>,
}

#[derive(Clone, Debug, Args)]
pub struct Raise {
    #[command(flatten)]
    whose: Whose,
    /// tokens, messages or money
    unit: String,
    /// How much more
    amount: String,
    /// Until when, for example 2026-12-01T00:00:00Z
    #[arg(long)]
    until: DateTime<Utc>,
    /// Why; kept in the ledger
    #[arg(long, default_value = "raised at the command line")]
    reason: String,
}

impl BudgetCommand {
    /// Runs the subcommand and gives its exit code.
    ///
    /// # Errors
    /// When an argument makes no sense, the holder does not exist, or the database does not answer.
    pub async fn run(self, settings: Settings) -> Result<u8> {
        let platform = Platform::open(&settings.load_running()?.config)?;
        let done = self.carry_out(&platform).await;
        platform.close().await;
        say(done?);
        Ok(0)
    }

    async fn carry_out(self, platform: &Platform) -> Result<String> {
        let (caller, budgets) = (platform.caller(), &platform.app.budgets);
        match self {
            Self::Set(set) => {
                let (workspace, holder) = set.whose.find(&platform.read).await?;
                let terms = PlanTerms { limits: set.limits, warn_at_percent: set.warn_at_percent };
                let done = budgets.set(&caller, workspace, holder, terms, set.shares).await;
                done.context("the budget cannot be set")?;
                Ok("the budget holds from now on".to_owned())
            }
            Self::Show { whose, json } => {
                let (workspace, holder) = whose.find(&platform.read).await?;
                match budgets.left(workspace, holder).await? {
                    Some(left) if json => Ok(serde_json::to_string_pretty(&as_json(&left.limits))?),
                    Some(left) => Ok(left.limits.iter().map(line).collect::<Vec<_>>().join("\n")),
                    None if json => Ok("[]".to_owned()),
                    None => Ok("there is no budget: nothing limits it".to_owned()),
                }
            }
            Self::Raise(raise) => {
                let (workspace, holder) = raise.whose.find(&platform.read).await?;
                let unit = raise.unit.parse().context("the unit is tokens, messages or money")?;
                let amount = parse_amount(unit, &raise.amount).map_err(anyhow::Error::msg)?;
                let reason = Reason::parse(&raise.reason)?;
                let done = budgets.raise(&caller, workspace, holder, unit, amount, raise.until, reason).await;
                done.context("the budget cannot be raised")?;
                Ok(format!("granted until {}", raise.until))
            }
            Self::Remove { whose, reason } => {
                let (workspace, holder) = whose.find(&platform.read).await?;
                let reason = Reason::parse(&reason)?;
                let done = budgets.remove(&caller, workspace, holder, reason).await;
                done.context("the budget cannot be removed")?;
                Ok("nothing limits it any more".to_owned())
            }
        }
    }
}

impl Whose {
    async fn find(&self, read: &ReadPool) -> Result<(WorkspaceId, Holder)> {
        let named = self.workspace.as_deref().map(WorkspaceId::parse).transpose();
        let named = named.context("the workspace's id is no id")?;
        if self.holder == "workspace" {
            let workspace = match named {
                Some(workspace) => workspace,
                None => only_workspace(read).await?,
            };
            return Ok((workspace, Holder::Workspace(workspace)));
        }
        let wanted = self.holder.trim_start_matches('@');
        let bots = bots(read).await?;
        let found = bots.iter().find(|bot| {
            named.is_none_or(|workspace| bot.workspace == workspace.uuid())
                && (bot.username.eq_ignore_ascii_case(wanted) || bot.bot_id.to_string() == wanted)
        });
        match found {
            Some(bot) => Ok((WorkspaceId(bot.workspace), Holder::Bot(BotId(bot.bot_id)))),
            None => bail!("there is no bot {wanted}; `botledger bot list` shows them"),
        }
    }
}

fn parse_limit(text: &str) -> Result<Limit, String> {
    let (what, amount) = text.split_once('=').ok_or("a limit reads UNIT/PERIOD=AMOUNT")?;
    let (unit, period) = what.split_once('/').ok_or("a limit reads UNIT/PERIOD=AMOUNT")?;
    let unit: Unit = unit.parse().map_err(|_| "the unit is tokens, messages or money")?;
    let period = period.parse().map_err(|_| "the period is minute, hour, day, week or month")?;
    let (amount, cap) = match amount.split_once('+') {
        Some((amount, cap)) => (amount, Some(parse_amount(unit, cap)?)),
        None => (amount, None),
    };
    Ok(Limit { unit, period, amount: parse_amount(unit, amount)?, roll_over: cap })
}

/// Money is written in whole units of the currency, with at most six places; all else is counted.
fn parse_amount(unit: Unit, text: &str) -> Result<u64, String> {
    let wrong = || format!("{text} is no amount of {}", unit.as_ref());
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|digit| digit.is_ascii_digit());
    if unit != Unit::Money {
        return if digits(text) { text.parse().map_err(|_| wrong()) } else { Err(wrong()) };
    }
    let (whole, places) = text.split_once('.').unwrap_or((text, "0"));
    if !digits(whole) || !digits(places) || places.len() > PLACES {
        return Err(wrong());
    }
    let whole: u64 = whole.parse().map_err(|_| wrong())?;
    let places: u64 = format!("{places:0<PLACES$}").parse().map_err(|_| wrong())?;
    whole.checked_mul(MILLION).and_then(|whole| whole.checked_add(places)).ok_or_else(wrong)
}

fn shown(unit: Unit, amount: u64) -> String {
    match unit {
        Unit::Money => format!("{}.{:0PLACES$}", amount / MILLION, amount % MILLION),
        Unit::Tokens | Unit::Messages => amount.to_string(),
    }
}

fn line(left: &LimitLeft) -> String {
    let amount = |amount| shown(left.unit, amount);
    format!(
        "{}/{}  {} of {} left  ({} used, {} held, {} came over)  resets at {}",
        left.unit.as_ref(),
        left.period.as_ref(),
        amount(left.remaining),
        amount(left.limit),
        amount(left.used),
        amount(left.reserved),
        amount(left.carried),
        left.resets_at,
    )
}

/// Amounts as texts, money in millionths: numbers of JSON are not exact everywhere.
fn as_json(limits: &[LimitLeft]) -> serde_json::Value {
    let limit = |left: &LimitLeft| {
        json!({
            "unit": left.unit.as_ref(), "period": left.period.as_ref(), "limit": left.limit.to_string(),
            "carried": left.carried.to_string(), "used": left.used.to_string(),
            "reserved": left.reserved.to_string(), "remaining": left.remaining.to_string(),
            "resets_at": left.resets_at,
        })
    };
    limits.iter().map(limit).collect()
}

#[cfg(test)]
mod tests {
    use botledger_domain::account::Period;

    use super::*;

    #[test]
    fn a_limit_reads_unit_period_amount_and_cap() {
        let limit = |unit, period, amount, roll_over| Ok(Limit { unit, period, amount, roll_over });
        assert_eq!(parse_limit("messages/day=50"), limit(Unit::Messages, Period::Day, 50, None));
        let money = limit(Unit::Money, Period::Month, 120_500_000, Some(20_000_001));
        assert_eq!(parse_limit("money/month=120.5+20.000001"), money);
        for wrong in
            ["messages", "messages/day", "messages/year=5", "gold/day=5", "tokens/day=1.5", "money/day=.5"]
        {
            assert!(parse_limit(wrong).is_err(), "{wrong}");
        }
        for wrong in [
            "money/day=1.1234567",
            "tokens/day=-5",
            "tokens/day=99999999999999999999",
            "money/day=99999999999999",
        ] {
            assert!(parse_limit(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn money_is_shown_as_it_is_written() {
        let amount = parse_amount(Unit::Money, "120.05").unwrap();
        assert_eq!((amount, shown(Unit::Money, amount).as_str()), (120_050_000, "120.050000"));
    }
}
