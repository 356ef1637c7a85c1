//! Overrides of rate limits and access lists: given events, then rows, then the same rows of then.

use std::{collections::BTreeMap, sync::Arc};

use botledger_domain::{
    Actor, BotId, ConversationId, EventMetadata, OperatorId, Position, Reason, SubjectId, WorkspaceId,
    access_list::{
        AccessDoor, AccessEffect, AccessEntry, AccessList, AccessListCommand, AccessTarget, Network,
        access_list_stream,
    },
    rate_limit::{RateLimit, RateOverride, RateOverrideCommand, RateRule, RateSubject, rate_override_stream},
};
use botledger_journal::{AppendSet, Journal, Loaded};
use botledger_projections::{
    AccessEntryFilter, AccessListsProjection, Page, Projection, RateOverridesProjection, access_entries_page,
    access_list, access_list_as_of, rate_override, rate_override_as_of, rate_overrides_page, verify,
};
use chrono::{DateTime, TimeDelta, Utc};
use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, TestRunner},
};
use sqlx::PgPool;
use uuid::Uuid;

use crate::support::{fold, journal, noon, set_checkpoint};

fn reason(text: &str) -> Reason {
    Reason::parse(text).unwrap()
}

async fn append<A: botledger_domain::Decide>(
    journal: &Journal,
    loaded: &mut Loaded<A>,
    command: A::Command,
    now: DateTime<Utc>,
) -> Option<Position>
where
    A::Event: Clone,
{
    let metadata = EventMetadata::new(&Actor::System("test"), Uuid::now_v7(), Uuid::nil(), "test");
    let mut set = AppendSet::new(metadata);
    set.decide(loaded, command, now).ok()?;
    if set.is_empty() {
        return None;
    }
    Some(journal.append(set).await.unwrap().position)
}

#[sqlx::test(migrations = "../migrations")]
async fn an_overrides_row_says_what_the_override_says(pool: PgPool) {
    let journal = journal(&pool);
    let workspace = WorkspaceId(Uuid::now_v7());
    let subject = RateSubject::user(BotId(Uuid::now_v7()), SubjectId(Uuid::now_v7()));
    let stream = rate_override_stream(workspace, &subject);
    let mut loaded = Loaded::<RateOverride>::empty(stream.to_string());
    let by = OperatorId(Uuid::now_v7());
    let end = Some(noon() + TimeDelta::hours(1));
    let set = |burst, expires_at| RateOverrideCommand::Set {
        workspace,
        subject: subject.clone(),
        rule: RateRule::requests(RateLimit { burst, per_minute: 1 }),
        reason: reason("a book"),
        expires_at,
        by,
    };
    let first = append(&journal, &mut loaded, set(5, end), noon()).await.unwrap();
    let second = append(&journal, &mut loaded, set(9, None), noon()).await.unwrap();
    let gone = RateOverrideCommand::Remove { reason: reason("it is out"), by };
    let third = append(&journal, &mut loaded, gone, noon() + TimeDelta::minutes(1)).await.unwrap();

    let projection: Arc<dyn Projection> = Arc::new(RateOverridesProjection);
    fold(&pool, &projection, Position(0), &[2]).await.unwrap();
    let row = rate_override(&pool, workspace, &subject).await.unwrap().unwrap();
    assert_eq!((row.subject_kind.as_str(), row.subject_id.as_str()), ("user", subject.id()));
    assert_eq!((row.standing, row.reason.as_str(), row.changed_by), (false, "it is out", by.uuid()));
    assert_eq!((row.created_position, row.updated_position), (first.0, third.0));
    let then = async |upto| rate_override_as_of(&pool, workspace, &subject, upto).await.unwrap();
    assert_eq!(then(third).await, Some(row));
    let middle = then(second).await.unwrap();
    assert_eq!(
        (middle.standing, middle.expires_at, &middle.rule["requests"]["burst"]),
        (true, None, &9.into())
    );
    assert_eq!(then(first).await.unwrap().expires_at, end);
    assert_eq!(then(Position(first.0 - 1)).await, None);
    let page = async |at| rate_overrides_page(&pool, workspace, at, Page::newest(10)).await.unwrap().len();
    assert_eq!((page(None).await, page(Some(noon())).await), (1, 0));
}

fn target(n: u8) -> AccessTarget {
    match n % 3 {
        0 => AccessTarget::Person { subject: SubjectId(Uuid::from_u128(n.into())) },
        1 => AccessTarget::Chat { conversation: ConversationId(Uuid::from_u128(n.into())) },
        _ => AccessTarget::Ip { network: Network::parse(&format!("10.0.0.{n}")).unwrap() },
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn whatever_was_done_to_a_list_its_rows_say_the_same(pool: PgPool) {
    let mut runner = TestRunner::new(Config::default());
    let script = prop::collection::vec(any::<(u8, u8, u8)>(), 120).new_tree(&mut runner).unwrap().current();
    let journal = journal(&pool);
    let (workspace, bot, by) = (WorkspaceId(Uuid::now_v7()), BotId(Uuid::now_v7()), OperatorId(Uuid::nil()));
    let mut lists: BTreeMap<Option<BotId>, Loaded<AccessList>> = [None, Some(bot)]
        .map(|bot| (bot, Loaded::empty(access_list_stream(workspace, bot).to_string())))
        .into();
    let mut moments: Vec<(Position, BTreeMap<Option<BotId>, AccessList>)> = Vec::new();
    let mut now = noon();
    for (kind, a, b) in &script {
        now += TimeDelta::seconds(1);
        let bot = b.is_multiple_of(2).then_some(bot);
        let effect = if a.is_multiple_of(2) { AccessEffect::Allow } else { AccessEffect::Deny };
        let door =
            if bot.is_some() || a.is_multiple_of(2) { AccessDoor::Messages } else { AccessDoor::Requests };
        let entry = |n: u8| AccessEntry {
            target: target(n % 9),
            effect,
            reason: reason(&format!("why {n}")),
            expires_at: n.is_multiple_of(5).then(|| now + TimeDelta::seconds(i64::from(n) + 1)),
        };
        let command = match kind % 8 {
            0..4 => AccessListCommand::Add {
                workspace,
                bot,
                entries: vec![entry(*a), entry(a.wrapping_add(1))],
                by,
            },
            4 | 5 => AccessListCommand::Remove { targets: vec![target(a % 9)], reason: reason("over"), by },
            6 => AccessListCommand::Close { workspace, bot, door, reason: reason("shut"), by },
            _ => AccessListCommand::Open { door, reason: reason("open"), by },
        };
        if let Some(position) = append(&journal, lists.get_mut(&bot).unwrap(), command, now).await {
            let states = lists.iter().map(|(bot, list)| (*bot, list.state.clone())).collect();
            moments.push((position, states));
        }
    }
    let projection: Arc<dyn Projection> = Arc::new(AccessListsProjection);
    let head = fold(&pool, &projection, Position(0), &[3, 11]).await.unwrap();
    set_checkpoint(&pool, projection.name(), head).await;
    for (bot, list) in lists.iter().filter(|(_, list)| list.version > 0) {
        let row = access_list(&pool, workspace, *bot).await.unwrap().unwrap();
        let state = &list.state;
        assert_eq!(row.closed_to_messages, state.closed.contains(&AccessDoor::Messages), "{script:?}");
        assert_eq!(row.closed_to_requests, state.closed.contains(&AccessDoor::Requests));
        let filter = AccessEntryFilter {
            list: Some(access_list_stream(workspace, *bot)),
            in_force_at: Some(now),
            ..AccessEntryFilter::default()
        };
        let rows = access_entries_page(&pool, workspace, &filter, Page::newest(200)).await.unwrap();
        let mut shown: Vec<_> =
            rows.iter().map(|row| (row.target.clone(), row.effect.clone(), row.reason.clone())).collect();
        let mut said: Vec<_> = state
            .entries
            .values()
            .filter(|entry| entry.stands_at(now))
            .map(|e| (e.target.to_string(), e.effect.as_ref().to_owned(), e.reason.as_str().to_owned()))
            .collect();
        shown.sort();
        said.sort();
        assert_eq!(shown, said, "{script:?}");
    }
    for (position, states) in moments.iter().step_by(17) {
        for (bot, state) in states {
            let then = access_list_as_of(&pool, workspace, *bot, *position).await.unwrap();
            let Some((row, entries)) = then else {
                assert_eq!(*state, AccessList::default());
                continue;
            };
            assert_eq!(row.closed_to_messages, state.closed.contains(&AccessDoor::Messages));
            let shown: std::collections::BTreeSet<_> = entries.iter().map(|row| row.target.clone()).collect();
            let said: std::collections::BTreeSet<_> =
                state.entries.values().map(|entry| entry.target.to_string()).collect();
            assert_eq!(shown, said, "{script:?} as of {position}");
        }
    }
    let report = verify(&pool, &projection, |_| {}).await.unwrap();
    assert_eq!(report.different, 0, "{:?}", report.differences);
}
