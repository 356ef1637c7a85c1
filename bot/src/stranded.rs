//! Turns of bots that are not meant to run. Nobody works on them, so what they hold is given back: an
//! admitted turn fails and its tokens are free again. It is told when the bot runs again; the turns
//! of an archived bot, which never does, are closed.

use std::{sync::Arc, time::Duration};

use botledger_commands::{Caller, CommandError, Fence, TurnFailure};
use botledger_domain::{
    bot::BotStatus,
    turn::{TurnError, TurnPhase},
};
use botledger_projections::{StrandedTurn, stranded_turns};
use tokio_util::sync::CancellationToken;

use crate::fleet::Deps;

/// How often they are looked for.
const LOOK: Duration = Duration::from_secs(10);
/// Looked at in one go, at most.
const PAGE: i64 = 200;
/// After this long without any news of a bot its holder is not waited for any more: no turn takes so
/// long to end, and the holder died.
const FORGOTTEN: chrono::TimeDelta = chrono::TimeDelta::minutes(10);

/// Looks for stranded turns until cancelled. Every process may: who is second finds nothing to do.
pub(crate) async fn release(deps: Arc<Deps>, cancel: CancellationToken) {
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            _ = look.tick() => {}
        }
        let forgotten = deps.app.core.clock.now() - FORGOTTEN;
        let turns = match stranded_turns(&deps.read, forgotten, PAGE).await {
            Ok(turns) => turns,
            Err(error) => {
                tracing::warn!(error = %error, "stranded turns cannot be read");
                continue;
            }
        };
        for turn in turns {
            if let Err(error) = end(&deps, turn).await {
                tracing::warn!(bot.id = %turn.bot, turn.id = %turn.turn, error = %error, "a stranded turn could not be ended");
            }
        }
    }
}

async fn end(deps: &Deps, stranded: StrandedTurn) -> Result<(), CommandError<TurnError>> {
    let app = &deps.app;
    let caller = Caller::system("sweeper", stranded.turn.uuid());
    let Ok(bot) = app.bots.get(&caller, stranded.bot).await else { return Ok(()) };
    // Read models lag: it may have been started again.
    if bot.status == BotStatus::Running {
        return Ok(());
    }
    // Whoever takes the bot over from here on has a higher epoch, and the turn for itself.
    let fence = Fence { epoch: bot.lease_epoch };
    let archived = bot.status == BotStatus::Archived;
    let phase = app.turns.load(stranded.turn).await?.state.phase;
    if phase == TurnPhase::Admitted || (archived && phase == TurnPhase::Received) {
        let failure = TurnFailure {
            code: "BOT_STOPPED".to_owned(),
            detail: "the bot was stopped before it could answer".to_owned(),
            used: None,
        };
        app.turns.fail(&caller, stranded.turn, fence, failure).await?;
        tracing::info!(bot.id = %stranded.bot, turn.id = %stranded.turn, "failed a turn of a bot that does not run");
    }
    if archived {
        let told = "the bot is archived";
        app.turns.give_up(&caller, stranded.turn, fence, "bot_archived", 0, told).await?;
    }
    Ok(())
}
