//! `botledger address …`: what only whoever runs the installation may decide about addresses, and the
//! way back in for an operator whose address is refused.

use anyhow::{Context, Result, bail};
use botledger_commands::{ListedAs, NewAccessEntry, WhichList};
use botledger_domain::access_list::{AccessEffect, Network};
use botledger_domain::rate_limit::{RateLimit, RateRule, RateSubject};
use botledger_domain::{Reason, WorkspaceId};
use botledger_local::progress::say;
use botledger_projections::{Page, ReadPool, workspaces_page};
use chrono::TimeDelta;
use clap::{Args, Subcommand};
use std::net::IpAddr;

use super::Settings;
use crate::platform::Platform;

#[derive(Clone, Debug, Subcommand)]
pub enum AddressCommand {
    /// Let a network into a workspace's API, for whoever is locked out
    Allow(Allow),
    /// Let an address ask the API faster or slower than `rate_limits.ip`, or as fast as everybody again
    Pace(Pace),
}

#[derive(Clone, Debug, Args)]
pub struct Allow {
    /// An address such as 192.0.2.1, or a range such as 2001:db8::/48
    network: String,
    /// Id of the workspace [default: the only one there is]
    #[arg(long, value_name = "ID")]
    workspace: Option<String>,
    /// Why; kept in the ledger
    #[arg(long, default_value = "let in at the command line")]
    reason: String,
}

#[derive(Clone, Debug, Args)]
pub struct Pace {
    /// An address; of IPv6 its /64 is meant
    address: IpAddr,
    /// Requests at once
    #[arg(long, value_name = "N", requires = "per_minute", required_unless_present = "ordinary")]
    burst: Option<u32>,
    /// Requests a minute in the long run
    #[arg(long, value_name = "N", requires = "burst")]
    per_minute: Option<u32>,
    /// For so long [default: until it is changed]
    #[arg(long, value_name = "HOURS", requires = "burst")]
    hours: Option<u32>,
    /// As everybody again
    #[arg(long, conflicts_with = "burst")]
    ordinary: bool,
    /// Why; kept in the ledger
    #[arg(long, default_value = "set at the command line")]
    reason: String,
}

impl AddressCommand {
    /// Runs the subcommand and gives its exit code.
    ///
    /// # Errors
    /// When an argument makes no sense or the database does not answer.
    pub async fn run(self, settings: Settings) -> Result<u8> {
        let platform = Platform::open(&settings.load_running()?.config)?;
        let done = match self {
            Self::Allow(allow) => allow.run(&platform).await,
            Self::Pace(pace) => pace.run(&platform).await,
        };
        platform.close().await;
        say(done?);
        Ok(0)
    }
}

impl Allow {
    async fn run(self, platform: &Platform) -> Result<String> {
        let network = Network::parse(&self.network)?;
        let reason = Reason::parse(&self.reason)?;
        let workspace = match &self.workspace {
            Some(id) => {
                WorkspaceId::parse(id.trim_start_matches("workspace:")).context("--workspace is no id")?
            }
            None => only_workspace(&platform.read).await?,
        };
        let list = WhichList { workspace, bot: None };
        let who = ListedAs::Network(network);
        let entry = NewAccessEntry { who, effect: AccessEffect::Allow, reason, expires_at: None };
        let lists = &platform.app.access_lists;
        lists.add(&platform.caller(), list, vec![entry], None).await.context("it cannot be let in")?;
        Ok(format!(
            "{network} is let into workspace {workspace}, unless an entry about a smaller network denies it"
        ))
    }
}

impl Pace {
    async fn run(self, platform: &Platform) -> Result<String> {
        let reason = Reason::parse(&self.reason)?;
        let (subject, caller) = (RateSubject::ip(self.address), platform.caller());
        let limits = &platform.app.rate_limits;
        // Addresses belong to no workspace.
        let nobodys = WorkspaceId(uuid::Uuid::nil());
        let (Some(burst), Some(per_minute)) = (self.burst, self.per_minute) else {
            limits
                .remove_override(&caller, nobodys, &subject, reason)
                .await
                .context("it cannot be changed")?;
            return Ok(format!("{} may ask as often as everybody", subject.id()));
        };
        let rule = RateRule::requests(RateLimit { burst, per_minute });
        let end = self.hours.map(|hours| platform.app.core.clock.now() + TimeDelta::hours(hours.into()));
        let set = limits.set_override(&caller, nobodys, subject.clone(), rule, reason, end).await;
        set.context("it cannot be changed")?;
        Ok(format!("{} may ask {burst} times at once and {per_minute} times a minute", subject.id()))
    }
}

/// The workspace that is meant where nobody names one.
///
/// # Errors
/// When there is none, or more than one.
pub(super) async fn only_workspace(pool: &ReadPool) -> Result<WorkspaceId> {
    match workspaces_page(pool, Page::oldest(2)).await.context("the database does not answer")?.as_slice() {
        [one] => Ok(WorkspaceId(one.workspace)),
        [] => bail!("there is no workspace yet"),
        _ => bail!("there are several workspaces: name one with --workspace"),
    }
}
