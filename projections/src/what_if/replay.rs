//! One person with one bot, twice: as it was, and as it would have been.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use botledger_domain::{
    BotId, Decide, SubjectId, TurnId,
    policy::{Judgement, PolicyRef, PolicyTerms, Refusal},
    signal::{Detector, Findings},
    standing::{
        BlockCause, DecisionKind, Offence, Scoring, Standing, StandingCommand, StandingEvent, Verdict,
        ladder::{LadderConfig, LadderState, OffenceKind},
    },
};
use chrono::{DateTime, Utc};

use super::{Limit, Outcome, Rungs, TurnDifference};

/// The terms that are tried.
pub(super) struct Candidate<'a> {
    terms: &'a PolicyTerms,
    ladder: LadderConfig,
    /// Whether they act, also where the version before them only watched.
    acts: bool,
    /// Number of each blocked word, from 1.
    words: BTreeMap<&'a str, usize>,
}

impl<'a> Candidate<'a> {
    pub(super) fn new(terms: &'a PolicyTerms, acts: bool) -> Self {
        let mut words = BTreeMap::new();
        for (at, word) in terms.blocked_words.iter().enumerate() {
            words.entry(word.phrase.trim()).or_insert(at + 1);
        }
        Self { terms, ladder: terms.ladder(), acts, words }
    }

    /// What cannot be told of a message that other terms judged.
    pub(super) fn limits(&self, judged_by: &PolicyTerms) -> Vec<Limit> {
        let topics = |terms: &PolicyTerms| {
            (terms.intents.clone(), terms.not_this.clone(), terms.embedding_model.clone())
        };
        let mut limits = Vec::new();
        if !self.terms.intents.is_empty() && topics(self.terms) != topics(judged_by) {
            limits.push(Limit::Intents);
        }
        let searched: BTreeSet<&str> =
            judged_by.blocked_words.iter().map(|word| word.phrase.trim()).collect();
        if self.words.keys().any(|phrase| !searched.contains(phrase)) {
            limits.push(Limit::BlockedWords);
        }
        if services(self.terms) != services(judged_by) {
            limits.push(Limit::Moderation);
        }
        limits
    }

    /// What recorded findings come to, without those that nobody would have looked for. Blocked words were
    /// recorded by their number in the version that judged, so the same words are found by the numbers they
    /// have here.
    fn judge(&self, findings: &Findings, judged_by: &PolicyTerms) -> Judgement {
        let mut findings = findings.clone();
        if self.terms.intents.is_empty() {
            findings.intent = None;
        }
        findings.signals.retain_mut(|signal| match signal.detector {
            Detector::BlockedWord => {
                let number = signal.rule.parse::<usize>().ok().and_then(|number| number.checked_sub(1));
                let word = number.and_then(|at| judged_by.blocked_words.get(at));
                let here = word.and_then(|word| self.words.get(word.phrase.trim()));
                if let Some(here) = here {
                    signal.rule = here.to_string();
                }
                here.is_some()
            }
            Detector::Moderation => !self.terms.moderation.is_empty(),
            _ => true,
        });
        let (asked, wanted) = (services(judged_by), services(self.terms));
        findings.unavailable.retain(|name| match name.as_str() {
            "intent" => !self.terms.intents.is_empty(),
            "blocked_word" => !self.words.is_empty(),
            name => !asked.contains(name) || wanted.contains(name),
        });
        self.terms.judge(&findings)
    }
}

/// The moderation services that terms ask.
fn services(terms: &PolicyTerms) -> BTreeSet<&str> {
    terms.moderation.iter().map(|rule| rule.service.as_str()).collect()
}

/// What the detectors said of a message, and who judged it.
pub(super) struct Judged {
    pub(super) findings: Findings,
    pub(super) terms: Arc<PolicyTerms>,
    pub(super) policy: PolicyRef,
    /// Whether it stays as it was judged: the candidate is not for it.
    pub(super) fixed: bool,
}

/// A message as it is recorded.
pub(super) struct Heard {
    pub(super) turn: TurnId,
    pub(super) position: i64,
    pub(super) received_at: DateTime<Utc>,
    /// When it was looked at, or refused unseen.
    pub(super) at: DateTime<Utc>,
    /// Absent when nothing looked at it.
    pub(super) judged: Option<Judged>,
    pub(super) outcome: Outcome,
    /// Whether it came too fast: then nobody read it, and only how it came was judged.
    pub(super) hasty: bool,
}

/// What became of a person, and what would have.
pub(super) struct Fate {
    pub(super) before: Rungs,
    pub(super) after: Rungs,
    /// Every message that was looked at, or would have been.
    pub(super) turns: Vec<TurnDifference>,
}

/// One side of the comparison.
#[derive(Default)]
struct Side {
    standing: Standing,
    highest: LadderState,
    highest_on_trial: LadderState,
}

impl Side {
    /// Where the time begins.
    fn begin(&mut self, at: DateTime<Utc>) {
        self.highest = self.standing.live.ladder_at(at).state;
        self.highest_on_trial = self.standing.trial.ladder_at(at).state;
    }

    fn apply(&mut self, fact: StandingEvent) {
        if let StandingEvent::PointsScored { after, dry_run, .. } = &fact {
            let highest = if *dry_run { &mut self.highest_on_trial } else { &mut self.highest };
            *highest = (*highest).max(after.state);
        }
        apply(&mut self.standing, fact);
    }

    /// Does what was asked for then, if it can be done here, and tells what was charged.
    fn decide(&mut self, command: StandingCommand, at: DateTime<Utc>) -> Vec<OffenceKind> {
        let facts = self.standing.decide(command, at).unwrap_or_default();
        let charged = facts.iter().flat_map(charged).collect();
        facts.into_iter().for_each(|fact| self.apply(fact));
        charged
    }

    fn is_blocked(&self, at: DateTime<Utc>) -> bool {
        matches!(self.standing.verdict_at(at), Verdict::Blocked(_))
    }

    fn is_slow(&self, at: DateTime<Utc>) -> bool {
        self.standing.verdict_at(at) == Verdict::Throttled
    }

    fn is_free(&self, at: DateTime<Utc>) -> bool {
        self.standing.verdict_at(at) == Verdict::Clear
    }

    fn rungs(&self, end: DateTime<Utc>) -> Rungs {
        Rungs {
            highest: self.highest,
            highest_on_trial: self.highest_on_trial,
            last: self.standing.live.ladder_at(end).state,
        }
    }

    /// What the gate makes of a message once it was scored: a message that brings its writer to a block is
    /// refused for that, and one that came too fast for that, whatever else was found.
    fn conclude(&self, judgement: &Judgement, dry_run: bool, hasty: bool, at: DateTime<Utc>) -> Outcome {
        if self.is_blocked(at) {
            return Outcome::Blocked;
        }
        match &judgement.refusal {
            Some(_) if dry_run || hasty => Outcome::Passed,
            Some(Refusal::Content { .. }) => Outcome::Content,
            Some(Refusal::OffTopic) => Outcome::OffTopic,
            Some(Refusal::Unscored) => Outcome::Unscored,
            None => Outcome::Passed,
        }
    }
}

fn apply<A: Decide>(state: &mut A, fact: A::Event) {
    state.apply(fact);
}

/// The offences of a scoring.
fn charged(fact: &StandingEvent) -> Vec<OffenceKind> {
    match fact {
        StandingEvent::PointsScored { offences, .. } => offences.iter().map(|one| one.kind).collect(),
        _ => Vec::new(),
    }
}

/// When a fact was decided.
fn moment(fact: &StandingEvent) -> DateTime<Utc> {
    match fact {
        StandingEvent::PointsScored { scored_at: at, .. }
        | StandingEvent::WarningIssued { warned_at: at, .. }
        | StandingEvent::Throttled { throttled_at: at, .. }
        | StandingEvent::TemporarilyBlocked { blocked_at: at, .. }
        | StandingEvent::Blocked { blocked_at: at, .. }
        | StandingEvent::Unblocked { unblocked_at: at, .. }
        | StandingEvent::AppealFiled { filed_at: at, .. }
        | StandingEvent::AppealGranted { granted_at: at, .. }
        | StandingEvent::AppealDenied { denied_at: at, .. }
        | StandingEvent::DecisionUndone { undone_at: at, .. } => *at,
    }
}

/// Folds one person's time.
pub(super) struct PersonReplay<'a> {
    candidate: &'a Candidate<'a>,
    bot: BotId,
    subject: SubjectId,
    from: DateTime<Utc>,
    actual: Side,
    supposed: Side,
    turns: Vec<TurnDifference>,
}

impl<'a> PersonReplay<'a> {
    pub(super) fn new(
        candidate: &'a Candidate<'a>,
        (bot, subject): (BotId, SubjectId),
        from: DateTime<Utc>,
    ) -> Self {
        let (actual, supposed) = (Side::default(), Side::default());
        Self { candidate, bot, subject, from, actual, supposed, turns: Vec::new() }
    }

    /// Messages in the order of their positions, and the whole stream of the standing.
    pub(super) fn run(mut self, heard: Vec<Heard>, facts: Vec<StandingEvent>, end: DateTime<Utc>) -> Fate {
        let scored: BTreeSet<TurnId> = facts
            .iter()
            .filter_map(|fact| match fact {
                StandingEvent::PointsScored { turn, .. } => Some(*turn),
                _ => None,
            })
            .collect();
        let (moving, still): (Vec<Heard>, Vec<Heard>) =
            heard.into_iter().partition(|one| one.judged.is_some() && scored.contains(&one.turn));
        let mut moving: BTreeMap<TurnId, Heard> = moving.into_iter().map(|one| (one.turn, one)).collect();
        // Those that moved nothing find their places among the facts by the clock.
        let mut still: VecDeque<Heard> = still.into();
        still.make_contiguous().sort_by_key(|one| (one.at, one.position));
        let mut facts = VecDeque::from(facts);
        let is_asked = |fact: &StandingEvent, moving: &BTreeMap<TurnId, Heard>| matches!(fact, StandingEvent::PointsScored { turn, .. } if moving.contains_key(turn));
        while let Some(fact) = facts.pop_front_if(|fact| moment(fact) < self.from && !is_asked(fact, &moving))
        {
            apply(&mut self.actual.standing, fact.clone());
            apply(&mut self.supposed.standing, fact);
        }
        self.actual.begin(self.from);
        self.supposed.begin(self.from);
        for fact in facts {
            let at = moment(&fact);
            if at >= end && !is_asked(&fact, &moving) {
                continue;
            }
            while let Some(one) = still.pop_front_if(|one| one.at <= at) {
                self.hear(one);
            }
            match &fact {
                StandingEvent::PointsScored { turn, .. } => match moving.remove(turn) {
                    Some(one) => self.score(one, at, Some(fact)),
                    None => self.keep(fact, at),
                },
                StandingEvent::WarningIssued { .. }
                | StandingEvent::Throttled { .. }
                | StandingEvent::TemporarilyBlocked { .. } => self.actual.apply(fact),
                StandingEvent::Blocked { cause, .. } if *cause != BlockCause::Moderator => {
                    self.actual.apply(fact);
                }
                _ => self.decided(fact, at),
            }
        }
        for one in still {
            self.hear(one);
        }
        Fate { before: self.actual.rungs(end), after: self.supposed.rungs(end), turns: self.turns }
    }

    /// A message that left nothing in the standing.
    fn hear(&mut self, one: Heard) {
        let at = one.at;
        if one.judged.is_some() {
            return self.score(one, at, None);
        }
        let after = match one.outcome {
            Outcome::Blocked => self.supposed.is_blocked(at),
            Outcome::Throttled => !self.supposed.is_free(at),
            // Refused for something else, or from before anything looked: the policy has no part in it.
            _ => return,
        };
        let before = match one.outcome {
            Outcome::Blocked => self.actual.is_blocked(at),
            _ => !self.actual.is_free(at),
        };
        let after = match (before, after) {
            (true, false) => Outcome::Unknown,
            (true, true) if self.supposed.is_blocked(at) && !self.actual.is_blocked(at) => Outcome::Blocked,
            _ => one.outcome,
        };
        self.tell(&one, after, Vec::new(), Vec::new());
    }

    /// A message that the detectors looked at; `fact` is what the standing holds of it.
    fn score(&mut self, one: Heard, at: DateTime<Utc>, fact: Option<StandingEvent>) {
        let Some(judged) = &one.judged else { return };
        let model_version = match &fact {
            Some(StandingEvent::PointsScored { model_version, .. }) => model_version.clone(),
            _ => String::new(),
        };
        let (bot, subject) = (self.bot, self.subject);
        let scoring = |judgement: &Judgement, rules: LadderConfig, dry_run: bool| {
            StandingCommand::Score(Box::new(Scoring {
                bot,
                subject,
                turn: one.turn,
                offences: judgement.offences.clone(),
                rules,
                policy_version: judged.policy.version,
                model_version: model_version.clone(),
                dry_run,
            }))
        };
        let recorded = judged.terms.judge(&judged.findings);
        let dry_run = judged.policy.dry_run;
        let (was_held, was_slow) = (self.actual.is_blocked(at), self.actual.is_slow(at));
        let offences_before = fact.as_ref().map(charged).unwrap_or_default();
        // Whom a list lets in is not scored, whatever was found: that stays so.
        let exempt = match fact {
            Some(fact) => {
                self.actual.apply(fact);
                false
            }
            None => {
                let command = scoring(&recorded, judged.terms.ladder(), dry_run);
                self.actual.standing.decide(command, at).is_ok_and(|facts| !facts.is_empty())
            }
        };
        let expected = match was_held {
            true => Outcome::Blocked,
            false => self.actual.conclude(&recorded, dry_run, one.hasty, at),
        };
        if exempt {
            return self.tell(&one, one.outcome, Vec::new(), Vec::new());
        }
        let (judgement, rules, dry_run) = match judged.fixed {
            true => (recorded, judged.terms.ladder(), dry_run),
            false => (
                self.candidate.judge(&judged.findings, &judged.terms),
                self.candidate.ladder.clone(),
                dry_run && !self.candidate.acts,
            ),
        };
        if one.outcome == Outcome::Throttled && was_slow && self.supposed.is_free(at) {
            // Nobody would have held it up, and then somebody would have read it.
            return self.tell(&one, Outcome::Unknown, offences_before, Vec::new());
        }
        let held = self.supposed.is_blocked(at);
        let offences_after = self.supposed.decide(scoring(&judgement, rules, dry_run), at);
        let supposed = match held {
            true => Outcome::Blocked,
            false => self.supposed.conclude(&judgement, dry_run, one.hasty, at),
        };
        // What the gate did beside the policy stands in the ledger only: it stays unless the policy moves.
        let after = if supposed == expected { one.outcome } else { supposed };
        self.tell(&one, after, offences_before, offences_after);
    }

    /// A scoring of a message that is not asked about: it is charged again with what it was charged with.
    fn keep(&mut self, fact: StandingEvent, at: DateTime<Utc>) {
        self.actual.apply(fact.clone());
        let StandingEvent::PointsScored {
            bot,
            subject,
            turn,
            offences,
            policy_version,
            model_version,
            dry_run,
            ..
        } = fact
        else {
            return;
        };
        let track = if dry_run { &self.actual.standing.trial } else { &self.actual.standing.live };
        let again = offences.into_iter().map(|one| Offence {
            kind: one.kind,
            oos_permille: one.oos_permille,
            intent: one.intent,
            evidence: one.evidence,
        });
        let scoring = Scoring {
            bot,
            subject,
            turn,
            offences: again.collect(),
            rules: track.rules(),
            policy_version,
            model_version,
            dry_run,
        };
        self.supposed.decide(StandingCommand::Score(Box::new(scoring)), at);
    }

    /// What people decided is decided again at its time; where there is nothing to decide it comes to
    /// nothing.
    fn decided(&mut self, fact: StandingEvent, at: DateTime<Utc>) {
        let command = match fact.clone() {
            StandingEvent::Blocked { bot, subject, by: Some(by), reason: Some(reason), until, .. } => {
                StandingCommand::Block { bot, subject, by, reason, until }
            }
            StandingEvent::Unblocked { by, reason, .. } => StandingCommand::Unblock { by, reason },
            StandingEvent::AppealFiled { turn, body, .. } => StandingCommand::FileAppeal { turn, body },
            StandingEvent::AppealGranted { by, reason, .. } => StandingCommand::GrantAppeal { by, reason },
            StandingEvent::AppealDenied { by, reason, .. } => StandingCommand::DenyAppeal { by, reason },
            StandingEvent::DecisionUndone { by, reason, decision, decided_at, .. }
                if self.took(decision, decided_at) =>
            {
                StandingCommand::Undo { by, reason }
            }
            _ => return self.actual.apply(fact),
        };
        self.actual.apply(fact);
        self.supposed.decide(command, at);
    }

    /// Whether a decision was taken on the supposed side as well, and is its last one.
    fn took(&self, kind: DecisionKind, decided_at: DateTime<Utc>) -> bool {
        let last = self.supposed.standing.last_decision.as_ref();
        last.is_some_and(|last| last.kind == kind && last.decided_at == decided_at)
    }

    fn tell(
        &mut self,
        one: &Heard,
        after: Outcome,
        offences_before: Vec<OffenceKind>,
        offences_after: Vec<OffenceKind>,
    ) {
        self.turns.push(TurnDifference {
            turn: one.turn,
            bot: self.bot,
            subject: self.subject,
            position: one.position,
            received_at: one.received_at,
            before: one.outcome,
            after,
            offences_before,
            offences_after,
        });
    }
}

#[cfg(test)]
mod tests;
