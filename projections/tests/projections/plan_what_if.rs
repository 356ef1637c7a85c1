//! Another plan, tried on the ledger: interrupted, it goes on and comes to the same answer.

use botledger_domain::{
    PlanName, ReservationId, SubjectId, WorkspaceId,
    account::{Amounts, Limit, Period, PlanTerms, Unit},
    quota::{Quota, QuotaCommand},
    quota_stream,
};
use botledger_journal::{AppendSet, Journal, Loaded};
use botledger_projections::{
    PlanReport, PlanWhatIf, Projection, QuotasProjection, Saved, WhatIfError, plan_what_if,
};
use chrono::TimeDelta;
use sqlx::PgPool;
use std::sync::Arc;
use uuid::Uuid;

use crate::support::{fold, journal, metadata, noon, set_checkpoint};

const WORKSPACE: WorkspaceId = WorkspaceId(Uuid::from_u128(1));

fn messages(amount: u64) -> PlanTerms {
    let limit = Limit { unit: Unit::Messages, period: Period::Day, amount, roll_over: None };
    PlanTerms { limits: vec![limit], warn_at_percent: vec![] }
}

/// So many demands of each of so many people, all settled.
async fn demanded(journal: &Journal, people: &mut [Loaded<Quota>], demands: u128) {
    let mut set = AppendSet::new(metadata());
    for (n, quota) in (0u128..).zip(people) {
        for demand in 0..demands {
            let now = noon() + TimeDelta::seconds(quota.version);
            let reservation =
                ReservationId(Uuid::from_u128((n << 64) + ((quota.version as u128) << 32) + demand));
            let asked = Amounts { tokens: 100, messages: 1, money: 0 };
            let subject = SubjectId(Uuid::from_u128(1_000 + n));
            let plan = PlanName::parse("free").unwrap();
            let assign = QuotaCommand::AssignPlan {
                workspace: WORKSPACE,
                subject,
                plan,
                terms: messages(5),
                by: None,
            };
            set.decide(quota, assign, now).unwrap();
            set.decide(quota, QuotaCommand::Reserve { reservation, asked }, now).unwrap();
            let actual = Amounts { tokens: 10, messages: 1, money: 0 };
            let _ = set.decide(quota, QuotaCommand::Settle { reservation, actual, estimated: false }, now);
        }
    }
    journal.append(set).await.unwrap();
}

#[sqlx::test(migrations = "../migrations")]
async fn an_interrupted_answer_goes_on_and_what_came_later_changes_nothing(pool: PgPool) {
    let journal = journal(&pool);
    let mut people: Vec<Loaded<Quota>> = (0..230u128)
        .map(|n| Loaded::empty(quota_stream(WORKSPACE, SubjectId(Uuid::from_u128(1_000 + n))).to_string()))
        .collect();
    demanded(&journal, &mut people, 3).await;
    let quotas: Arc<dyn Projection> = Arc::new(QuotasProjection);
    let shown = fold(&pool, &quotas, botledger_domain::Position(0), &[]).await.unwrap();
    set_checkpoint(&pool, "quotas", shown).await;
    let question = PlanWhatIf {
        workspace: WORKSPACE,
        from: noon() - TimeDelta::hours(1),
        until: noon() + TimeDelta::days(1),
        terms: messages(2),
        of_plan: None,
    };
    let mut kept: Vec<String> = Vec::new();
    let whole = plan_what_if(&pool, &question, None, None, |saved, all| {
        assert_eq!(all, 230);
        kept.push(serde_json::to_string(saved).unwrap());
    })
    .await
    .unwrap();
    assert_eq!((whole.people, whole.before.held, whole.after.refused), (230, 690, 230));
    assert_eq!((whole.demands.len(), whole.people_changed.len(), kept.len()), (230, 230, 2));
    assert!(whole.demands.is_sorted_by_key(|demand| demand.position));

    let another = kept[0].clone();
    demanded(&journal, &mut people, 2).await;
    let shown = fold(&pool, &quotas, shown, &[]).await.unwrap();
    set_checkpoint(&pool, "quotas", shown).await;
    for saved in kept {
        let saved: Saved<PlanReport> = serde_json::from_str(&saved).unwrap();
        assert!(saved.done > 0);
        let again = plan_what_if(&pool, &question, None, Some(saved), |_, _| {}).await.unwrap();
        assert_eq!(again, whole);
    }
    let mut elsewhere: serde_json::Value = serde_json::from_str(&another).unwrap();
    elsewhere["leaf"] = "00".repeat(32).into();
    let elsewhere: Saved<PlanReport> = serde_json::from_value(elsewhere).unwrap();
    let refused = plan_what_if(&pool, &question, None, Some(elsewhere), |_, _| {}).await;
    assert!(matches!(refused, Err(WhatIfError::OtherLedger { position }) if position == whole.position));
    let now = plan_what_if(&pool, &question, None, None, |_, _| {}).await.unwrap();
    assert_eq!((now.before.held, now.after.held), (1_150, 460), "a new answer knows what came later");

    let too_many = plan_what_if(&pool, &question, Some(229), None, |_, _| {}).await;
    assert!(matches!(too_many, Err(WhatIfError::TooManyPeople { people: 230 })), "{too_many:?}");
    let backwards = PlanWhatIf { until: question.from, ..question.clone() };
    assert!(matches!(
        plan_what_if(&pool, &backwards, None, None, |_, _| {}).await,
        Err(WhatIfError::Backwards)
    ));
    let senseless = PlanWhatIf { terms: messages(0), ..question };
    assert!(matches!(
        plan_what_if(&pool, &senseless, None, None, |_, _| {}).await,
        Err(WhatIfError::Terms(_))
    ));
}
