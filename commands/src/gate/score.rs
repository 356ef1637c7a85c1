//! What a message's findings do: they are recorded with the policy that judged them, the person's standing
//! moves by them, and both are in the same append set as the decision.

use botledger_domain::{
    policy::Refusal,
    signal::Findings,
    standing::{BlockCause, Scoring, Standing, StandingCommand, StandingEvent, ladder::OffenceKind},
    turn::{Message, Notice, RefusalReason, Turn, TurnCommand},
};
use botledger_journal::{AppendSet, Loaded};
use chrono::{DateTime, Utc};

use super::GateError;
use crate::{CommandError, EffectivePolicy, scorer};

/// What was seen in a message, and who judges it.
pub(super) struct Looked {
    pub(super) policy: EffectivePolicy,
    pub(super) findings: Findings,
}

/// What the judgement comes to for the person.
#[derive(Default)]
pub(super) struct Judged {
    /// The message took them to a block: it outweighs every other reason.
    pub(super) blocked: Option<RefusalReason>,
    /// What was seen is not answered.
    pub(super) refusal: Option<RefusalReason>,
    /// What they are told beside the answer.
    pub(super) notices: Vec<Notice>,
    /// Moves on the ladder, for the metrics: where to, and whether on trial.
    pub(super) moves: Vec<(&'static str, bool)>,
}

/// Puts a message's findings and what they do to the person's standing into the set.
pub(super) fn judge(
    set: &mut AppendSet,
    turn: &mut Loaded<Turn>,
    standing: &mut Loaded<Standing>,
    message: &Message,
    looked: &Looked,
    now: DateTime<Utc>,
) -> Result<Judged, GateError> {
    let Looked { policy, findings } = looked;
    let reference = policy.reference(now);
    let id = botledger_domain::TurnId(uuid::Uuid::try_parse(&turn.id).map_err(CommandError::broken)?);
    let judgement = policy.terms.judge(findings);
    let score = TurnCommand::Score { policy: reference, findings: findings.clone() };
    set.decide(turn, score, now).map_err(CommandError::Refused)?;
    let scoring = Scoring {
        bot: message.bot,
        subject: message.subject,
        turn: id,
        offences: judgement.offences,
        rules: policy.terms.ladder(),
        policy_version: reference.version,
        model_version: scorer::model_version(findings),
        dry_run: reference.dry_run,
    };
    let events =
        set.decide(standing, StandingCommand::Score(Box::new(scoring)), now).map_err(CommandError::broken)?;
    let mut judged = Judged::default();
    let mut last_straw = OffenceKind::Clean;
    for event in events {
        let moved = match event {
            StandingEvent::PointsScored { offences, .. } => {
                let heaviest = offences.iter().max_by_key(|offence| offence.points);
                last_straw = heaviest.map_or(OffenceKind::Clean, |offence| offence.kind);
                continue;
            }
            StandingEvent::WarningIssued { shown, .. } => {
                if shown {
                    judged.notices.push(Notice::Warned { offence: last_straw });
                }
                "warned"
            }
            StandingEvent::Throttled { .. } => {
                let per_minute = policy.terms.throttled_per_minute;
                judged.notices.push(Notice::Throttled { per_minute });
                "throttled"
            }
            StandingEvent::TemporarilyBlocked { until, .. } => {
                judged.blocked = Some(RefusalReason::TemporarilyBlocked { until });
                "temporarily_blocked"
            }
            StandingEvent::Blocked { cause, .. } => {
                let severe = cause == BlockCause::Severe;
                judged.blocked = Some(RefusalReason::BlockedUntilAppeal { severe });
                "blocked"
            }
            _ => continue,
        };
        judged.moves.push((moved, reference.dry_run));
    }
    if reference.dry_run {
        // It only watches: the person notices nothing.
        return Ok(Judged { moves: judged.moves, ..Judged::default() });
    }
    judged.refusal = judgement.refusal.map(|refusal| match refusal {
        Refusal::Content { detector, rule } => RefusalReason::Content { detector, rule },
        Refusal::OffTopic => RefusalReason::OffTopic,
        Refusal::Unscored => RefusalReason::Unscored,
    });
    Ok(judged)
}

/// Counts moves on the ladder, once they are in the ledger.
pub(super) fn count(judged: &Judged) {
    for (state, dry_run) in &judged.moves {
        let trial = if *dry_run { "yes" } else { "no" };
        metrics::counter!("botledger_standing_transitions_total", "state" => *state, "dry_run" => trial)
            .increment(1);
    }
}
