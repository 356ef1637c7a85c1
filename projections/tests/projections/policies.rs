//! Policies and what they judged: given events, then rows, then the same rows of then.

use std::sync::Arc;

use botledger_domain::{
    BotId, OperatorId, Position, Reason, WorkspaceId,
    policy::{Policy, PolicyCommand, PolicyMode, Trial},
    policy_stream,
};
use botledger_journal::{AppendSet, Journal, Loaded};
use botledger_projections::{
    Page, PoliciesProjection, PolicyVersionFilter, PolicyVersionRow, Projection, TurnFilter, TurnsProjection,
    policy, policy_as_of, policy_terms, policy_versions_by_ids, policy_versions_page, turns_page, verify,
};
use chrono::{DateTime, TimeDelta, Utc};
use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, TestRunner},
};
use sqlx::PgPool;
use uuid::Uuid;

use crate::support::{Desk, Step, fold, id, journal, metadata, noon, policy_terms as terms, set_checkpoint};

fn reason(text: &str) -> Reason {
    Reason::parse(text).unwrap()
}

/// A policy and its moments.
struct Owner {
    journal: Journal,
    workspace: WorkspaceId,
    bot: Option<BotId>,
    policy: Loaded<Policy>,
}

impl Owner {
    fn new(pool: &PgPool, workspace: WorkspaceId, bot: Option<BotId>) -> Self {
        let policy = Loaded::empty(policy_stream(workspace, bot).to_string());
        Self { journal: journal(pool), workspace, bot, policy }
    }

    async fn does(&mut self, command: PolicyCommand, at: DateTime<Utc>) -> Position {
        let mut set = AppendSet::new(metadata());
        set.decide(&mut self.policy, command, at).unwrap();
        self.journal.append(set).await.unwrap().position
    }

    async fn publishes(&mut self, n: u8, mode: PolicyMode, at: DateTime<Utc>) -> Position {
        let command = PolicyCommand::Publish {
            workspace: self.workspace,
            bot: self.bot,
            terms: Box::new(terms(n)),
            mode,
            note: Some(reason(&format!("try {n}"))),
            by: Some(OperatorId(Uuid::from_u128(7))),
        };
        self.does(command, at).await
    }
}

async fn folded(pool: &PgPool) -> Position {
    let projection: Arc<dyn Projection> = Arc::new(PoliciesProjection);
    let head = fold(pool, &projection, Position(0), &[1, 2]).await.unwrap();
    set_checkpoint(pool, projection.name(), head).await;
    assert_eq!(verify(pool, &projection, |_| {}).await.unwrap().different, 0);
    head
}

#[sqlx::test(migrations = "../migrations")]
async fn a_version_ends_when_it_is_replaced_or_withdrawn_and_says_the_same_for_ever(pool: PgPool) {
    let workspace = WorkspaceId(Uuid::now_v7());
    let bot = BotId(Uuid::now_v7());
    let mut owner = Owner::new(&pool, workspace, Some(bot));
    let at = |minutes| noon() + TimeDelta::minutes(minutes);
    let first = owner.publishes(1, PolicyMode::Keep, at(0)).await;
    let second = owner.publishes(2, PolicyMode::Live, at(1)).await;
    let gone = PolicyCommand::Withdraw { reason: reason("a mistake"), by: None };
    let third = owner.does(gone, at(2)).await;
    let fourth = owner.publishes(1, PolicyMode::DryRun { until: None }, at(3)).await;
    let mut other = Owner::new(&pool, workspace, None);
    other.publishes(9, PolicyMode::Live, at(4)).await;
    let mut foreign = Owner::new(&pool, WorkspaceId(Uuid::now_v7()), None);
    foreign.publishes(9, PolicyMode::Live, at(5)).await;
    folded(&pool).await;

    let row = policy(&pool, workspace, Some(bot)).await.unwrap().unwrap();
    assert_eq!((row.version, row.last_version, row.changed_at), (Some(3), 3, at(3)));
    assert_eq!((row.created_position, row.updated_position), (first.0, fourth.0));
    let page = async |filter: PolicyVersionFilter| {
        let rows = policy_versions_page(&pool, workspace, &filter, Page::newest(10)).await.unwrap();
        rows.into_iter().map(|row| (row.bot_id, row.version)).collect::<Vec<_>>()
    };
    let of_bot = |version| (Some(bot.uuid()), version);
    let own = PolicyVersionFilter { policy: Some(row.policy_id), in_force: None };
    assert_eq!(page(own.clone()).await, [of_bot(3), of_bot(2), of_bot(1)]);
    assert_eq!(page(PolicyVersionFilter { in_force: Some(false), ..own }).await, [of_bot(2), of_bot(1)]);
    let in_force = PolicyVersionFilter { policy: None, in_force: Some(true) };
    assert_eq!(page(in_force).await, [(None, 1), of_bot(3)]);

    let ids: Vec<_> = (0..5).map(|version| (row.policy_id, version)).collect();
    let mut versions = policy_versions_by_ids(&pool, &ids).await.unwrap();
    versions.sort_by_key(|row| row.version);
    let [one, two, three] = <[PolicyVersionRow; 3]>::try_from(versions).unwrap();
    assert_eq!(one.trial(), Trial::DryRun { until: Some(at(7 * 24 * 60)) });
    assert_eq!((one.ended_at, one.withdrawn, one.note.as_deref()), (Some(at(1)), false, Some("try 1")));
    assert_eq!((two.trial(), two.ended_at, two.withdrawn), (Trial::Live, Some(at(2)), true));
    assert_eq!((two.withdrawal_reason.as_deref(), two.withdrawn_by), (Some("a mistake"), None));
    assert_eq!((two.created_position, two.updated_position), (second.0, third.0));
    assert_eq!((three.trial(), three.ended_at), (Trial::DryRun { until: None }, None));
    for (version, n) in [(1, 1), (2, 2), (3, 1)] {
        assert_eq!(policy_terms(&pool, row.policy_id, version).await.unwrap(), Some(terms(n)));
    }
    assert_eq!(policy_terms(&pool, row.policy_id, 4).await.unwrap(), None);

    let then = async |upto| policy_as_of(&pool, workspace, Some(bot), upto).await.unwrap();
    assert_eq!(then(Position(first.0 - 1)).await, None);
    let (policy_then, version_then) = then(second).await.unwrap();
    assert_eq!(policy_then.version, Some(2));
    assert_eq!(version_then.map(|row| (row.version, row.ended_at)), Some((2, None)));
    let (policy_then, version_then) = then(third).await.unwrap();
    assert_eq!((policy_then.version, policy_then.last_version, version_then), (None, 2, None));
    assert_eq!(then(fourth).await.unwrap(), (row, Some(three)));
}

/// A script of little but policies and messages.
fn script(steps: usize) -> Vec<Step> {
    let mut runner = TestRunner::new(Config::default());
    let step = (prop_oneof![Just(15u8), 7..15u8], any::<u8>(), any::<u8>());
    prop::collection::vec(step, steps).new_tree(&mut runner).unwrap().current()
}

#[sqlx::test(migrations = "../migrations")]
async fn whatever_was_published_and_withdrawn_the_rows_say_what_the_policies_say(pool: PgPool) {
    let script = script(300);
    let mut desk = Desk::new();
    desk.play(&script);
    let head = desk.commit(&journal(&pool)).await;
    folded(&pool).await;
    for (owner, loaded) in &desk.policies {
        let bot: Option<BotId> = owner.map(|bot| id(&desk.bots[bot]));
        let row = policy(&pool, desk.workspace_id(), bot).await.unwrap();
        if loaded.version == 0 {
            assert_eq!(row, None);
            continue;
        }
        let (row, state) = (row.unwrap(), &loaded.state);
        let current = state.current.as_ref();
        assert_eq!(row.version, current.map(|current| i64::from(current.version)), "{script:?}");
        assert_eq!(row.last_version, i64::from(state.last_version));
        let (as_of, version) = policy_as_of(&pool, desk.workspace_id(), bot, head).await.unwrap().unwrap();
        assert_eq!(as_of, row);
        assert_eq!(version.as_ref().map(PolicyVersionRow::trial), current.map(|current| current.trial));
        if let (Some(version), Some(current)) = (version, current) {
            let terms = policy_terms(&pool, row.policy_id, version.version).await.unwrap();
            assert_eq!(terms.as_ref(), Some(&current.terms));
        }
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn turns_are_found_by_what_was_seen_in_them_and_who_judged_it(pool: PgPool) {
    let mut desk = Desk::new();
    // Messages, and half of what becomes of them is that something looks at them.
    let script: Vec<Step> = script(600)
        .into_iter()
        .map(|(kind, a, b)| if kind > 11 { (10, a, b % 25 * 10 + 9) } else { (kind, a, b) })
        .collect();
    desk.play(&script);
    desk.commit(&journal(&pool)).await;
    let projection: Arc<dyn Projection> = Arc::new(TurnsProjection);
    fold(&pool, &projection, Position(0), &[17]).await.unwrap();
    let all = turns_page(&pool, &TurnFilter::default(), Page::newest(1_000)).await.unwrap();
    let scored = all.iter().filter(|row| row.scored_at.is_some()).count();
    assert!(scored > 10 && scored < all.len());
    let count =
        async |filter: TurnFilter| turns_page(&pool, &filter, Page::newest(1_000)).await.unwrap().len();
    let expected =
        |holds: &dyn Fn(&botledger_projections::TurnRow) -> bool| all.iter().filter(|row| holds(row)).count();
    let some = |name: &str| Some(vec![name.to_owned()]);
    for detector in ["attack", "spam", "blocked_word"] {
        let found = count(TurnFilter { flagged: some(detector), ..TurnFilter::default() }).await;
        assert_eq!(found, expected(&|row| row.flagged.iter().any(|one| one == detector)));
    }
    let found = count(TurnFilter { intent: Some("заказ".to_owned()), ..TurnFilter::default() }).await;
    assert!(found > 0);
    assert_eq!(found, expected(&|row| row.intent.is_some()));
    let found = count(TurnFilter { oos_from: Some(500), ..TurnFilter::default() }).await;
    assert_eq!(found, expected(&|row| row.oos_permille.is_some_and(|oos| oos >= 500)));
    let found = count(TurnFilter { dry_run: Some(true), ..TurnFilter::default() }).await;
    assert_eq!(found, expected(&|row| row.policy_dry_run == Some(true)));
}
