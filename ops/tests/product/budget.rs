//! One budget of a workspace, two processes, far more messages than it has, and `kill -9` in the middle:
//! never one unit over, at no position of the ledger, and nothing held in the end.

use std::collections::BTreeMap;

use botledger_domain::account::Amounts;
use botledger_domain::budget_share::BudgetShareEvent;
use botledger_domain::quota::QuotaEvent;
use botledger_ops::cli::up::free_address;
use botledger_sim::Person;
use sqlx::PgPool;
use uuid::Uuid;

use crate::house::{House, Partners, Running, until};

const BOTS: [&str; 2] = ["first_bot", "second_bot"];
const PEOPLE: i64 = 100;
const MESSAGES_EACH: i64 = 5;
const BUDGET: u64 = 300;
/// So that either process has one of the bots.
const ONE_BOT: (&str, &str) = ("BOTLEDGER_BOTS__MAX_BOTS", "1");

/// Another process of the same installation, at addresses of its own.
async fn second(house: &House) -> Running {
    let (listen, admin) = (free_address().unwrap(), free_address().unwrap());
    house.start(&[
        ("BOTLEDGER_HTTP__LISTEN", listen.as_str()),
        ("BOTLEDGER_HTTP__ADMIN_LISTEN", admin.as_str()),
        ONE_BOT,
    ])
}

async fn admitted(house: &House) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM events WHERE event_type = 'turn_admitted'")
        .fetch_one(&house.pool)
        .await
        .unwrap()
}

/// What a holder's holds come to, event by event.
#[derive(Default)]
struct Books {
    held: BTreeMap<Uuid, Amounts>,
    charged: Amounts,
}

impl Books {
    fn reserve(&mut self, reservation: Uuid, held: Amounts) {
        assert!(self.held.insert(reservation, held).is_none(), "{reservation} is held twice");
    }

    fn settle(&mut self, reservation: Uuid, charged: Amounts) {
        let held = self.held.remove(&reservation).expect("only what is held is settled, and once");
        assert!(held.covers(charged));
        self.charged = self.charged.plus(charged);
    }

    fn release(&mut self, reservation: Uuid) {
        self.held.remove(&reservation).expect("only what is held is released, and once");
    }

    /// Charged and held.
    fn taken(&self) -> Amounts {
        self.charged.plus(Amounts::sum(self.held.values()))
    }
}

/// Reads the ledger from its beginning. Gives the budget's books and those of all people.
async fn audit(house: &House) -> (Books, BTreeMap<String, Books>) {
    let rows: Vec<(String, String, String)> = sqlx::query_as(
        "SELECT aggregate_type, aggregate_id, payload::text FROM events
         WHERE aggregate_type IN ('budget_share', 'quota') ORDER BY position",
    )
    .fetch_all(&house.pool)
    .await
    .unwrap();
    let (mut budget, mut people) = (Books::default(), BTreeMap::<String, Books>::new());
    for (kind, id, payload) in rows {
        if kind == "quota" {
            let books = people.entry(id).or_default();
            match serde_json::from_str(&payload).unwrap() {
                QuotaEvent::TokensReserved { reservation, held, .. } => {
                    books.reserve(reservation.uuid(), held)
                }
                QuotaEvent::TokensSettled { reservation, charged, .. } => {
                    books.settle(reservation.uuid(), charged);
                }
                QuotaEvent::TokensReleased { reservation, .. } => books.release(reservation.uuid()),
                _ => {}
            }
            continue;
        }
        match serde_json::from_str(&payload).unwrap() {
            BudgetShareEvent::MoneyReserved { reservation, held, .. } => {
                budget.reserve(reservation.uuid(), held);
                assert!(budget.taken().messages <= BUDGET, "overshot: {:?}", budget.taken());
            }
            BudgetShareEvent::MoneySettled { reservation, charged, .. } => {
                budget.settle(reservation.uuid(), charged);
            }
            BudgetShareEvent::MoneyReleased { reservation, .. } => budget.release(reservation.uuid()),
            BudgetShareEvent::ShareGranted { .. } | BudgetShareEvent::ShareReported { .. } => {}
        }
    }
    (budget, people)
}

#[sqlx::test(migrations = "../migrations")]
async fn a_budget_is_never_overshot_and_holds_nothing_in_the_end(pool: PgPool) {
    let house = House::build(pool, Partners::default()).await;
    let opening = house.serve(&[]).await;
    house.open_with_bot(BOTS[0]).await;
    house.add_bot(BOTS[1]).await;
    let limit = format!("messages/month={BUDGET}");
    house.told(&["budget", "set", "workspace", "--limit", &limit, "--shares", "8"]).await;
    opening.stop().await;

    // Everything is there before anybody looks: both processes begin with a crowd.
    for bot in BOTS {
        for n in 0..MESSAGES_EACH {
            for person in 1..=PEOPLE {
                house.telegram.say(bot, &Person::number(person), &format!("text {n} of {person}")).unwrap();
            }
        }
    }
    let doomed = house.serve(&[ONE_BOT]).await;
    let other = second(&house).await;
    until("many are on their way", async || admitted(&house).await > 60).await;
    doomed.kill().await;
    let at_the_kill = admitted(&house).await;
    let heir = house.serve(&[ONE_BOT]).await;
    until("it goes on", async || admitted(&house).await > at_the_kill + 20).await;
    other.kill().await;
    let last = second(&house).await;

    let turns = BOTS.len() as i64 * PEOPLE * MESSAGES_EACH;
    house.all_ended(turns).await;
    let (budget, people) = audit(&house).await;
    assert_eq!(budget.held, BTreeMap::new(), "nothing is held in the budget");
    assert!(people.values().all(|books| books.held.is_empty()), "nor in anybody's quota");
    let failed: i64 = sqlx::query_scalar("SELECT count(*) FROM events WHERE event_type = 'reply_failed'")
        .fetch_one(&house.pool)
        .await
        .unwrap();
    assert_eq!((failed, budget.charged.messages), (0, BUDGET), "all of it is used, and not one more");
    let of_people: u64 = people.values().map(|books| books.charged.messages).sum();
    assert_eq!(of_people, BUDGET, "quotas and budget tell the same");
    let refused: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM events WHERE event_type = 'message_refused'
         AND payload #>> '{reason,kind}' = 'budget_exhausted'",
    )
    .fetch_one(&house.pool)
    .await
    .unwrap();
    assert_eq!(refused, turns - BUDGET as i64);
    let shown = house.told(&["budget", "show", "workspace", "--json"]).await;
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!((&shown[0]["remaining"], &shown[0]["reserved"]), (&"0".into(), &"0".into()), "{shown}");
    house.assert_ledger_is_gapless().await;
    house.assert_replay_agrees().await;
    heir.stop().await;
    last.stop().await;
}
