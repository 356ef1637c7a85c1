//! Sessions, history and search of conversations, and what is known of people.
#![allow(clippy::unwrap_used, reason = "tests may unwrap")]

mod support;

use botledger_commands::{Decision, IncomingKind, PersonFacts, Said};
use botledger_domain::{ConversationId, Language, bot::BotSettings, chat_session::MAX_SESSIONS};
use sqlx::PgPool;
use support::{
    World, by_model, daily, event_count, event_types, message, message_in, person, replays_to_the_same,
    roomy, system,
};

fn conversation_of(world: &World, user: i64) -> ConversationId {
    ConversationId::of_chat(world.bot, world.app.core.vault.chat_pseudonym(world.bot, user), None)
}

fn prompts(said: &[Said]) -> Vec<&str> {
    said.iter().map(|said| said.prompt.as_deref().unwrap_or("(erased)")).collect()
}

#[sqlx::test(migrations = "../migrations")]
async fn sessions_are_opened_named_and_switched(pool: PgPool) {
    let world = World::new(pool.clone()).await;
    let (sessions, chat, person) = (&world.app.sessions, conversation_of(&world, 7), world.subject(7));
    for number in 1..=2 {
        let opened = sessions.open(&system(), chat, world.bot, person).await.unwrap();
        assert_eq!(opened.after.state.current, number);
    }
    sessions.switch(&system(), chat, 1).await.unwrap();
    let before = event_count(&pool).await;
    sessions.switch(&system(), chat, 1).await.unwrap();
    assert_eq!(event_count(&pool).await, before, "already there");
    assert_eq!(sessions.switch(&system(), chat, 3).await.unwrap_err().code(), "SESSION_UNKNOWN");
    assert_eq!(sessions.rename(&system(), chat, person, 3, "x").await.unwrap_err().code(), "SESSION_UNKNOWN");
    sessions.rename(&system(), chat, person, 1, "отпуск").await.unwrap();
    let title = sessions.of(chat).await.unwrap().state.sessions[&1].title.clone().unwrap();
    assert_eq!(world.app.core.vault.open(&title).await.unwrap().as_slice(), "отпуск".as_bytes());
    sessions.clear_context(&system(), chat).await.unwrap();
    assert_eq!(sessions.of(chat).await.unwrap().state.sessions[&1].context_epoch, 1);
    let elsewhere = conversation_of(&world, 8);
    sessions.clear_context(&system(), elsewhere).await.unwrap();
    assert_eq!(sessions.of(elsewhere).await.unwrap().version, 0, "nothing to forget");
    replays_to_the_same(&world.app, &pool).await;
}

#[sqlx::test(migrations = "../migrations")]
async fn a_conversation_holds_so_many_sessions_and_no_more(pool: PgPool) {
    let world = World::new(pool.clone()).await;
    let (sessions, chat, person) = (&world.app.sessions, conversation_of(&world, 7), world.subject(7));
    // The last but one, as the thousand before it would have left it.
    sessions.open(&system(), chat, world.bot, person).await.unwrap();
    let row: (String, String) = sqlx::query_as(
        "SELECT payload::text, metadata::text FROM events WHERE aggregate_type = 'chat_session'",
    )
    .fetch_one(&pool)
    .await
    .unwrap();
    let payloads: Vec<String> =
        (2..MAX_SESSIONS).map(|n| row.0.replace("\"session\":1", &format!("\"session\":{n}"))).collect();
    sqlx::query(
        "INSERT INTO events (aggregate_type, aggregate_id, sequence, event_type, event_version, payload, metadata,
             position, recorded_at, leaf_hash)
         SELECT 'chat_session', $1, n + 1, 'session_opened', '1.0', p::json, $2::json,
             (SELECT max(position) FROM events) + n, now(), sha256('')
         FROM unnest($3::text[]) WITH ORDINALITY AS u (p, n)",
    )
    .bind(chat.to_string())
    .bind(row.1)
    .bind(payloads)
    .execute(&pool)
    .await
    .unwrap();
    let last = sessions.open(&system(), chat, world.bot, person).await.unwrap();
    assert_eq!(last.after.state.current, MAX_SESSIONS);
    let refused = sessions.open(&system(), chat, world.bot, person).await.unwrap_err();
    assert_eq!(refused.code(), "SESSION_TOO_MANY");
    sessions.switch(&system(), chat, 1).await.unwrap();
}

#[sqlx::test(migrations = "../migrations")]
async fn the_model_is_shown_the_current_session_since_its_context_was_cleared(pool: PgPool) {
    let world = World::new(pool).await;
    let (sessions, chat, person) = (&world.app.sessions, conversation_of(&world, 7), world.subject(7));
    let asked = async |update_id| {
        let turn = world.receive(message(update_id, 7, "and now?")).await;
        let decision = world.app.gate.decide(&system(), turn, world.fence).await.unwrap();
        let Decision::Admitted(admitted) = decision else { panic!("{decision:?}") };
        admitted.request.messages.into_iter().map(|message| message.content).collect::<Vec<_>>()
    };
    world.exchange(1, 7, "one", "eins").await;
    world.exchange(2, 7, "two", "zwei").await;
    assert_eq!(asked(3).await, ["one", "eins", "two", "zwei", "and now?"]);
    sessions.clear_context(&system(), chat).await.unwrap();
    assert_eq!(asked(4).await, ["and now?"]);
    sessions.open(&system(), chat, world.bot, person).await.unwrap();
    world.exchange(5, 7, "three", "drei").await;
    assert_eq!(asked(6).await, ["three", "drei", "and now?"]);
    sessions.switch(&system(), chat, 1).await.unwrap();
    assert_eq!(asked(7).await, ["and now?"], "cleared is cleared, also after coming back");
    world.exchange(8, 8, "mine", "deins").await;
    assert_eq!(asked(9).await, ["and now?"], "nothing of other people");
}

#[sqlx::test(migrations = "../migrations")]
async fn history_is_paged_newest_first_by_session(pool: PgPool) {
    let world = World::new(pool.clone()).await;
    let (histories, chat) = (&world.app.histories, conversation_of(&world, 7));
    world.exchange(1, 7, "one", "eins").await;
    world.exchange(2, 7, "two", "zwei").await;
    world.app.sessions.open(&system(), chat, world.bot, world.subject(7)).await.unwrap();
    let third = world.exchange(3, 7, "three", "drei").await;
    world.exchange(4, 8, "of somebody else", "secret").await;
    let all = histories.newest(chat, None, None, 10).await.unwrap();
    assert_eq!(prompts(&all), ["three", "two", "one"]);
    assert_eq!(all.iter().map(|said| said.session).collect::<Vec<_>>(), [2, 1, 1]);
    assert_eq!(prompts(&histories.newest(chat, None, None, 2).await.unwrap()), ["three", "two"]);
    let older = histories.newest(chat, None, Some(all[1].position), 10).await.unwrap();
    assert_eq!(prompts(&older), ["one"]);
    assert_eq!(prompts(&histories.newest(chat, Some(1), None, 10).await.unwrap()), ["two", "one"]);
    // A message that was erased leaves the answer; an answer that was erased leaves nothing.
    sqlx::query("DELETE FROM message_bodies WHERE turn_id = $1 AND conversation IS NULL")
        .bind(third.uuid())
        .execute(&pool)
        .await
        .unwrap();
    assert_eq!(prompts(&histories.newest(chat, None, None, 1).await.unwrap()), ["(erased)"]);
}

#[sqlx::test(migrations = "../migrations")]
async fn search_finds_words_in_any_case_in_ones_own_conversation_only(pool: PgPool) {
    let world = World::new(pool).await;
    let (histories, chat) = (&world.app.histories, conversation_of(&world, 7));
    world.exchange(1, 7, "Как варить БОРЩ?", "Возьмите свёклу и капусту.").await;
    world.exchange(2, 7, "what is a Soup", "БОРЩ is one, щи is another").await;
    world.exchange(3, 7, "100% _sure_?", "Yes.").await;
    world.exchange(4, 8, "борщ у соседа", "тайна").await;
    let find = async |words: &str| histories.search(chat, words, None, 10).await.unwrap().said;
    assert_eq!(prompts(&find("борщ").await), ["what is a Soup", "Как варить БОРЩ?"]);
    assert_eq!(prompts(&find("  КАПУСТУ борщ ").await), ["Как варить БОРЩ?"], "both words, in either text");
    assert_eq!(prompts(&find("soup щи").await), ["what is a Soup"]);
    assert_eq!(prompts(&find("% _").await), ["100% _sure_?"], "no pattern characters");
    assert!(find("соседа").await.is_empty() && find("тайна").await.is_empty());
    assert!(find("").await.is_empty() && find("борщ nothing").await.is_empty());
    let one = histories.search(chat, "борщ", None, 1).await.unwrap();
    assert_eq!((prompts(&one.said), one.scanned), (vec!["what is a Soup"], 2), "the second of three");
    let rest = histories.search(chat, "борщ", one.resume, 10).await.unwrap();
    assert_eq!((prompts(&rest.said), rest.scanned, rest.resume), (vec!["Как варить БОРЩ?"], 1, None));
    let newest = &find("борщ").await[0];
    let older = histories.search(chat, "борщ", Some(newest.position), 10).await.unwrap();
    assert_eq!(prompts(&older.said), ["Как варить БОРЩ?"]);
}

#[sqlx::test(migrations = "../migrations")]
async fn a_search_looks_past_one_page(pool: PgPool) {
    let world = World::new(pool).await;
    let chat = conversation_of(&world, 7);
    world.exchange(1, 7, "the needle", "found").await;
    // Many people in one chat, so that they need not wait for each other's quota.
    let hay = (2..=103).map(|n| message_in(n, 1_000 + n, 7, "hay")).collect();
    let received = world.app.turns.receive_batch(&system(), world.bot, world.fence, hay).await.unwrap();
    futures::future::join_all(received.iter().map(async |one| {
        world.app.gate.decide(&system(), one.turn, world.fence).await.unwrap();
        world.app.turns.answer(&system(), one.turn, world.fence, by_model(1, 1), "straw", 1).await.unwrap();
    }))
    .await;
    let found = world.app.histories.search(chat, "needle", None, 5).await.unwrap();
    assert_eq!((prompts(&found.said), found.scanned, found.resume), (vec!["the needle"], 103, None));
}

#[sqlx::test(migrations = "../migrations")]
async fn people_are_noted_when_new_or_renamed_and_choose_their_language(pool: PgPool) {
    let world = World::new(pool.clone()).await;
    let (subjects, workspace, bot) = (&world.app.subjects, world.workspace, world.bot);
    let unknown = subjects.choose_language(&system(), world.subject(7), Language::Ru).await;
    assert_eq!(unknown.unwrap_err().code(), "SUBJECT_UNKNOWN");
    assert!(subjects.profile(world.subject(7)).await.unwrap().is_none());
    let facts = PersonFacts { language_tag: Some("ru-RU".to_owned()), ..person(7) };
    let subject = world.subject(7);
    let see = async |facts: &PersonFacts| {
        subjects.see(&system(), workspace, bot, facts, Language::En).await.unwrap()
    };
    assert_eq!(see(&facts).await, Language::Ru);
    for _ in 0..2 {
        see(&facts).await;
    }
    let renamed = PersonFacts { username: Some("new_name".to_owned()), ..facts.clone() };
    for _ in 0..2 {
        see(&renamed).await;
    }
    assert_eq!(subjects.profile(subject).await.unwrap().unwrap().username.as_deref(), Some("new_name"));
    for _ in 0..2 {
        subjects.choose_language(&system(), subject, Language::En).await.unwrap();
    }
    // The client speaks Russian still; the person chose.
    assert_eq!(see(&renamed).await, Language::En);
    see(&facts).await;
    assert_eq!(
        event_types(&pool, "subject", &subject.to_string()).await,
        ["first_seen", "profile_changed", "language_chosen", "profile_changed"],
    );
    let message = world.receive(message(1, 7, "hi")).await;
    assert_eq!(world.app.turns.load(message).await.unwrap().state.message.unwrap().language, Language::En);
    replays_to_the_same(&world.app, &pool).await;
}

#[sqlx::test(migrations = "../migrations")]
async fn newcomers_are_spoken_to_in_the_bots_language_unless_their_client_names_one(pool: PgPool) {
    let settings = BotSettings { default_language: Language::Ru, ..roomy() };
    let world = World::with(pool, daily(1_000), settings).await;
    let tags = [
        (None, Language::Ru),
        (Some("de-AT"), Language::Ru),
        (Some("en-GB"), Language::En),
        (Some("uk"), Language::Ru),
    ];
    for (n, (tag, spoken)) in (1..).zip(tags) {
        let mut update = message(n, n, "hi");
        let IncomingKind::Message { user, .. } = &mut update.kind else { unreachable!() };
        user.language_tag = tag.map(str::to_owned);
        let turn = world.receive(update).await;
        let known = world.app.turns.load(turn).await.unwrap().state.message.unwrap();
        assert_eq!(known.language, spoken, "{tag:?}");
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn one_person_is_two_pseudonyms_in_two_workspaces(pool: PgPool) {
    let world = World::new(pool).await;
    let vault = &world.app.core.vault;
    let elsewhere = botledger_domain::WorkspaceId(uuid::Uuid::now_v7());
    assert_ne!(vault.subject_id(world.workspace, 7), vault.subject_id(elsewhere, 7));
    assert_ne!(vault.subject_id(world.workspace, 7), vault.subject_id(world.workspace, 8));
    assert_eq!(world.second_instance().core.vault.subject_id(world.workspace, 7), world.subject(7));
}
