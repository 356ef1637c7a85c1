//! Several processes on one ledger: each bot is run by one, and another takes over.

use std::{collections::BTreeMap, time::Duration};

use botledger_commands::{Fence, TurnFailure};
use botledger_domain::{Reason, TurnId};
use botledger_sim::{Fault, FaultKind, Person};
use sqlx::PgPool;

use crate::world::{Gateway, Held, Instance, Routes, Setup, World, system, until};

fn short_lease() -> Setup {
    let mut setup = Setup::default();
    setup.bots.lease_ttl = Duration::from_secs(1);
    setup
}

async fn epoch(instance: &Instance, bot: &Held) -> i64 {
    instance.app.bots.get(&system(), bot.id).await.unwrap().lease_epoch
}

/// Waits until an instance holds a bot.
async fn held_by(instance: &Instance, bot: &Held) {
    until("the bot is held", async || {
        let state = instance.app.bots.get(&system(), bot.id).await.ok()?;
        (state.holder == Some(instance.app.core.instance)).then_some(())
    })
    .await;
}

fn once_each(world: &World, bot: &Held, count: usize) {
    let mut times: BTreeMap<i64, usize> = BTreeMap::new();
    for entry in world.sent(bot) {
        *times.entry(entry.chat.unwrap()).or_default() += 1;
    }
    assert!(times.len() == count && times.values().all(|times| *times == 1), "{times:?}");
}

#[sqlx::test(migrations = "../migrations")]
async fn each_bot_is_run_by_exactly_one_of_two(pool: PgPool) {
    let world = World::new(pool).await;
    let (one, two) = (world.instance(), world.instance());
    let mut bots = Vec::new();
    for number in 0..6 {
        bots.push(world.bot(&one, &format!("shared{number}_bot")).await);
    }
    for bot in &bots {
        for number in 1..=10 {
            world.say(bot, &Person::number(number), "hello");
        }
    }
    assert_eq!(world.ended(60).await, [("delivered".to_owned(), 60)].into());
    for bot in &bots {
        once_each(&world, bot, 10);
        assert_eq!(epoch(&one, bot).await, 1, "nobody had to take it from anybody");
    }
    let conflicts = world.sim.log(0).iter().filter(|entry| entry.outcome == "409").count();
    assert_eq!(conflicts, 0, "there never were two pollers");
    one.stop().await;
    two.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn a_bot_given_up_in_order_is_taken_over_at_once(pool: PgPool) {
    let world = World::with(pool, short_lease()).await;
    let one = world.instance();
    let bot = world.bot(&one, "handed_bot").await;
    held_by(&one, &bot).await;
    let two = world.instance();
    world.model.hold();
    world.say(&bot, &Person::number(1), "hello");
    until("the model was asked", async || (world.model.served().len() == 1).then_some(())).await;
    // It is not waited for longer than the drain time; the turn goes to the other.
    one.stop().await;
    world.model.release();
    held_by(&two, &bot).await;
    world.answers(&bot, Person::number(1).id, 1).await;
    assert_eq!(world.ended(1).await["delivered"], 1);
    once_each(&world, &bot, 1);
    two.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn the_turns_of_a_dead_process_are_answered_by_another(pool: PgPool) {
    let world = World::with(pool, short_lease()).await;
    let doomed = world.mortal();
    let bot = world.bot(&doomed, "orphan_bot").await;
    held_by(&doomed, &bot).await;
    let heir = world.instance();
    world.model.hold();
    for number in 1..=5 {
        world.say(&bot, &Person::number(number), "hello");
    }
    until("the model was asked", async || (world.model.served().len() == 5).then_some(())).await;
    doomed.kill();
    for number in 6..=10 {
        world.say(&bot, &Person::number(number), "hello");
    }
    world.model.release();
    held_by(&heir, &bot).await;
    assert_eq!(world.ended(10).await, [("delivered".to_owned(), 10)].into());
    once_each(&world, &bot, 10);
    for number in 1..=10 {
        assert_eq!(world.quota(&heir, &Person::number(number)).await.reserved, 0);
    }
    let causes: Vec<String> = sqlx::query_scalar(
        "SELECT payload->>'cause' FROM public.events WHERE event_type = 'bot_lease_lost' ORDER BY position",
    )
    .fetch_all(&world.pool)
    .await
    .unwrap();
    assert_eq!(causes, ["expired"], "who died did not say so itself");
    heir.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn a_send_on_its_way_is_waited_for_when_a_bot_is_given_up(pool: PgPool) {
    let world = World::with(pool, short_lease()).await;
    let one = world.instance();
    let bot = world.bot(&one, "courteous_bot").await;
    held_by(&one, &bot).await;
    let two = world.instance();
    world.sim.fault(Fault {
        method: Some("sendMessage".to_owned()),
        bot: None,
        chat: None,
        skip: 0,
        times: 1,
        // Longer than the lease and the drain time, shorter than a call may take.
        fault: FaultKind::Delay { millis: 1_500 },
    });
    world.say(&bot, &Person::number(1), "hello");
    until("the answer is ready", async || (world.events("reply_generated").await == 1).then_some(())).await;
    one.stop().await;
    assert_eq!(world.events("reply_delivered").await, 1, "nothing is on its way any more");
    held_by(&two, &bot).await;
    assert_eq!(world.ended(1).await["delivered"], 1);
    once_each(&world, &bot, 1);
    two.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn what_a_stopped_bot_left_open_holds_no_tokens(pool: PgPool) {
    let world = World::with(pool, short_lease()).await;
    let one = world.instance();
    let (stopped, archived) = (world.bot(&one, "stopped_bot").await, world.bot(&one, "archived_bot").await);
    let person = Person::number(1);
    world.model.hold();
    for bot in [&stopped, &archived] {
        world.say(bot, &person, "hello");
    }
    until("the model was asked", async || (world.model.served().len() == 2).then_some(())).await;
    let reason = || Reason::parse("out of use").unwrap();
    one.app.bots.stop(&system(), stopped.id, reason()).await.unwrap();
    one.app.bots.archive(&system(), archived.id, reason()).await.unwrap();
    until("nobody holds them", async || {
        let rows = [
            botledger_projections::bot(&world.pool, stopped.id).await.ok()??,
            botledger_projections::bot(&world.pool, archived.id).await.ok()??,
        ];
        rows.iter().all(|row| row.holder.is_none()).then_some(())
    })
    .await;
    assert!(world.quota(&one, &person).await.reserved > 0, "the turns stand where they stood");
    let two = world.instance();
    until("nothing is held", async || (world.quota(&two, &person).await.reserved == 0).then_some(())).await;
    until("the archived bot has no open turn", async || {
        (world.events("reply_undeliverable").await == 1).then_some(())
    })
    .await;
    // Whoever asked is told when the bot runs again.
    two.app.bots.start(&system(), stopped.id).await.unwrap();
    let texts = world.answers(&stopped, person.id, 1).await;
    assert!(texts[0].contains("stopped before it could answer"), "{texts:?}");
    assert_eq!(world.ended(2).await, [("failed".to_owned(), 1), ("undeliverable".to_owned(), 1)].into());
    one.stop().await;
    two.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn a_turn_whose_message_is_damaged_or_erased_ends_instead_of_being_tried_for_ever(pool: PgPool) {
    let world = World::with(pool, short_lease()).await;
    let doomed = world.mortal();
    let bot = world.bot(&doomed, "damaged_bot").await;
    held_by(&doomed, &bot).await;
    world.model.hold();
    for number in 1..=2 {
        world.say(&bot, &Person::number(number), "hello");
        let asked = usize::try_from(number).unwrap();
        until("the model was asked", async || (world.model.served().len() == asked).then_some(())).await;
    }
    doomed.kill();
    world.damage_bodies().await;
    world.model.release();
    let heir = world.instance();
    assert_eq!(world.ended(2).await, [("undeliverable".to_owned(), 2)].into());
    for number in 1..=2 {
        assert_eq!(world.quota(&heir, &Person::number(number)).await.reserved, 0);
    }
    heir.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn a_holder_cut_off_from_the_ledger_lets_go_and_its_late_writes_are_refused(pool: PgPool) {
    let world = World::with(pool, short_lease()).await;
    let (gateway, database) = Gateway::to_database(&world).await;
    let zombie = world.instance_by(&Routes { database, ..world.routes() });
    let bot = world.bot(&zombie, "fenced_bot").await;
    held_by(&zombie, &bot).await;
    let old = Fence { epoch: epoch(&zombie, &bot).await };
    world.model.hold();
    world.say(&bot, &Person::number(1), "hello");
    until("the model was asked", async || (world.model.served().len() == 1).then_some(())).await;
    let heir = world.instance();
    gateway.close();
    held_by(&heir, &bot).await;
    until("the heir asked the model again", async || (world.model.served().len() == 2).then_some(())).await;
    gateway.open().await;
    let turn = botledger_projections::turns_page(
        &world.pool,
        &botledger_projections::TurnFilter::default(),
        botledger_projections::Page::newest(1),
    )
    .await
    .unwrap()
    .remove(0);
    let failure = TurnFailure { code: "LATE".to_owned(), detail: String::new(), used: None };
    let late = until("the old holder reaches the ledger", async || {
        let late = zombie.app.turns.fail(&system(), TurnId(turn.turn_id), old, failure.clone()).await;
        match late {
            Err(botledger_commands::CommandError::Unavailable { source })
                if source.to_string().contains("cannot be") =>
            {
                None
            }
            late => Some(late),
        }
    })
    .await;
    assert!(late.is_err(), "{late:?}");
    world.model.release();
    world.answers(&bot, Person::number(1).id, 1).await;
    assert_eq!(world.ended(1).await["delivered"], 1);
    once_each(&world, &bot, 1);
    assert_eq!(world.events("reply_failed").await, 0);
    heir.stop().await;
    zombie.stop().await;
}
