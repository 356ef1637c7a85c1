use std::{collections::VecDeque, sync::Arc};

use botledger_domain::{ConversationId, Position, turn::TurnError};
use botledger_journal::{Exchange, StoredBody};
use chrono::{DateTime, Utc};

use crate::{BodyContent, CommandError, Core, VaultError};

/// A message and the model's answer to it, opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// What the person wrote; absent when it was erased.
    pub prompt: Option<String>,
    /// What the model answered.
    pub reply: String,
    /// Session they belong to.
    pub session: u32,
    /// Of the answer: the cursor for older ones.
    pub position: Position,
    /// When the answer's identifier was made.
    pub answered_at: Option<DateTime<Utc>>,
}

/// What was said in conversations. Texts are sealed, so a search opens what it scans
/// (`ops/decisions/0003`).
#[derive(Clone)]
pub struct Histories {
    core: Arc<Core>,
}

/// Exchanges fetched at once while searching.
const PAGE: i64 = 100;
/// Exchanges a search looks at, at most.
const SCANNED: usize = 5_000;

/// What a search found, and how far it looked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Newest first.
    pub said: Vec<Said>,
    /// Exchanges looked at.
    pub scanned: usize,
    /// Where to go on with older ones; absent when the oldest was looked at.
    pub resume: Option<Position>,
}

type Outcome<T> = Result<T, CommandError<TurnError>>;

impl Histories {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self { core }
    }

    /// The newest exchanges of a conversation, or of one session of it, newest first, below a position.
    ///
    /// # Errors
    /// When ledger or keys cannot be used.
    pub async fn newest(
        &self,
        conversation: ConversationId,
        session: Option<u32>,
        before: Option<Position>,
        limit: i64,
    ) -> Outcome<Vec<Said>> {
        let exchanges = self.core.journal.history(conversation, session, before, limit).await?;
        let mut said = Vec::with_capacity(exchanges.len());
        for exchange in exchanges {
            said.extend(self.open(exchange).await?);
        }
        Ok(said)
    }

    /// Exchanges that hold all of the words, in either text and any case, newest first. It ends with
    /// as many as asked for, or after 5,000 exchanges, and says how far it came.
    ///
    /// # Errors
    /// When ledger or keys cannot be used.
    pub async fn search(
        &self,
        conversation: ConversationId,
        words: &str,
        before: Option<Position>,
        limit: usize,
    ) -> Outcome<Found> {
        let words: Vec<String> = words.split_whitespace().map(str::to_lowercase).collect();
        let mut found = Found { said: Vec::new(), scanned: 0, resume: None };
        let mut page = VecDeque::new();
        let mut before = before;
        while !words.is_empty() {
            if page.is_empty() {
                page.extend(self.core.journal.history(conversation, None, before, PAGE).await?);
            }
            let Some(exchange) = page.pop_front() else { return Ok(found) };
            if found.said.len() == limit || found.scanned == SCANNED {
                found.resume = before;
                return Ok(found);
            }
            before = Some(exchange.reply.position);
            found.scanned += 1;
            let Some(said) = self.open(exchange).await? else { continue };
            let text =
                format!("{}\n{}", said.prompt.as_deref().unwrap_or_default(), said.reply).to_lowercase();
            if words.iter().all(|word| text.contains(word)) {
                found.said.push(said);
            }
        }
        Ok(found)
    }

    async fn open(&self, exchange: Exchange) -> Outcome<Option<Said>> {
        let Some(BodyContent::Reply { text }) = self.body(&exchange.reply).await? else { return Ok(None) };
        let prompt = match &exchange.prompt {
            Some(prompt) => self.body(prompt).await?.and_then(|content| content.text().map(str::to_owned)),
            None => None,
        };
        let answered_at = exchange.reply.body_id.uuid().get_timestamp().and_then(|timestamp| {
            let (seconds, nanos) = timestamp.to_unix();
            DateTime::from_timestamp(i64::try_from(seconds).ok()?, nanos)
        });
        Ok(Some(Said {
            prompt,
            reply: text,
            session: exchange.reply.place.map_or(0, |place| place.session),
            position: exchange.reply.position,
            answered_at,
        }))
    }

    async fn body(&self, body: &StoredBody) -> Outcome<Option<BodyContent>> {
        match self.core.vault.open_body(body).await {
            Ok(content) => Ok(Some(content)),
            Err(VaultError::Shredded) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}
