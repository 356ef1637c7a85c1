//! Several streams at one moment.

use botledger_domain::{bot::Bot, chat_session::ChatSession};
use botledger_journal::{Load, Wanted};
use sqlx::PgPool;

use crate::support::{journal, set_on, stream, take_back};

#[sqlx::test(migrations = "../../migrations")]
async fn what_is_loaded_together_is_what_each_load_gives(pool: PgPool) {
    let (journal, other) = (journal(&pool), journal(&pool));
    let streams = [stream(), stream(), stream()];
    journal.append(set_on(streams[0], 0, 3)).await.unwrap();
    journal.append(set_on(streams[1], 0, 1)).await.unwrap();
    for round in 0..3 {
        let mut chats: Vec<_> = streams.iter().map(|id| Wanted::<ChatSession>::new(id.to_string())).collect();
        let mut nobody = Wanted::<Bot>::new(streams[0].to_string());
        let mut wanted: Vec<&mut dyn Load> = chats.iter_mut().map(|chat| chat as &mut dyn Load).collect();
        wanted.push(&mut nobody);
        journal.load_together(&mut wanted).await.unwrap();
        assert_eq!(nobody.loaded().version, 0, "an id of another type");
        for (chat, id) in chats.into_iter().zip(streams) {
            let (chat, alone) = (chat.loaded(), other.load::<ChatSession>(&id.to_string()).await.unwrap());
            assert_eq!((&chat.id, chat.version, &chat.state), (&alone.id, alone.version, &alone.state));
        }
        // What is in memory now is short by what others wrote.
        other.append(set_on(streams[1], round + 1, 1)).await.unwrap();
    }
    journal.load_together(&mut []).await.unwrap();
}

#[sqlx::test(migrations = "../../migrations")]
async fn when_memory_outlived_its_events_all_are_read_anew(pool: PgPool) {
    let journal = journal(&pool);
    let (kept, shortened) = (stream(), stream());
    journal.append(set_on(kept, 0, 1)).await.unwrap();
    journal.append(set_on(shortened, 0, 1)).await.unwrap();
    journal.append(set_on(shortened, 1, 2)).await.unwrap();
    let versions = async || {
        let mut one = Wanted::<ChatSession>::new(kept.to_string());
        let mut two = Wanted::<ChatSession>::new(shortened.to_string());
        journal.load_together(&mut [&mut one, &mut two]).await.unwrap();
        (one.loaded().version, two.loaded().version)
    };
    assert_eq!(versions().await, (1, 3));
    take_back(&pool, 2).await;
    assert_eq!(versions().await, (1, 1), "the events are gone");
}
