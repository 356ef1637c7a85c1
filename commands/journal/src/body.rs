use botledger_domain::{BodyId, ConversationId, KeyPurpose, Position, TurnId};
use uuid::Uuid;

use crate::{Journal, JournalError};

/// Where an answer of a model belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Conversation.
    pub conversation: ConversationId,
    /// Session number in it.
    pub session: u32,
    /// Context epoch of the session.
    pub context_epoch: u32,
    /// Body of the message that was answered.
    pub prompt_body: BodyId,
}

/// A sealed body to be stored with its events.
#[derive(Clone, Debug)]
pub struct NewBody {
    pub body_id: BodyId,
    /// Whose key seals it.
    pub owner: Uuid,
    pub purpose: KeyPurpose,
    pub key_version: i32,
    pub nonce: [u8; 24],
    pub ciphertext: Vec<u8>,
    pub turn_id: TurnId,
    /// Only on answers of a model.
    pub place: Option<Place>,
}

/// A sealed body as stored.
#[derive(Clone, Debug)]
pub struct StoredBody {
    pub body_id: BodyId,
    pub owner: Uuid,
    pub purpose: KeyPurpose,
    pub key_version: i32,
    pub nonce: [u8; 24],
    pub ciphertext: Vec<u8>,
    pub turn_id: TurnId,
    /// Of the first event of the set that brought it.
    pub position: Position,
    pub place: Option<Place>,
}

/// A prompt and its answer.
#[derive(Clone, Debug)]
pub struct Exchange {
    /// The person's message; absent when its body was erased.
    pub prompt: Option<StoredBody>,
    /// The model's answer.
    pub reply: StoredBody,
}

struct BodyRow {
    body_id: Uuid,
    owner: Uuid,
    purpose: String,
    key_version: i32,
    nonce: Vec<u8>,
    ciphertext: Vec<u8>,
    turn_id: Uuid,
    position: i64,
    conversation: Option<Uuid>,
    session: Option<i32>,
    context_epoch: Option<i32>,
    prompt_body: Option<Uuid>,
}

impl TryFrom<BodyRow> for StoredBody {
    type Error = JournalError;

    fn try_from(row: BodyRow) -> Result<Self, JournalError> {
        let malformed = || JournalError::MalformedBody { body_id: BodyId(row.body_id) };
        let place = match (row.conversation, row.session, row.context_epoch, row.prompt_body) {
            (Some(conversation), Some(session), Some(epoch), Some(prompt)) => Some(Place {
                conversation: ConversationId(conversation),
                session: u32::try_from(session).map_err(|_| malformed())?,
                context_epoch: u32::try_from(epoch).map_err(|_| malformed())?,
                prompt_body: BodyId(prompt),
            }),
            _ => None,
        };
        Ok(Self {
            body_id: BodyId(row.body_id),
            owner: row.owner,
            purpose: row.purpose.parse().map_err(|_| malformed())?,
            key_version: row.key_version,
            nonce: row.nonce.as_slice().try_into().map_err(|_| malformed())?,
            ciphertext: row.ciphertext,
            turn_id: TurnId(row.turn_id),
            position: Position(row.position),
            place,
        })
    }
}

impl Journal {
    /// A body by id; absent when erased or never stored.
    ///
    /// # Errors
    /// When the database fails or the row is malformed.
    pub async fn body(&self, id: BodyId) -> Result<Option<StoredBody>, JournalError> {
        Ok(self.bodies(&[id]).await?.pop())
    }

    /// Bodies by id, in no order; absent ones are left out.
    ///
    /// # Errors
    /// When the database fails or a row is malformed.
    pub async fn bodies(&self, ids: &[BodyId]) -> Result<Vec<StoredBody>, JournalError> {
        let ids: Vec<Uuid> = ids.iter().map(|id| id.uuid()).collect();
        sqlx::query_as!(
            BodyRow,
            "SELECT body_id, owner, purpose, key_version, nonce, ciphertext, turn_id, position, conversation,
                    session, context_epoch, prompt_body
             FROM message_bodies WHERE body_id = ANY($1)",
            &ids,
        )
        .fetch_all(self.pool())
        .await?
        .into_iter()
        .map(StoredBody::try_from)
        .collect()
    }

    /// The newest answered exchanges of one session and context epoch, newest first: what a model
    /// is shown. Never waits for a read model.
    ///
    /// # Errors
    /// When the database fails or a row is malformed.
    pub async fn context(
        &self,
        conversation: ConversationId,
        session: u32,
        context_epoch: u32,
        limit: i64,
    ) -> Result<Vec<Exchange>, JournalError> {
        let replies = sqlx::query_as!(
            BodyRow,
            "SELECT body_id, owner, purpose, key_version, nonce, ciphertext, turn_id, position, conversation,
                    session, context_epoch, prompt_body
             FROM message_bodies
             WHERE conversation = $1 AND session = $2 AND context_epoch = $3
             ORDER BY position DESC LIMIT $4",
            conversation.uuid(),
            i32::try_from(session).unwrap_or(i32::MAX),
            i32::try_from(context_epoch).unwrap_or(i32::MAX),
            limit,
        )
        .fetch_all(self.pool())
        .await?;
        self.with_prompts(replies).await
    }

    /// Answered exchanges of a whole conversation, or of one session of it, newest first, below a
    /// position.
    ///
    /// # Errors
    /// When the database fails or a row is malformed.
    pub async fn history(
        &self,
        conversation: ConversationId,
        session: Option<u32>,
        before: Option<Position>,
        limit: i64,
    ) -> Result<Vec<Exchange>, JournalError> {
        let replies = sqlx::query_as!(
            BodyRow,
            "SELECT body_id, owner, purpose, key_version, nonce, ciphertext, turn_id, position, conversation,
                    session, context_epoch, prompt_body
             FROM message_bodies
             WHERE conversation = $1 AND ($2::integer IS NULL OR session = $2) AND position < $3
             ORDER BY position DESC LIMIT $4",
            conversation.uuid(),
            session.map(|number| i32::try_from(number).unwrap_or(i32::MAX)),
            before.map_or(i64::MAX, |position| position.0),
            limit,
        )
        .fetch_all(self.pool())
        .await?;
        self.with_prompts(replies).await
    }

    async fn with_prompts(&self, replies: Vec<BodyRow>) -> Result<Vec<Exchange>, JournalError> {
        let replies = replies.into_iter().map(StoredBody::try_from).collect::<Result<Vec<_>, _>>()?;
        let ids: Vec<BodyId> =
            replies.iter().filter_map(|reply| reply.place.map(|place| place.prompt_body)).collect();
        let mut prompts: std::collections::HashMap<BodyId, StoredBody> =
            self.bodies(&ids).await?.into_iter().map(|body| (body.body_id, body)).collect();
        Ok(replies
            .into_iter()
            .map(|reply| Exchange {
                prompt: reply.place.and_then(|place| prompts.remove(&place.prompt_body)),
                reply,
            })
            .collect())
    }
}
