//! Access lists: the nearest one decides, a denial beats an allowance, everywhere within moments.
#![allow(clippy::unwrap_used, reason = "tests may unwrap")]

mod support;

use std::net::IpAddr;

use botledger_commands::{Access, App, CommandError, ListedAs, NewAccessEntry, WhichList};
use botledger_domain::{
    BotId, ConversationId, SubjectId, WorkspaceId,
    access_list::{AccessDoor, AccessEffect, AccessTarget, Network},
    operator::Role,
};
use chrono::{DateTime, TimeDelta, Utc};
use sqlx::PgPool;
use support::{World, message_in, noon, reason, system};
use uuid::Uuid;

fn entry(who: ListedAs, effect: AccessEffect, expires_at: Option<DateTime<Utc>>) -> NewAccessEntry {
    NewAccessEntry { who, effect, reason: reason("known"), expires_at }
}

fn network(text: &str) -> ListedAs {
    ListedAs::Network(Network::parse(text).unwrap())
}

/// A person who wrote to the bot in a chat, and what the lists say of them.
struct Guest<'a> {
    world: &'a World,
    bot: BotId,
    subject: SubjectId,
    conversation: ConversationId,
}

impl Guest<'_> {
    async fn at(&self, app: &App) -> Access {
        let workspace = self.world.workspace;
        app.access_lists.verdict(workspace, self.bot, self.subject, self.conversation).await.unwrap()
    }

    async fn seen(&self) -> &'static str {
        match self.at(&self.world.app).await {
            Access::Unlisted => "unlisted",
            Access::Allowed(_) => "allowed",
            Access::Denied { entry: Some(_), .. } => "denied",
            Access::Denied { entry: None, .. } => "closed out",
        }
    }
}

impl World {
    async fn guest(&self, update_id: i64, user: i64, chat_id: i64) -> Guest<'_> {
        let turn = self.receive(message_in(update_id, user, chat_id, "hello")).await;
        let message = self.app.turns.load(turn).await.unwrap().state.message.unwrap();
        Guest { world: self, bot: self.bot, subject: message.subject, conversation: message.conversation }
    }

    fn list(&self, bot: Option<BotId>) -> WhichList {
        WhichList { workspace: self.workspace, bot }
    }

    async fn say(&self, bot: Option<BotId>, who: ListedAs, effect: AccessEffect) {
        let entries = vec![entry(who, effect, None)];
        self.app.access_lists.add(&system(), self.list(bot), entries, None).await.unwrap();
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn the_nearest_list_that_says_something_decides(pool: PgPool) {
    let world = World::new(pool).await;
    let person = world.guest(1, 7, -100).await;
    let friend = world.guest(2, 8, -100).await;
    assert_eq!(person.seen().await, "unlisted");
    world.say(None, ListedAs::TelegramUser(7), AccessEffect::Deny).await;
    assert_eq!((person.seen().await, friend.seen().await), ("denied", "unlisted"));
    // The bot's own list is nearer.
    world.say(Some(world.bot), ListedAs::Person(person.subject), AccessEffect::Allow).await;
    assert_eq!(person.seen().await, "allowed");
    let elsewhere = Guest { bot: BotId(Uuid::now_v7()), ..world.guest(3, 7, 7).await };
    assert_eq!(elsewhere.seen().await, "denied");
    // Within a list a denial beats an allowance.
    let chat = ListedAs::TelegramChat { bot: world.bot, chat_id: -100, thread_id: None };
    world.say(Some(world.bot), chat.clone(), AccessEffect::Deny).await;
    assert_eq!((person.seen().await, friend.seen().await), ("denied", "denied"));
    let list = world.list(Some(world.bot));
    world.app.access_lists.remove(&system(), list, &[chat], reason("calm"), None).await.unwrap();
    assert_eq!((person.seen().await, friend.seen().await), ("allowed", "unlisted"));
    support::replays_to_the_same(&world.app, &world.pool).await;
}

#[sqlx::test(migrations = "../migrations")]
async fn a_closed_door_lets_in_whom_either_list_allows(pool: PgPool) {
    let world = World::new(pool).await;
    let [one, two, three, four] = [
        world.guest(1, 1, 1).await,
        world.guest(2, 2, 2).await,
        world.guest(3, 3, -100).await,
        world.guest(4, 4, 4).await,
    ];
    let lists = &world.app.access_lists;
    let list = world.list(Some(world.bot));
    lists.close(&system(), list, AccessDoor::Messages, reason("a pilot"), None).await.unwrap();
    world.say(Some(world.bot), ListedAs::Person(one.subject), AccessEffect::Allow).await;
    world.say(None, ListedAs::Person(two.subject), AccessEffect::Allow).await;
    world.say(None, ListedAs::Chat(three.conversation), AccessEffect::Allow).await;
    assert_eq!([one.seen().await, two.seen().await, three.seen().await], ["allowed"; 3]);
    assert_eq!(four.seen().await, "closed out");
    lists.open(&system(), list, AccessDoor::Messages, reason("for all")).await.unwrap();
    assert_eq!(four.seen().await, "unlisted");
}

#[sqlx::test(migrations = "../migrations")]
async fn other_processes_see_an_entry_within_moments_and_its_end_at_once(pool: PgPool) {
    let world = World::new(pool).await;
    let other = world.second_instance();
    let guest = world.guest(1, 7, 7).await;
    assert_eq!(guest.at(&other).await, Access::Unlisted);
    let end = noon() + TimeDelta::hours(1);
    let entries = vec![entry(ListedAs::Person(guest.subject), AccessEffect::Deny, Some(end))];
    world.app.access_lists.add(&system(), world.list(None), entries, None).await.unwrap();
    let until = async |what: &str, denied: bool| {
        let seen = async {
            while matches!(guest.at(&other).await, Access::Denied { until: Some(_), .. }) != denied {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(30), seen).await.expect(what);
    };
    until("the entry is seen", true).await;
    world.clock.advance(TimeDelta::hours(1));
    assert_eq!(guest.at(&other).await, Access::Unlisted);
}

#[sqlx::test(migrations = "../migrations")]
async fn a_number_that_telegram_gives_is_not_kept(pool: PgPool) {
    let world = World::new(pool).await;
    let lists = &world.app.access_lists;
    let guest = world.guest(1, 4_561_237, 4_561_237).await;
    let as_person = lists.target(world.workspace, &ListedAs::TelegramUser(4_561_237));
    assert_eq!(as_person, AccessTarget::Person { subject: guest.subject });
    world.say(None, ListedAs::TelegramUser(4_561_237), AccessEffect::Deny).await;
    assert_eq!(guest.seen().await, "denied");
    let kept: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM events WHERE payload::text LIKE '%4561237%' OR metadata::text LIKE '%4561237%'",
    )
    .fetch_one(&world.pool)
    .await
    .unwrap();
    assert_eq!(kept, 0);
}

#[sqlx::test(migrations = "../migrations")]
async fn addresses_are_asked_about_by_workspace(pool: PgPool) {
    let world = World::new(pool).await;
    let lists = &world.app.access_lists;
    let here: IpAddr = "192.0.2.7".parse().unwrap();
    let add = async |who: ListedAs, effect, from| {
        lists.add(&system(), world.list(None), vec![entry(who, effect, None)], from).await
    };
    add(network("192.0.2.0/24"), AccessEffect::Deny, None).await.unwrap();
    let said = lists.of_address(world.workspace, here).await.unwrap();
    assert!(matches!(said, Access::Denied { entry: Some(_), until: None }), "{said:?}");
    let elsewhere = WorkspaceId(Uuid::now_v7());
    assert_eq!(lists.of_address(elsewhere, here).await.unwrap(), Access::Unlisted);
    // Who is refused already is not locked out anew; who is not, is kept from it.
    add(network("192.0.2.7"), AccessEffect::Deny, Some(here)).await.unwrap();
    let inside: IpAddr = "198.51.100.7".parse().unwrap();
    let refused = add(network("198.51.0.0/16"), AccessEffect::Deny, Some(inside)).await.unwrap_err();
    assert_eq!(refused.code(), "ACCESS_LIST_LOCKS_YOU_OUT");
    assert_eq!(lists.of_address(world.workspace, inside).await.unwrap(), Access::Unlisted);
}

#[sqlx::test(migrations = "../migrations")]
async fn who_may_keep_lists(pool: PgPool) {
    let world = World::new(pool).await;
    let lists = &world.app.access_lists;
    let some = || vec![entry(ListedAs::TelegramUser(7), AccessEffect::Deny, None)];
    for role in [Role::Moderator, Role::Auditor, Role::Analyst, Role::Member] {
        let refused = lists.add(&world.operator(role), world.list(None), some(), None).await;
        assert!(matches!(refused, Err(CommandError::Forbidden { .. })), "{role:?}");
    }
    let admin = world.operator(Role::Admin);
    let foreign = WhichList { workspace: WorkspaceId(Uuid::now_v7()), bot: None };
    let refused = lists.add(&admin, foreign, some(), None).await;
    assert!(matches!(refused, Err(CommandError::NotFound { what: "workspace" })));
    let nobodys = world.list(Some(BotId(Uuid::now_v7())));
    let refused = lists.add(&admin, nobodys, some(), None).await;
    assert!(matches!(refused, Err(CommandError::NotFound { what: "bot" })));
    lists.add(&admin, world.list(Some(world.bot)), some(), None).await.unwrap();
}
