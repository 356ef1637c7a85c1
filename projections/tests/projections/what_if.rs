//! What would have come of recorded messages, from the ledger to the report.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use botledger_domain::{
    BodyId, BodyRef, BotId, ConversationId, Language, OperatorId, Position, Reason, SubjectId, TurnId,
    WorkspaceId,
    policy::{Policy, PolicyCommand, PolicyMode, PolicyOwner, PolicyRef, PolicyTerms, Refusal, Response},
    policy_stream,
    signal::{Detector, Findings, Signal, SignalLevel},
    standing::{
        Scoring, Standing, StandingCommand, Verdict,
        ladder::{LadderState, OffenceKind, Preset},
    },
    standing_stream,
    turn::{Ask, ChatKind, Lane, Message, RefusalReason, Turn, TurnCommand},
};
use botledger_journal::{AppendSet, Journal, Loaded};
use botledger_projections::{
    Limit, Outcome, PoliciesProjection, Projection, Saved, Sums, TurnsProjection, WhatIf, WhatIfError,
    WhatIfReport, policy_what_if, what_if,
};
use chrono::{DateTime, TimeDelta, Utc};
use sqlx::{
    PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use uuid::Uuid;

use crate::support::{fold, journal, metadata, noon, set_checkpoint};

const WORKSPACE: WorkspaceId = WorkspaceId(Uuid::from_u128(1));
const SHOP: BotId = BotId(Uuid::from_u128(2));
const BANK: BotId = BotId(Uuid::from_u128(3));

fn person(n: u128) -> SubjectId {
    SubjectId(Uuid::from_u128(100 + n))
}

fn spam() -> Findings {
    let signal = Signal {
        detector: Detector::Spam,
        rule: "advert".to_owned(),
        level: SignalLevel::Confident,
        score_permille: 950,
        spans: vec![],
    };
    Findings { signals: vec![signal], ..Findings::default() }
}

/// The gate's part of the ledger.
struct Street {
    pool: PgPool,
    journal: Journal,
    now: DateTime<Utc>,
    turns: u128,
    policies: BTreeMap<Option<BotId>, Loaded<Policy>>,
    standings: BTreeMap<(BotId, SubjectId), Loaded<Standing>>,
}

impl Street {
    fn new(pool: &PgPool) -> Self {
        Self {
            pool: pool.clone(),
            journal: journal(pool),
            now: noon(),
            turns: 0,
            policies: BTreeMap::new(),
            standings: BTreeMap::new(),
        }
    }

    async fn publishes(&mut self, bot: Option<BotId>, terms: PolicyTerms, mode: PolicyMode) {
        let policy = self
            .policies
            .entry(bot)
            .or_insert_with(|| Loaded::empty(policy_stream(WORKSPACE, bot).to_string()));
        let terms = Box::new(terms);
        let command = PolicyCommand::Publish { workspace: WORKSPACE, bot, terms, mode, note: None, by: None };
        let mut set = AppendSet::new(metadata());
        set.decide(policy, command, self.now).unwrap();
        self.journal.append(set).await.unwrap();
    }

    fn effective(&self, bot: BotId) -> (PolicyRef, PolicyTerms) {
        for (owner, bot) in [(PolicyOwner::Bot, Some(bot)), (PolicyOwner::Workspace, None)] {
            if let Some(current) = self.policies.get(&bot).and_then(|policy| policy.state.current.clone()) {
                let dry_run = current.trial.is_dry_run(self.now);
                return (PolicyRef { owner, version: current.version, dry_run }, current.terms);
            }
        }
        (PolicyRef { dry_run: true, ..PolicyRef::default() }, PolicyTerms::default())
    }

    /// A message as the gate records it; tells why it was refused.
    async fn writes(&mut self, bot: BotId, subject: SubjectId, findings: Findings) -> Option<&'static str> {
        self.turns += 1;
        self.now += TimeDelta::seconds(1);
        let now = self.now;
        let id = TurnId(Uuid::from_u128(10_000 + self.turns));
        let (policy, terms) = self.effective(bot);
        let standing = self
            .standings
            .entry((bot, subject))
            .or_insert_with(|| Loaded::empty(standing_stream(bot, subject).to_string()));
        let mut turn = Loaded::<Turn>::empty(id.to_string());
        let mut set = AppendSet::new(metadata());
        let message = Message {
            workspace: WORKSPACE,
            bot,
            subject,
            conversation: ConversationId::of_chat(bot, subject.uuid(), None),
            update_id: self.turns as i64,
            chat_kind: ChatKind::Private,
            ask: Ask::Text,
            lane: Lane::Normal,
            body: BodyRef { body_id: BodyId(Uuid::now_v7()), bytes: 3, ciphertext_sha256: "cd".repeat(32) },
            language: Language::Ru,
            sent_at: now,
        };
        set.decide(&mut turn, TurnCommand::Receive(message), now).unwrap();
        let blocked = |standing: &Loaded<Standing>| {
            matches!(standing.state.verdict_at(now), Verdict::Blocked(_))
                .then_some(RefusalReason::TemporarilyBlocked { until: now })
        };
        let mut refusal = blocked(standing);
        if refusal.is_none() {
            let judgement = terms.judge(&findings);
            set.decide(&mut turn, TurnCommand::Score { policy, findings }, now).unwrap();
            let scoring = Scoring {
                bot,
                subject,
                turn: id,
                offences: judgement.offences,
                rules: terms.ladder(),
                policy_version: policy.version,
                model_version: String::new(),
                dry_run: policy.dry_run,
            };
            set.decide(standing, StandingCommand::Score(Box::new(scoring)), now).unwrap();
            refusal = match judgement.refusal {
                Some(Refusal::Content { detector, rule }) if !policy.dry_run => {
                    Some(RefusalReason::Content { detector, rule })
                }
                _ => blocked(standing),
            };
        }
        if let Some(reason) = refusal.clone() {
            set.decide(&mut turn, TurnCommand::Refuse { reason, notify: false, notices: vec![] }, now)
                .unwrap();
        }
        self.journal.append(set).await.unwrap();
        refusal.as_ref().map(Into::into)
    }

    async fn moderated(&mut self, bot: BotId, subject: SubjectId, command: StandingCommand) {
        let mut set = AppendSet::new(metadata());
        let standing = self.standings.get_mut(&(bot, subject)).unwrap();
        set.decide(standing, command, self.now).unwrap();
        self.journal.append(set).await.unwrap();
    }

    async fn fold(&self) {
        let projections: [Arc<dyn Projection>; 2] = [Arc::new(TurnsProjection), Arc::new(PoliciesProjection)];
        for projection in projections {
            let at = fold(&self.pool, &projection, Position(0), &[]).await.unwrap();
            set_checkpoint(&self.pool, projection.name(), at).await;
        }
    }

    fn question(&self, bot: Option<BotId>, terms: PolicyTerms) -> WhatIf {
        let (from, until) = (noon(), self.now + TimeDelta::seconds(1));
        WhatIf { workspace: WORKSPACE, bot, from, until, terms, acts: false }
    }

    async fn ask(&self, question: &WhatIf) -> WhatIfReport {
        what_if(&self.pool, question).await.unwrap()
    }
}

fn messages(sums: &Sums) -> Vec<(Outcome, u64)> {
    sums.messages.iter().map(|(outcome, count)| (*outcome, *count)).collect()
}

fn mild() -> PolicyTerms {
    PolicyTerms { spam: Response::Score, ..PolicyTerms::default() }
}

#[sqlx::test(migrations = "../migrations")]
async fn what_is_in_force_changes_nothing_and_nothing_is_written(pool: PgPool) {
    let mut street = Street::new(&pool);
    street.publishes(Some(SHOP), mild(), PolicyMode::Live).await;
    for n in 0..4 {
        assert_eq!(street.writes(SHOP, person(n % 2), spam()).await, None);
    }
    street.publishes(Some(SHOP), PolicyTerms::default(), PolicyMode::Live).await;
    assert_eq!(street.writes(SHOP, person(0), spam()).await, Some("content"));
    street.fold().await;
    let before: i64 = sqlx::query_scalar("SELECT count(*) FROM events").fetch_one(&pool).await.unwrap();
    // Since the second version.
    let question = WhatIf { from: street.now, ..street.question(Some(SHOP), PolicyTerms::default()) };
    let report = street.ask(&question).await;
    assert_eq!((report.judged, report.not_looked_at, report.position), (1, 0, Position(before)));
    assert_eq!((report.before, report.turns, report.people), (report.after, vec![], vec![]));
    // All of the time.
    let report = street.ask(&street.question(Some(SHOP), PolicyTerms::default())).await;
    assert_eq!(messages(&report.before), [(Outcome::Passed, 4), (Outcome::Content, 1)]);
    assert_eq!(messages(&report.after), [(Outcome::Content, 5)]);
    assert_eq!(report.turns.len(), 4, "the fifth was refused anyway");
    assert_eq!(report.before.offences, BTreeMap::from([(OffenceKind::Spam, 5)]));
    assert_eq!(report.people, [], "their points are the same");
    let after: i64 = sqlx::query_scalar("SELECT count(*) FROM events").fetch_one(&pool).await.unwrap();
    assert_eq!(before, after);
}

#[sqlx::test(migrations = "../migrations")]
async fn messages_and_people_that_fare_differently_are_named(pool: PgPool) {
    let mut street = Street::new(&pool);
    street.publishes(Some(SHOP), mild(), PolicyMode::Live).await;
    for n in [0, 1, 0, 0, 1, 0] {
        street.writes(SHOP, person(n), spam()).await;
    }
    let by = OperatorId(Uuid::nil());
    let unblock = StandingCommand::Unblock { by, reason: Reason::parse("he is new").unwrap() };
    street.moderated(SHOP, person(0), unblock).await;
    assert_eq!(street.writes(SHOP, person(0), Findings::default()).await, None);
    street.fold().await;
    let strict = PolicyTerms { preset: Preset::Strict, ..mild() };
    let report = street.ask(&street.question(Some(SHOP), strict)).await;
    assert_eq!(messages(&report.before), [(Outcome::Passed, 6), (Outcome::Blocked, 1)]);
    // Twenty points a message: 56 block already, the third of the first person.
    assert_eq!(messages(&report.after), [(Outcome::Passed, 5), (Outcome::Blocked, 2)]);
    let [changed, last] = report.turns.as_slice() else { panic!("{:?}", report.turns) };
    assert_eq!(
        (changed.subject, changed.before, changed.after),
        (person(0), Outcome::Passed, Outcome::Blocked)
    );
    // Blocked before it was looked at, it costs nothing.
    assert_eq!((last.before, last.after), (Outcome::Blocked, Outcome::Blocked));
    assert_eq!(
        (last.offences_before.as_slice(), last.offences_after.as_slice()),
        (&[OffenceKind::Spam][..], &[][..])
    );
    let [other] = report.people.as_slice() else { panic!("{:?}", report.people) };
    assert_eq!((other.subject, other.before.highest), (person(1), LadderState::Warned));
    assert_eq!(other.after.highest, LadderState::Throttled);
    assert_eq!(report.before.people[&LadderState::TempBlocked], 1);
    assert_eq!(report.limits, BTreeMap::new());
    let again =
        street.ask(&street.question(Some(SHOP), PolicyTerms { preset: Preset::Strict, ..mild() })).await;
    assert_eq!(again, report);
}

#[sqlx::test(migrations = "../migrations")]
async fn a_workspaces_policy_is_not_for_bots_that_have_their_own(pool: PgPool) {
    let mut street = Street::new(&pool);
    street.publishes(Some(BANK), PolicyTerms::default(), PolicyMode::Live).await;
    street.writes(BANK, person(0), spam()).await;
    // Nobody published one for the shop yet, then the workspace does.
    street.writes(SHOP, person(0), spam()).await;
    street.publishes(None, mild(), PolicyMode::DryRun { until: None }).await;
    street.writes(SHOP, person(0), spam()).await;
    street.fold().await;
    let mut question = street.question(None, PolicyTerms { intents: vec![], ..PolicyTerms::default() });
    let report = street.ask(&question).await;
    assert_eq!((report.judged, report.of_other_policies), (2, 1));
    assert_eq!(report.turns, [], "they only watched, and so would these terms");
    question.acts = true;
    let report = street.ask(&question).await;
    assert_eq!(messages(&report.before), [(Outcome::Passed, 2), (Outcome::Content, 1)]);
    assert_eq!(messages(&report.after), [(Outcome::Content, 3)]);
    assert!(report.turns.iter().all(|turn| turn.bot == SHOP && turn.after == Outcome::Content));
    // Asked about the bot itself, its own policy is the one that is tried.
    let report = street.ask(&street.question(Some(BANK), mild())).await;
    assert_eq!((report.judged, messages(&report.after)), (1, vec![(Outcome::Passed, 1)]));
    let foreign = WhatIf { workspace: WorkspaceId(Uuid::from_u128(9)), ..question };
    let report = street.ask(&foreign).await;
    assert_eq!((report.judged, report.of_other_policies, report.not_looked_at), (0, 0, 0));
}

#[sqlx::test(migrations = "../migrations")]
async fn what_cannot_be_told_is_counted_and_what_is_not_there_yet_is_waited_for(pool: PgPool) {
    let mut street = Street::new(&pool);
    street.publishes(Some(SHOP), mild(), PolicyMode::Live).await;
    street.writes(SHOP, person(0), spam()).await;
    let turns: Arc<dyn Projection> = Arc::new(TurnsProjection);
    let at = fold(&pool, &turns, Position(0), &[]).await.unwrap();
    set_checkpoint(&pool, "turns", at).await;
    let question = street.question(Some(SHOP), mild());
    assert!(matches!(what_if(&pool, &question).await, Err(WhatIfError::Late)));
    street.fold().await;
    let intent = botledger_domain::policy::Intent {
        name: "orders".to_owned(),
        examples: ["one", "two", "three"].map(str::to_owned).to_vec(),
    };
    let terms = PolicyTerms { intents: vec![intent], ..mild() };
    let report = street.ask(&WhatIf { terms, ..question.clone() }).await;
    assert_eq!(report.limits, BTreeMap::from([(Limit::Intents, 1)]));
    let backwards = WhatIf { until: question.from, ..question.clone() };
    assert!(matches!(what_if(&pool, &backwards).await, Err(WhatIfError::Backwards)));
    let later = WhatIf {
        from: street.now + TimeDelta::seconds(1),
        until: street.now + TimeDelta::days(1),
        ..question
    };
    assert_eq!(street.ask(&later).await.judged, 0);
}

#[sqlx::test(migrations = "../migrations")]
async fn an_interrupted_answer_goes_on_and_what_came_later_changes_nothing(pool: PgPool) {
    let mut street = Street::new(&pool);
    street.publishes(Some(SHOP), mild(), PolicyMode::Live).await;
    for n in 0..210 {
        street.writes(SHOP, person(n), spam()).await;
    }
    street.fold().await;
    let question = WhatIf {
        until: street.now + TimeDelta::days(1),
        ..street.question(Some(SHOP), PolicyTerms::default())
    };
    let mut kept = Vec::new();
    let whole = policy_what_if(&pool, &question, None, |saved, people| {
        assert_eq!(people, 210);
        kept.push(serde_json::to_string(saved).unwrap());
    })
    .await
    .unwrap();
    assert_eq!((whole.judged, whole.turns.len(), kept.len()), (210, 210, 2));
    assert_eq!(whole, street.ask(&question).await);

    // More is written, also by people who are in the answer already, and a turn of it goes on.
    street.writes(SHOP, person(3), spam()).await;
    street.writes(SHOP, person(209), spam()).await;
    street.fold().await;
    // Turns that went on since are told as they were, and one connection is enough for that.
    sqlx::query(
        "UPDATE turns SET updated_position = updated_position + 1000000, refusal_kind = 'blocked'
         WHERE created_position <= $1",
    )
    .bind(whole.position.0)
    .execute(&pool)
    .await
    .unwrap();
    let one = PgPoolOptions::new().max_connections(1).acquire_timeout(Duration::from_secs(5));
    let one = one.connect_with(PgConnectOptions::clone(&pool.connect_options())).await.unwrap();
    for saved in kept {
        let saved: Saved<WhatIfReport> = serde_json::from_str(&saved).unwrap();
        assert_eq!(policy_what_if(&one, &question, Some(saved), |_, _| {}).await.unwrap(), whole);
    }
    one.close().await;
    assert_eq!(street.ask(&question).await.judged, 212);
}
