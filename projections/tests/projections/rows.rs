//! Given events, then rows: whatever a script of commands did, every row says what its aggregate says.

use std::sync::Arc;

use botledger_domain::{
    Position,
    account::{Mark, Warning},
};
use botledger_projections::{
    BotsProjection, ConversationFilter, ConversationsProjection, DirectoryProjection, PeopleProjection,
    Projection, QuotasProjection, StandingsProjection, TurnsProjection, all, bot, bot_as_of, conversation,
    conversations_page, operator, person, quota_as_of, quota_of, sessions, standing, standing_as_of,
    standing_state_as_of, turn, turn_as_of, verify, workspace,
};
use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, TestRunner},
};
use sqlx::PgPool;

use crate::support::{Desk, Step, fold, id, journal, known, set_checkpoint};

/// A long script of every kind of command.
fn script(steps: usize) -> Vec<Step> {
    let mut runner = TestRunner::new(Config::default());
    prop::collection::vec(any::<Step>(), steps).new_tree(&mut runner).unwrap().current()
}

async fn played(pool: &PgPool, projection: impl Projection + 'static, script: &[Step]) -> Desk {
    let mut desk = Desk::new();
    desk.play(script);
    desk.commit(&journal(pool)).await;
    let projection: Arc<dyn Projection> = Arc::new(projection);
    fold(pool, &projection, Position(0), &[7, 40]).await.unwrap();
    desk
}

fn json<T: serde::Serialize>(value: &T) -> serde_json::Value {
    serde_json::to_value(value).unwrap()
}

#[sqlx::test(migrations = "../migrations")]
async fn a_bots_row_says_what_the_bot_says(pool: PgPool) {
    let script = script(400);
    let desk = played(&pool, BotsProjection, &script).await;
    for loaded in &desk.bots {
        let row = bot(&pool, id(loaded)).await.unwrap();
        if !known(loaded) {
            assert_eq!(row, None);
            continue;
        }
        let (row, state) = (row.unwrap(), &loaded.state);
        assert_eq!(row.status, state.status.as_ref(), "{script:?}");
        assert_eq!(row.status_reason, state.status_reason);
        assert_eq!((row.settings.clone(), row.mode.as_str()), (json(&state.settings), state.mode.as_ref()));
        assert_eq!(
            (row.holder, row.lease_epoch),
            (state.holder.map(|holder| holder.uuid()), state.lease_epoch)
        );
        let head = Position(row.updated_position);
        assert_eq!(
            bot_as_of(&pool, id(loaded), head).await.unwrap(),
            Some(row.clone()),
            "as of its last event"
        );
        let born = bot_as_of(&pool, id(loaded), Position(row.created_position)).await.unwrap().unwrap();
        assert_eq!((born.status.as_str(), born.updated_position), ("stopped", row.created_position));
        let unborn = bot_as_of(&pool, id(loaded), Position(row.created_position - 1)).await.unwrap();
        assert_eq!(unborn, None);
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn a_quotas_row_says_what_the_quota_says(pool: PgPool) {
    let script = script(600);
    let desk = played(&pool, QuotasProjection, &script).await;
    for (loaded, subject) in desk.quotas.iter().zip(&desk.subjects) {
        let row = quota_of(&pool, id(subject)).await.unwrap();
        let Some(plan) = &loaded.state.plan else {
            assert_eq!(row, None);
            continue;
        };
        let (row, account) = (row.unwrap(), &loaded.state.account);
        assert_eq!((row.plan.as_str(), row.terms()), (plan.as_str(), account.terms.clone()), "{script:?}");
        assert_eq!((row.meters(), row.reserved()), (account.meters.clone(), account.held()));
        assert_eq!(row.overrides(), account.raises);
        let given =
            |warning: &Warning| Mark { unit: warning.unit, period: warning.period, percent: warning.percent };
        assert_eq!(row.warnings().iter().map(given).collect::<Vec<_>>(), account.marks);
        assert_eq!(row.left(), account.left_at(account.meters[0].window.start));
        let as_of =
            quota_as_of(&pool, desk.workspace_id(), id(subject), Position(row.updated_position)).await;
        assert_eq!(as_of.unwrap(), Some(row));
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn a_standings_row_says_how_its_person_stands(pool: PgPool) {
    // Nothing but scoring, appealing and deciding.
    let script: Vec<Step> = script(600).into_iter().map(|(_, a, b)| (5, a, b)).collect();
    let desk = played(&pool, StandingsProjection, &script).await;
    for ((b, s), loaded) in desk.standings.iter().filter(|(_, loaded)| known(loaded)) {
        let (bot, subject) = (id(&desk.bots[*b]), id(&desk.subjects[*s]));
        let (row, state) = (standing(&pool, bot, subject).await.unwrap().unwrap(), &loaded.state);
        assert_eq!(row.blocked, state.block.is_some(), "{script:?}");
        assert_eq!(row.blocked_until, state.block.as_ref().and_then(|block| block.until));
        if let Some(block) = &state.block {
            assert_eq!(row.reason, block.reason.as_str());
        }
        let ladder = &state.live.ladder;
        assert_eq!(
            (row.ladder_state.as_str(), row.drift as u64, row.violation as u64),
            (ladder.state.as_ref(), ladder.drift, ladder.violation)
        );
        assert_eq!(row.ladder_until, ladder.block_end());
        assert_eq!(row.block_cause.as_deref(), state.block_cause.as_ref().map(AsRef::as_ref));
        let trial = &state.trial.ladder;
        assert_eq!((row.trial_state.as_str(), row.trial_score as u64), (trial.state.as_ref(), trial.score()));
        assert_eq!(row.policy_version, state.live.policy_version.map(|version| version as i32));
        assert_eq!(row.model_version, state.live.model_version);
        assert_eq!(row.appeal_turn, state.appeal.as_ref().map(|appeal| appeal.turn.uuid()));
        assert_eq!(row.appealed_at, state.appeal.as_ref().map(|appeal| appeal.filed_at));
        assert_eq!(row.appealable_from, state.appealable_from);
        let head = Position(row.updated_position);
        assert_eq!(standing_as_of(&pool, bot, subject, head).await.unwrap(), Some(row));
        let then = standing_state_as_of(&pool, bot, subject, head).await.unwrap().unwrap();
        assert_eq!(&then, state);
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn a_persons_row_says_what_is_known_of_them(pool: PgPool) {
    let desk = played(&pool, PeopleProjection, &script(400)).await;
    for loaded in &desk.subjects {
        let row = person(&pool, id(loaded)).await.unwrap();
        if !known(loaded) {
            assert_eq!(row, None);
            continue;
        }
        let (row, state) = (row.unwrap(), &loaded.state);
        assert_eq!(
            (row.language.as_str(), row.language_chosen),
            (state.language.as_ref(), state.language_chosen)
        );
        assert_eq!(row.profile, json(state.profile.as_ref().unwrap()));
        let of_theirs = |message: &&botledger_domain::turn::Message| message.subject == id(loaded);
        let messages =
            desk.turns.iter().filter_map(|turn| turn.state.message.as_ref()).filter(of_theirs).count();
        assert_eq!(row.messages, messages as i64);
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn a_conversations_row_and_its_sessions_say_what_the_chat_says(pool: PgPool) {
    let desk = played(&pool, ConversationsProjection, &script(600)).await;
    for ((b, s), loaded) in &desk.chats {
        let conversation_id = desk.conversation(*b, *s);
        let row = conversation(&pool, conversation_id).await.unwrap().unwrap();
        assert_eq!(row.current_session, loaded.state.current as i32);
        let rows = sessions(&pool, conversation_id).await.unwrap();
        assert_eq!(rows.len(), loaded.state.sessions.len());
        for (row, (number, state)) in rows.iter().zip(&loaded.state.sessions) {
            assert_eq!((row.session, row.context_epoch), (*number as i32, state.context_epoch as i32));
            assert_eq!((row.title.clone(), row.opened_at), (state.title.as_ref().map(json), state.opened_at));
        }
    }
    let all = ConversationFilter::default();
    let rows = conversations_page(&pool, &all, botledger_projections::Page::oldest(100)).await.unwrap();
    assert_eq!(rows.iter().map(|row| row.messages).sum::<i64>(), desk.turns.len() as i64);
}

#[sqlx::test(migrations = "../migrations")]
async fn operators_and_workspaces_are_listed_as_they_are(pool: PgPool) {
    let desk = played(&pool, DirectoryProjection, &script(400)).await;
    for loaded in &desk.operators {
        let row = operator(&pool, id(loaded)).await.unwrap();
        assert_eq!(row.is_some(), known(loaded));
        if let Some(row) = row {
            assert_eq!(row.status, loaded.state.status.as_ref());
            assert_eq!(Some(row.role.as_str()), loaded.state.role.as_ref().map(AsRef::as_ref));
        }
    }
    let row = workspace(&pool, desk.workspace_id()).await.unwrap();
    assert_eq!(row.is_some(), known(&desk.workspace));
    if let Some(row) = row {
        let state = &desk.workspace.state;
        assert_eq!(Some(&row.name), state.name.as_ref());
        assert_eq!(row.default_plan.as_deref(), state.default_plan.as_ref().map(|plan| plan.as_str()));
        let plans: Vec<_> = row.plans().into_iter().collect();
        let of_state: Vec<_> =
            state.plans.iter().map(|(plan, terms)| (plan.to_string(), terms.clone())).collect();
        assert_eq!(plans, of_state);
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn a_turns_row_says_where_the_turn_stands(pool: PgPool) {
    let script = script(600);
    let desk = played(&pool, TurnsProjection, &script).await;
    assert!(!desk.turns.is_empty());
    for (number, loaded) in desk.turns.iter().enumerate() {
        let (row, state) = (turn(&pool, id(loaded)).await.unwrap().unwrap(), &loaded.state);
        assert_eq!(
            (row.phase.as_str(), row.open),
            (state.phase.as_ref(), state.phase.is_open()),
            "{script:?}"
        );
        assert_eq!(row.ended_at.is_some(), !row.open);
        assert_eq!(row.reserved_tokens.is_some(), state.admission.is_some());
        assert_eq!(row.refusal, state.refusal.as_ref().map(json));
        assert_eq!(row.failure, state.failure);
        assert_eq!(row.reply_body, state.reply.as_ref().map(|body| body.body_id.uuid()));
        let judged = state
            .scored
            .map(|policy| (policy.owner.as_ref().to_owned(), i64::from(policy.version), policy.dry_run));
        let told = row.policy_owner.clone().zip(row.policy_version).zip(row.policy_dry_run);
        assert_eq!(told.map(|((owner, version), dry_run)| (owner, version, dry_run)), judged);
        assert_eq!((row.findings.is_some(), row.scored_at.is_some()), (judged.is_some(), judged.is_some()));
        if number < 10 {
            let as_of = turn_as_of(&pool, id(loaded), Position(row.updated_position)).await.unwrap();
            assert_eq!(as_of, Some(row));
        }
    }
}

/// One statement that counts again, from the turns themselves, what the sums of a grain say; failures
/// from the log, because a turn does not keep the moment. Rows of zeros count as absent.
fn recount(grain: &str) -> String {
    const SUMS: [&str; 11] = [
        "messages",
        "admitted",
        "refused",
        "answered",
        "failed",
        "delivered",
        "undeliverable",
        "outcome_unknown",
        "prompt_tokens",
        "completion_tokens",
        "latency_ms_sum",
    ];
    let of = |at: &str, model: &str, when: &str, sums: [&str; 11]| {
        let sums =
            SUMS.iter().zip(sums).map(|(name, value)| format!("{value} AS {name}")).collect::<Vec<_>>();
        format!(
            "SELECT date_trunc('{grain}', {at}, 'UTC') AS bucket, bot_id, {model} AS model, workspace, {}
             FROM turns WHERE {when}",
            sums.join(", ")
        )
    };
    let one = |index: usize| std::array::from_fn(|at| if at == index { "1" } else { "0" });
    let mut tokens = ["0"; 11];
    tokens[3] = "1";
    tokens[8] = "coalesce(prompt_tokens, 0)";
    tokens[9] = "coalesce(completion_tokens, 0)";
    tokens[10] = "coalesce(latency_ms, 0)";
    let model = "coalesce(model, '')";
    let failures = of("failed_at", model, "true", one(4)).replace(
        "FROM turns",
        "FROM (SELECT t.*, (e.payload ->> 'failed_at')::timestamptz AS failed_at
               FROM turns t JOIN events e ON e.aggregate_id = t.turn_id::text AND e.event_type = 'reply_failed') f",
    );
    let parts = [
        of("received_at", "''", "true", one(0)),
        of("decided_at", model, "reserved_tokens IS NOT NULL", one(1)),
        of("decided_at", "''", "refusal IS NOT NULL", one(2)),
        of("answered_at", model, "reply_body IS NOT NULL", tokens),
        failures,
        of("ended_at", model, "cardinality(message_ids) > 0", one(5)),
        of("ended_at", model, "phase = 'undeliverable'", one(6)),
        of("ended_at", model, "phase = 'outcome_unknown'", one(7)),
    ];
    let total = SUMS.map(|name| format!("sum({name})::bigint AS {name}")).join(", ");
    format!(
        "WITH counted AS (SELECT bucket, bot_id, model, workspace, {total}
             FROM ({}) parts GROUP BY 1, 2, 3, 4)
         SELECT (SELECT count(*) FROM counted),
             (SELECT count(*) FROM counted FULL JOIN usage_{grain} AS stored USING (bucket, bot_id, model)
              WHERE (counted.workspace, {}) IS DISTINCT FROM (stored.workspace, {}))",
        parts.join(" UNION ALL "),
        SUMS.map(|name| format!("counted.{name}")).join(", "),
        SUMS.map(|name| format!("stored.{name}")).join(", "),
    )
}

#[sqlx::test(migrations = "../migrations")]
async fn sums_of_usage_equal_a_recount(pool: PgPool) {
    let script = script(1_500);
    played(&pool, TurnsProjection, &script).await;
    for grain in ["minute", "hour", "day"] {
        let (rows, different): (i64, i64) = sqlx::query_as(&recount(grain)).fetch_one(&pool).await.unwrap();
        assert!(rows > 1, "the script spans several buckets and models");
        assert_eq!(different, 0, "{grain}: {script:?}");
    }
}

async fn rebuilt_equals_incremental(
    pool: &PgPool,
    at: Position,
    script: Vec<Step>,
    pages: Vec<usize>,
) -> Position {
    let mut desk = Desk::new();
    desk.play(&script);
    desk.commit(&journal(pool)).await;
    let mut last = at;
    for projection in all() {
        last = fold(pool, &projection, at, &pages).await.unwrap();
        set_checkpoint(pool, projection.name(), last).await;
        let report = verify(pool, &projection, |_| {}).await.unwrap();
        assert_eq!((report.position, report.different), (last, 0), "{:?}", report.differences);
    }
    last
}

#[sqlx::test(migrations = "../migrations")]
async fn a_rebuild_equals_what_grew_whatever_the_borders_of_pages(pool: PgPool) {
    let runtime = tokio::runtime::Handle::current();
    // The ledger only grows: each case adds a script of its own and goes on from where the last ended.
    let cases = tokio::task::spawn_blocking(move || {
        let config = Config { cases: 4, max_shrink_iters: 0, failure_persistence: None, ..Config::default() };
        let input = (prop::collection::vec(any::<Step>(), 40..160), prop::collection::vec(1..30usize, 0..30));
        let at = std::sync::Mutex::new(Position(0));
        TestRunner::new(config).run(&input, |(script, pages)| {
            let mut at = at.lock().unwrap();
            *at = runtime.block_on(rebuilt_equals_incremental(&pool, *at, script, pages));
            Ok(())
        })
    });
    cases.await.unwrap().unwrap();
}
