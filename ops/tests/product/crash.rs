//! `kill -9` at every named step between intake and record, with duplicates and disorder: by the
//! stand-in's own books no message is lost, and none is answered twice outside the documented window
//! (`ops/decisions/0006`).

use std::collections::HashSet;
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use botledger_sim::{Behaviour, Person};
use sqlx::PgPool;

use crate::house::{House, Partners, until};

const BOT: &str = "crash_bot";
/// One answer at a time, so that the turn that crashes is the only one on its way.
const ONE_AT_A_TIME: (&str, &str) = ("BOTLEDGER_BOTS__MAX_CONCURRENT_TURNS", "1");

fn said(people: i64, each: usize) -> Vec<(Person, String)> {
    (1..=people)
        .flat_map(|person| {
            (1..=each).map(move |n| (Person::number(person * 4), format!("text {n} of {person}")))
        })
        .collect()
}

/// Message ids that the ledger holds as delivered.
async fn recorded(house: &House) -> HashSet<i64> {
    let ids: Vec<Vec<i64>> =
        sqlx::query_scalar("SELECT message_ids FROM read.turns").fetch_all(&house.pool).await.unwrap();
    ids.into_iter().flatten().collect()
}

/// Messages that are out and of which the ledger knows nothing: all that a crash may repeat.
async fn sent_and_not_recorded(house: &House) -> HashSet<i64> {
    let known: Vec<i64> = sqlx::query_scalar(
        "SELECT json_array_elements_text(payload -> 'message_ids')::bigint FROM public.events
         WHERE event_type = 'reply_delivered'
         UNION SELECT (payload ->> 'message_id')::bigint FROM public.events WHERE event_type = 'reply_started'",
    )
    .fetch_all(&house.pool)
    .await
    .unwrap();
    let sends = house.sends().into_iter().filter(|sent| sent.outcome == "ok").filter_map(|sent| sent.id);
    sends.filter(|id| !known.contains(id)).collect()
}

async fn survives(pool: PgPool, point: &str, slow_model: bool, may_repeat: bool) {
    let partners = match slow_model {
        // Slower than a second: the answer is shown while it is written.
        true => Partners { between_pieces: Duration::from_millis(90), ..Partners::default() },
        false => Partners::default(),
    };
    let house = House::build(pool, partners).await;
    let first = house.serve(&[]).await;
    house.open_with_bot(BOT).await;
    first.stop().await;

    house.telegram.behave(Behaviour { duplicate_every: 3, reorder: true });
    let crash_at = format!("{point}:2");
    let mut doomed = house.start(&[("BOTLEDGER_CRASH_AT", &crash_at), ONE_AT_A_TIME]);
    let texts = said(3, if slow_model { 1 } else { 2 });
    // One by one, so that a point is passed more than once also where a batch is one passage.
    for (n, (person, text)) in texts.iter().enumerate() {
        house.telegram.say(BOT, person, text).unwrap();
        if n == 0 {
            until("the first message is taken or the process is gone", async || {
                let taken: i64 =
                    sqlx::query_scalar("SELECT count(*) FROM events WHERE event_type = 'message_received'")
                        .fetch_one(&house.pool)
                        .await
                        .unwrap();
                taken > 0
            })
            .await;
        }
    }
    let status = doomed.ended().await;
    // What the point does, and nothing else: an error or a panic would end in another way.
    assert_eq!(status.signal(), Some(6), "{point} was not passed: {status}\n{}", house.log());

    let in_the_window = sent_and_not_recorded(&house).await;
    assert!(in_the_window.len() <= 1, "{point}: one at a time, so at most one was on its way");
    let second = house.serve(&[ONE_AT_A_TIME]).await;
    house.all_ended(texts.len() as i64).await;
    let known = recorded(&house).await;
    let mut repeated = 0;
    for (text, messages) in house.answers(BOT, &texts) {
        let ids: Vec<i64> = messages.iter().map(|message| message.id).collect();
        assert!(!ids.is_empty(), "{point}: {text} was never answered");
        assert!(ids.len() <= 2, "{point}: {text} was answered {} times", ids.len());
        assert_eq!(ids.iter().filter(|id| known.contains(id)).count(), 1, "{point}: {text} is recorded once");
        assert!(
            ids.iter().all(|id| known.contains(id) || in_the_window.contains(id)),
            "{point}: {text} was repeated although its answer was recorded"
        );
        repeated += ids.len() - 1;
    }
    let most = usize::from(may_repeat);
    assert!(repeated <= most, "{point}: {repeated} answers were repeated");
    let turns: i64 =
        sqlx::query_scalar("SELECT count(*) FROM read.turns").fetch_one(&house.pool).await.unwrap();
    assert_eq!(turns, texts.len() as i64, "{point}: an update made two turns");
    house.assert_ledger_is_gapless().await;
    house.assert_replay_agrees().await;
    second.stop().await;
}

macro_rules! crash_points {
    ($($name:ident: $point:literal, slow_model: $slow:literal, may_repeat: $repeat:literal;)*) => {
        $(
            #[sqlx::test(migrations = "../migrations")]
            async fn $name(pool: PgPool) {
                survives(pool, $point, $slow, $repeat).await;
            }
        )*

        #[test]
        fn every_crash_point_has_its_test() {
            let mut tested = [$($point),*];
            let mut known = botledger_bot::CRASH_POINTS.to_vec();
            tested.sort_unstable();
            known.sort_unstable();
            assert_eq!(tested.to_vec(), known);
        }
    };
}

// Updates are taken in beside the turns: there the process can die while another turn's answer is out.
crash_points! {
    killed_with_updates_in_hand: "intake_fetched", slow_model: false, may_repeat: true;
    killed_after_storing_before_confirming: "intake_stored", slow_model: false, may_repeat: true;
    killed_after_putting_in_line: "queued", slow_model: false, may_repeat: true;
    killed_before_deciding: "dequeued", slow_model: false, may_repeat: false;
    killed_after_deciding: "decided", slow_model: false, may_repeat: false;
    killed_at_the_first_text: "first_text", slow_model: false, may_repeat: false;
    killed_between_showing_and_recording_it: "start_sent", slow_model: true, may_repeat: true;
    killed_while_showing: "start_recorded", slow_model: true, may_repeat: false;
    killed_with_an_answer_not_stored: "generated", slow_model: false, may_repeat: false;
    killed_with_an_answer_not_sent: "answered", slow_model: false, may_repeat: false;
    killed_between_sending_and_recording_it: "sent", slow_model: false, may_repeat: true;
    killed_after_recording_delivery: "delivered", slow_model: false, may_repeat: false;
}

/// Many turns on their way, killed again and again at moments nobody chose.
#[sqlx::test(migrations = "../migrations")]
async fn killed_at_random_under_load(pool: PgPool) {
    let house = House::build(pool, Partners::default()).await;
    let mut product = house.serve(&[]).await;
    house.open_with_bot(BOT).await;
    house.telegram.behave(Behaviour { duplicate_every: 5, reorder: true });
    let texts = said(20, 6);
    let mut kills = 0;
    // Messages that were out and not in the ledger when the process died: only those may be repeated.
    let mut in_the_window: HashSet<i64> = HashSet::new();
    for round in texts.chunks(40) {
        for (person, text) in round {
            house.telegram.say(BOT, person, text).unwrap();
        }
        // Somewhere in the middle of this round's work, wherever that is on this machine.
        let sent = house.sends().len();
        until("some answers are out", async || house.sends().len() > sent + 7).await;
        product.kill().await;
        kills += 1;
        in_the_window.extend(sent_and_not_recorded(&house).await);
        product = house.serve(&[]).await;
    }
    house.all_ended(texts.len() as i64).await;
    let known = recorded(&house).await;
    let mut repeated = 0;
    for (text, messages) in house.answers(BOT, &texts) {
        let ids: Vec<i64> = messages.iter().map(|message| message.id).collect();
        assert!((1..=1 + kills).contains(&ids.len()), "{text}: {} answers", ids.len());
        assert_eq!(ids.iter().filter(|id| known.contains(id)).count(), 1, "{text} is recorded once");
        for id in ids.iter().filter(|id| !known.contains(id)) {
            assert!(in_the_window.contains(id), "{text} was repeated although its answer was recorded");
        }
        repeated += ids.len() - 1;
    }
    eprintln!("{kills} kills, {} messages, {repeated} answers repeated within the window", texts.len());
    house.assert_ledger_is_gapless().await;
    house.assert_replay_agrees().await;
    product.stop().await;
}
