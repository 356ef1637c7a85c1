//! A budget's row and those of its shares make one answer.

use std::sync::Arc;

use botledger_domain::{
    BotId, Position, Reason, ReservationId, WorkspaceId,
    account::{Amounts, Holder, Limit, Period, PlanTerms, Shortage, Unit},
    budget::{Budget, BudgetCommand, BudgetEvent},
    budget_share::{BudgetShare, BudgetShareCommand},
    budget_share_stream, budget_stream,
};
use botledger_journal::{AppendSet, Loaded};
use botledger_projections::{BudgetsProjection, Page, Projection, budget as budget_of, budgets_page, verify};
use chrono::{DateTime, TimeDelta, Utc};
use sqlx::PgPool;
use uuid::Uuid;

use crate::support::{fold, journal, metadata, noon, set_checkpoint};

#[sqlx::test(migrations = "../migrations")]
async fn a_budgets_row_with_its_shares_says_what_the_ledger_says(pool: PgPool) {
    let (workspace, bot): (WorkspaceId, BotId) = (Uuid::now_v7().into(), Uuid::now_v7().into());
    let holder = Holder::Bot(bot);
    let budget = budget_stream(workspace, holder);
    let mut parent = Loaded::<Budget>::empty(budget.to_string());
    let mut shares: Vec<_> = (0..2)
        .map(|number| Loaded::<BudgetShare>::empty(budget_share_stream(budget, number).to_string()))
        .collect();
    let now = noon();
    let tokens = |amount| Amounts { tokens: amount, messages: 1, money: 0 };
    let terms = PlanTerms { warn_at_percent: vec![10], ..PlanTerms::tokens(1_000, Period::Minute) };
    let mut set = AppendSet::new(metadata());
    let command = BudgetCommand::Set { workspace, holder, terms, shares: 2, by: None };
    set.decide(&mut parent, command, now).unwrap();
    let good_until = parent.state.good_until(now).unwrap();
    for (number, amount) in [(0, 90), (1, 30)] {
        let asked = parent.state.account.terms.limited(tokens(amount));
        let pledge = BudgetCommand::Pledge { share: number, asked, free: Amounts::default() };
        let BudgetEvent::MoneyPledged { granted, .. } =
            set.decide(&mut parent, pledge, now).unwrap()[0].clone()
        else {
            panic!("there is enough")
        };
        let share = &mut shares[number as usize];
        let accept = BudgetShareCommand::Accept { budget, share: number, granted, good_until };
        set.decide(share, accept, now).unwrap();
        let reservation = ReservationId(Uuid::now_v7());
        set.decide(share, BudgetShareCommand::Reserve { reservation, asked }, now).unwrap();
        if number == 0 {
            let actual = tokens(40);
            let settle = BudgetShareCommand::Settle { reservation, actual, estimated: false };
            set.decide(share, settle, now).unwrap();
        }
    }
    let raise = BudgetCommand::Raise {
        unit: Unit::Tokens,
        amount: 5,
        expires_at: now + TimeDelta::seconds(30),
        reason: Reason::parse("rush").unwrap(),
        by: Uuid::now_v7().into(),
    };
    set.decide(&mut parent, raise, now).unwrap();
    let journal = journal(&pool);
    journal.append(set).await.unwrap();
    let projection: Arc<dyn Projection> = Arc::new(BudgetsProjection);
    let head = fold(&pool, &projection, Position(0), &[3]).await.unwrap();
    set_checkpoint(&pool, projection.name(), head).await;

    let truth = |parent: &Loaded<Budget>, shares: &[Loaded<BudgetShare>], at| {
        parent.state.truth(shares.iter().map(|share| &share.state)).left_at(at)
    };
    let row = budget_of(&pool, workspace, holder).await.unwrap().unwrap();
    assert_eq!(row.left_at(now), truth(&parent, &shares, now));
    assert_eq!((row.left_at(now)[0].used, row.left_at(now)[0].reserved), (40, 30));
    assert_eq!(row.raises(), parent.state.account.raises);
    assert_eq!(row.warnings().len(), 1);

    let later = now + TimeDelta::seconds(60);
    let mut set = AppendSet::new(metadata());
    let reports = shares.iter().enumerate().map(|(n, share)| share.state.report(n as u32)).collect();
    let good_until = parent.state.good_until(later).unwrap();
    for share in &mut shares {
        set.decide(share, BudgetShareCommand::Report { good_until }, later).unwrap();
    }
    set.decide(&mut parent, BudgetCommand::Gather { reports }, later).unwrap();
    let remove = BudgetCommand::Remove { reason: Reason::parse("tidy").unwrap(), by: None };
    set.decide(&mut parent, remove, later).unwrap();
    journal.append(set).await.unwrap();
    let head = fold(&pool, &projection, head, &[2]).await.unwrap();
    set_checkpoint(&pool, projection.name(), head).await;
    let row = budgets_page(&pool, workspace, Page::newest(5)).await.unwrap().remove(0);
    assert_eq!(row.left_at(later), truth(&parent, &shares, later));
    assert_eq!((row.left_at(later)[0].used, row.left_at(later)[0].reserved), (0, 30));
    assert_eq!((row.warnings(), row.raises(), row.head.in_force), (vec![], vec![], false));
    assert_eq!(verify(&pool, &projection, |_| {}).await.unwrap().different, 0);
}

#[sqlx::test(migrations = "../migrations")]
async fn a_limit_is_exhausted_until_its_own_window_ends_or_more_of_its_unit_is_granted(pool: PgPool) {
    let workspace: WorkspaceId = Uuid::now_v7().into();
    let holder = Holder::Workspace(workspace);
    let mut parent = Loaded::<Budget>::empty(budget_stream(workspace, holder).to_string());
    let now = noon();
    let limit = |unit, period, amount| Limit { unit, period, amount, roll_over: None };
    let limits = vec![
        limit(Unit::Messages, Period::Minute, 1),
        limit(Unit::Tokens, Period::Day, 5),
        limit(Unit::Messages, Period::Day, 9),
    ];
    let terms = PlanTerms { limits, warn_at_percent: vec![] };
    let (journal, projection) = (journal(&pool), Arc::new(BudgetsProjection) as Arc<dyn Projection>);
    let mut head = Position(0);
    let mut after = async |commands: Vec<BudgetCommand>, at: DateTime<Utc>| {
        let mut set = AppendSet::new(metadata());
        for command in commands {
            set.decide(&mut parent, command, at).unwrap();
        }
        journal.append(set).await.unwrap();
        head = fold(&pool, &projection, head, &[1]).await.unwrap();
        let row = budget_of(&pool, workspace, holder).await.unwrap().unwrap();
        row.exhausted_at(at).into_iter().map(|one| (one.unit, one.period, one.since)).collect::<Vec<_>>()
    };
    let exhaust = |unit, period: Period| {
        let resets_at = period.window(now).end;
        BudgetCommand::Exhaust { short: Shortage { unit, period, requested: 9, remaining: 0, resets_at } }
    };
    let raise = |unit| BudgetCommand::Raise {
        unit,
        amount: 1,
        expires_at: now + TimeDelta::hours(9),
        reason: Reason::parse("rush").unwrap(),
        by: Uuid::now_v7().into(),
    };
    let (minute, tokens) = ((Unit::Messages, Period::Minute, now), (Unit::Tokens, Period::Day, now));
    let set = BudgetCommand::Set { workspace, holder, terms, shares: 1, by: None };
    assert_eq!(after(vec![set], now).await, []);
    let both = vec![exhaust(Unit::Messages, Period::Minute), exhaust(Unit::Tokens, Period::Day)];
    assert_eq!(after(both, now).await, [minute, tokens]);
    let later = now + TimeDelta::seconds(60);
    let rolled = vec![BudgetCommand::Gather { reports: vec![] }];
    assert_eq!(after(rolled, later).await, [tokens], "the day goes on");
    assert_eq!(after(vec![raise(Unit::Messages)], later).await, [tokens]);
    assert_eq!(after(vec![raise(Unit::Tokens)], later).await, []);
}
