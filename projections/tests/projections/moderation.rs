//! The moderators' read models: what was scored, and what waits for a human.

use std::sync::Arc;

use botledger_domain::{
    BodyId, BodyRef, BotId, OperatorId, Position, Reason, SubjectId, TurnId,
    standing::{
        Evidence, Offence, Scoring, Standing, StandingCommand,
        ladder::{LadderConfig, OffenceKind},
    },
    standing_stream,
};
use botledger_journal::{AppendSet, Journal, Loaded};
use botledger_projections::{
    CaseFilter, CaseRow, ModerationProjection, Page, Projection, ScoringFilter, ScoringRow, StandingFilter,
    StandingsProjection, cases_page, scorings_page, standings_page, verify,
};
use chrono::{DateTime, TimeDelta, Utc};
use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, TestRunner},
};
use sqlx::PgPool;
use uuid::Uuid;

use crate::support::{Desk, fold, journal, metadata, noon, set_checkpoint};

/// One person with one bot, and the read models after everything that happened to them.
struct Stand {
    pool: PgPool,
    journal: Journal,
    standing: Loaded<Standing>,
    bot: BotId,
    subject: SubjectId,
    folded: Position,
}

fn reason(text: &str) -> Reason {
    Reason::parse(text).unwrap()
}

fn moderator() -> OperatorId {
    OperatorId(Uuid::from_u128(7))
}

fn turn(n: u128) -> TurnId {
    TurnId(Uuid::from_u128(n))
}

impl Stand {
    fn new(pool: &PgPool, person: u128) -> Self {
        let (bot, subject) = (BotId(Uuid::from_u128(3)), SubjectId(Uuid::from_u128(person)));
        Self {
            pool: pool.clone(),
            journal: journal(pool),
            standing: Loaded::empty(standing_stream(bot, subject).to_string()),
            bot,
            subject,
            folded: Position(0),
        }
    }

    async fn happens(&mut self, command: StandingCommand, at: DateTime<Utc>) {
        let mut set = AppendSet::new(metadata());
        set.decide(&mut self.standing, command, at).unwrap();
        self.journal.append(set).await.unwrap();
        let mut folded = self.folded;
        let projections: [Arc<dyn Projection>; 2] =
            [Arc::new(ModerationProjection), Arc::new(StandingsProjection)];
        for projection in projections {
            folded = fold(&self.pool, &projection, self.folded, &[]).await.unwrap();
        }
        self.folded = folded;
    }

    fn score(&self, n: u128, kinds: &[OffenceKind], dry_run: bool) -> StandingCommand {
        let evidence =
            vec![Evidence { detector: "spam".to_owned(), rule: "advert".to_owned(), spans: vec![(2, 5)] }];
        StandingCommand::Score(Box::new(Scoring {
            bot: self.bot,
            subject: self.subject,
            turn: turn(n),
            offences: kinds
                .iter()
                .map(|kind| Offence {
                    kind: *kind,
                    oos_permille: None,
                    intent: None,
                    evidence: evidence.clone(),
                })
                .collect(),
            rules: LadderConfig::default(),
            policy_version: 4,
            model_version: "c0ffee".to_owned(),
            dry_run,
        }))
    }

    async fn cases(&self) -> Vec<CaseRow> {
        let filter = CaseFilter {
            bots: vec![self.bot.uuid()],
            subject: Some(self.subject.uuid()),
            kinds: None,
            statuses: None,
            now: noon(),
        };
        cases_page(&self.pool, &filter, Page::oldest(100)).await.unwrap()
    }

    /// Kind, status and decision of each case, oldest first.
    async fn told(&self) -> Vec<(String, String, Option<String>)> {
        self.cases().await.into_iter().map(|case| (case.kind, case.status, case.decision)).collect()
    }

    async fn scorings(&self, filter: ScoringFilter) -> Vec<ScoringRow> {
        scorings_page(&self.pool, &filter, Page::oldest(100)).await.unwrap()
    }
}

fn case(kind: &str, status: &str, decision: Option<&str>) -> (String, String, Option<String>) {
    (kind.to_owned(), status.to_owned(), decision.map(str::to_owned))
}

#[sqlx::test(migrations = "../migrations")]
async fn a_severe_block_waits_for_a_human_and_an_appeal_against_it_too(pool: PgPool) {
    let mut stand = Stand::new(&pool, 5);
    stand.happens(stand.score(1, &[OffenceKind::CategorySevere], false), noon()).await;
    let body = BodyRef { body_id: BodyId(Uuid::from_u128(9)), bytes: 3, ciphertext_sha256: "cd".repeat(32) };
    stand.happens(StandingCommand::FileAppeal { turn: turn(2), body: Some(body) }, noon()).await;
    let cases = stand.cases().await;
    assert_eq!(stand.told().await, [case("severe_block", "open", None), case("appeal", "open", None)]);
    assert_eq!((cases[0].turn_id, cases[0].score), (turn(1).uuid(), Some(100_000)));
    assert_eq!((cases[1].turn_id, cases[1].appeal_body), (turn(2).uuid(), Some(Uuid::from_u128(9))));
    assert_eq!((cases[1].against.as_str(), cases[1].cause.as_deref()), ("blocked", Some("severe")));

    let by = moderator();
    // Not a whole microsecond: the ledger keeps it, the row does not.
    let decided_at = noon() + TimeDelta::nanoseconds(1_999);
    stand.happens(StandingCommand::DenyAppeal { by, reason: reason("no") }, decided_at).await;
    let denied = [case("severe_block", "decided", Some("upheld")), case("appeal", "decided", Some("denied"))];
    assert_eq!(stand.told().await, denied);
    stand.happens(StandingCommand::Undo { by, reason: reason("too fast") }, noon()).await;
    let undone = [case("severe_block", "undone", Some("upheld")), case("appeal", "undone", Some("denied"))];
    assert_eq!(stand.told().await, undone);
    assert_eq!(stand.cases().await[1].reason.as_deref(), Some("too fast"));
    stand.happens(StandingCommand::GrantAppeal { by, reason: None }, noon()).await;
    let granted =
        [case("severe_block", "decided", Some("lifted")), case("appeal", "decided", Some("granted"))];
    assert_eq!(stand.told().await, granted);
    let last = &stand.cases().await[1];
    assert_eq!((last.decided_by, last.decided_at), (Some(by.uuid()), Some(noon())));
}

#[sqlx::test(migrations = "../migrations")]
async fn a_case_about_a_block_for_a_while_lapses_with_the_block(pool: PgPool) {
    let mut stand = Stand::new(&pool, 5);
    stand.happens(stand.score(1, &[OffenceKind::Spam; 4], false), noon()).await;
    let found = stand.cases().await;
    let ends = noon() + TimeDelta::minutes(15);
    assert_eq!((found[0].kind.as_str(), found[0].until), ("temp_block", Some(ends)));
    assert_eq!(
        (found[0].status_at(ends - TimeDelta::seconds(1)), found[0].status_at(ends)),
        ("open", "lapsed")
    );
    for (now, status) in [(noon(), "open"), (ends, "lapsed")] {
        let filter = CaseFilter {
            bots: vec![stand.bot.uuid()],
            subject: None,
            kinds: Some(vec!["temp_block".to_owned()]),
            statuses: Some(vec![status.to_owned()]),
            now,
        };
        assert_eq!(cases_page(&pool, &filter, Page::newest(10)).await.unwrap().len(), 1, "{status}");
    }
    // A decision about something later does not decide what was over.
    let by = moderator();
    let block = StandingCommand::Block {
        bot: stand.bot,
        subject: stand.subject,
        by,
        reason: reason("spam"),
        until: None,
    };
    stand.happens(block, ends).await;
    assert_eq!(stand.told().await, [case("temp_block", "open", None)]);
}

#[sqlx::test(migrations = "../migrations")]
async fn a_moderators_decision_closes_the_cases_it_answers(pool: PgPool) {
    let by = moderator();
    let mut upheld = Stand::new(&pool, 5);
    upheld.happens(upheld.score(1, &[OffenceKind::CategorySevere], false), noon()).await;
    let (bot, subject) = (upheld.bot, upheld.subject);
    let block = StandingCommand::Block { bot, subject, by, reason: reason("rightly"), until: None };
    upheld.happens(block, noon()).await;
    assert_eq!(upheld.told().await, [case("severe_block", "decided", Some("upheld"))]);

    let mut lifted = Stand::new(&pool, 6);
    lifted.folded = upheld.folded;
    lifted.happens(lifted.score(2, &[OffenceKind::Spam; 4], false), noon()).await;
    lifted.happens(StandingCommand::FileAppeal { turn: turn(3), body: None }, noon()).await;
    lifted.happens(StandingCommand::Unblock { by, reason: reason("well") }, noon()).await;
    let both = [case("temp_block", "decided", Some("lifted")), case("appeal", "decided", Some("granted"))];
    assert_eq!(lifted.told().await, both);
}

#[sqlx::test(migrations = "../migrations")]
async fn a_trial_is_scored_and_opens_no_case(pool: PgPool) {
    let mut stand = Stand::new(&pool, 5);
    stand.happens(stand.score(1, &[OffenceKind::CategorySevere, OffenceKind::Spam], true), noon()).await;
    assert!(stand.cases().await.is_empty());
    let rows = stand.scorings(ScoringFilter { dry_run: Some(true), ..ScoringFilter::default() }).await;
    assert_eq!((rows[0].state_after.as_str(), rows[0].points), ("blocked", 100_000));
    assert!(
        stand.scorings(ScoringFilter { dry_run: Some(false), ..ScoringFilter::default() }).await.is_empty()
    );
}

#[sqlx::test(migrations = "../migrations")]
async fn a_scoring_keeps_what_it_rests_on(pool: PgPool) {
    let mut stand = Stand::new(&pool, 5);
    stand.happens(stand.score(1, &[OffenceKind::Flood, OffenceKind::Spam], false), noon()).await;
    stand.happens(stand.score(2, &[], false), noon()).await;
    let rows = stand.scorings(ScoringFilter::default()).await;
    assert_eq!(rows.len(), 2);
    let first = &rows[0];
    assert_eq!(
        (first.kinds.as_slice(), first.points),
        (&["flood".to_owned(), "spam".to_owned()][..], 25_000)
    );
    assert_eq!(first.offences[1]["evidence"][0]["spans"], serde_json::json!([[2, 5]]));
    assert_eq!((first.drift_before, first.drift_after, first.violation_after), (0, 5_000, 20_000));
    assert_eq!((first.policy_version, first.model_version.as_str()), (4, "c0ffee"));
    assert_eq!((rows[1].kinds.len(), rows[1].drift_after, rows[1].violation_after), (0, 4_000, 19_950));
    let offending = ScoringFilter { offending: Some(true), ..ScoringFilter::default() };
    assert_eq!(stand.scorings(offending).await.len(), 1);
    let of_turn = ScoringFilter { turn: Some(turn(2).uuid()), ..ScoringFilter::default() };
    assert_eq!(stand.scorings(of_turn).await[0], rows[1]);
}

#[sqlx::test(migrations = "../migrations")]
async fn cases_and_scorings_made_again_are_the_same(pool: PgPool) {
    let mut runner = TestRunner::new(Config::default());
    let script = prop::collection::vec(any::<(u8, u8)>(), 500).new_tree(&mut runner).unwrap().current();
    let mut desk = Desk::new();
    desk.play(&script.iter().map(|(a, b)| (5, *a, *b)).collect::<Vec<_>>());
    desk.commit(&journal(&pool)).await;
    let moderation: Arc<dyn Projection> = Arc::new(ModerationProjection);
    // One event a page to begin with, as they come when little happens.
    let pages: Vec<usize> = (0..200).map(|_| 1).chain([50, 3]).collect();
    let head = fold(&pool, &moderation, Position(0), &pages).await.unwrap();
    set_checkpoint(&pool, moderation.name(), head).await;
    let report = verify(&pool, &moderation, |_| {}).await.unwrap();
    assert_eq!(report.different, 0, "{script:?}: {:?}", report.differences);
    let statuses: Vec<String> = sqlx::query_scalar("SELECT DISTINCT status FROM moderation_cases ORDER BY 1")
        .fetch_all(&pool)
        .await
        .unwrap();
    assert!(report.rows > 50 && statuses.len() > 1, "the script makes cases and decides them: {statuses:?}");
}

#[sqlx::test(migrations = "../migrations")]
async fn standings_are_found_by_state(pool: PgPool) {
    let mut warned = Stand::new(&pool, 5);
    warned.happens(warned.score(1, &[OffenceKind::InjectionConfident], false), noon()).await;
    let mut blocked = Stand::new(&pool, 6);
    blocked.folded = warned.folded;
    let (bot, subject, by) = (blocked.bot, blocked.subject, moderator());
    let block = StandingCommand::Block { bot, subject, by, reason: reason("spam"), until: None };
    blocked.happens(block, noon()).await;
    let mut appealing = Stand::new(&pool, 7);
    appealing.folded = blocked.folded;
    appealing.happens(appealing.score(1, &[OffenceKind::Spam; 4], false), noon()).await;
    appealing.happens(StandingCommand::FileAppeal { turn: turn(9), body: None }, noon()).await;

    let found = async |filter: StandingFilter| -> Vec<u128> {
        let filter = StandingFilter { bots: vec![bot.uuid()], ..filter };
        let rows = standings_page(&pool, &filter, Page::oldest(10)).await.unwrap();
        rows.iter().map(|row| row.subject.as_u128()).collect()
    };
    let states = |states: &[&str]| StandingFilter {
        states: Some(states.iter().map(|state| (*state).to_owned()).collect()),
        ..StandingFilter::default()
    };
    assert_eq!(found(states(&["warned"])).await, [5]);
    assert_eq!(found(states(&["blocked", "temp_blocked"])).await, [6, 7]);
    assert_eq!(found(StandingFilter { blocked: Some(true), ..StandingFilter::default() }).await, [6, 7]);
    assert_eq!(found(StandingFilter { appealing: Some(true), ..StandingFilter::default() }).await, [7]);
}
