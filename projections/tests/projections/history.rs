//! A stream told page by page is the stream told at once.

use botledger_domain::{
    PlanName, Position, ReservationId, SubjectId, WorkspaceId,
    account::{Amounts, Period, PlanTerms},
    quota::{Quota, QuotaCommand},
    quota_stream,
};
use botledger_journal::{AppendSet, Loaded};
use botledger_projections::{LogReader, Page, Step, Story, ValueChange};
use sqlx::PgPool;
use uuid::Uuid;

use crate::support::{journal, metadata, noon};

fn told(steps: Vec<Step>) -> Vec<(Position, Vec<ValueChange>)> {
    steps.into_iter().map(|step| (step.event.position, step.changes)).collect()
}

#[sqlx::test(migrations = "../migrations")]
async fn pages_forwards_and_backwards_tell_what_one_page_tells(pool: PgPool) {
    let (workspace, subject) = (WorkspaceId(Uuid::from_u128(1)), SubjectId(Uuid::from_u128(2)));
    let stream = quota_stream(workspace, subject).to_string();
    let mut quota: Loaded<Quota> = Loaded::empty(stream.clone());
    let mut set = AppendSet::new(metadata());
    let plan = PlanName::parse("free").unwrap();
    let terms = PlanTerms::tokens(1_000, Period::Day);
    let assign = QuotaCommand::AssignPlan { workspace, subject, plan, terms, by: None };
    set.decide(&mut quota, assign, noon()).unwrap();
    for n in 0..7 {
        let reservation = ReservationId(Uuid::from_u128(n));
        let asked = Amounts { tokens: 10, messages: 1, money: 0 };
        set.decide(&mut quota, QuotaCommand::Reserve { reservation, asked }, noon()).unwrap();
    }
    journal(&pool).append(set).await.unwrap();
    let log = LogReader::new(pool);
    let head = log.head().await.unwrap();
    let mut story = Story::of("quota", &stream, head).unwrap();
    let whole = told(story.page(&log, Page::oldest(100)).await.unwrap());
    assert_eq!(whole.len(), 8);
    assert!(whole.iter().all(|(_, changes)| !changes.is_empty()), "{whole:?}");
    for newest in [false, true] {
        let mut page = if newest { Page::newest(3) } else { Page::oldest(3) };
        let mut story = Story::of("quota", &stream, head).unwrap();
        let mut pages = vec![];
        loop {
            let steps = told(story.page(&log, page).await.unwrap());
            let Some((last, _)) = steps.last() else { break };
            page.after = Some(*last);
            pages.extend(steps);
        }
        if newest {
            pages.reverse();
        }
        assert_eq!(pages, whole);
    }
    assert!(Story::of("nothing", &stream, head).is_none());
}
