//! Proofs over the ledger: signed heads of its Merkle tree, and what follows from them.

use async_graphql::{Context, Object, SimpleObject};
use botledger_commands::{InclusionProof, StoredCheckpoint, TreeError};
use botledger_domain::{Position, operator::Permission};
use chrono::{DateTime, Utc};

use super::{
    Needs, Scope,
    error::{ApiError, ApiResult},
    event::is_own,
    scalars::At,
};

/// A proof reads some dozens of hashes.
const PROOF_COST: usize = 50;

pub(crate) struct Checkpoint(StoredCheckpoint);

/// A signed head of the Merkle tree over the whole ledger, all workspaces (C2SP tlog-checkpoint; the event
/// at position n is leaf n - 1).
#[Object]
impl Checkpoint {
    /// Name of the log, and of the key that signed.
    async fn origin(&self) -> &str {
        &self.0.checkpoint.origin
    }

    /// Events under it, and the position of the last one.
    async fn size(&self) -> At {
        at(self.0.checkpoint.size)
    }

    /// Head of the tree, hex.
    async fn root_hash(&self) -> String {
        hex::encode(self.0.checkpoint.root)
    }

    /// The signed note, letter by letter: what to keep elsewhere. Cosignatures of witnesses included.
    async fn note(&self) -> String {
        self.0.note.to_string()
    }

    /// By the clock of the process that signed.
    async fn signed_at(&self) -> DateTime<Utc> {
        self.0.signed_at
    }
}

/// That one event is in the ledger.
#[derive(SimpleObject)]
#[graphql(name = "InclusionProof")]
pub(crate) struct Inclusion {
    /// Number of the event's leaf, its position less 1.
    leaf_index: At,
    /// From the leaf's sibling up, hex (RFC 6962 section 2.1.1).
    hashes: Vec<String>,
    /// The signed head they lead to.
    checkpoint: Checkpoint,
    /// All of it as a file (C2SP tlog-proof).
    text: String,
}

/// That the ledger of one head begins with that of an earlier one.
#[derive(SimpleObject)]
#[graphql(name = "ConsistencyProof")]
pub(crate) struct Consistency {
    /// Hex, in the order of RFC 6962 section 2.1.2.
    hashes: Vec<String>,
    /// The earlier head.
    old: Checkpoint,
    /// The later head.
    new: Checkpoint,
    /// All of it as a file: what a witness is sent (C2SP tlog-witness `add-checkpoint`).
    text: String,
}

fn at(number: u64) -> At {
    At(Position(i64::try_from(number).unwrap_or(i64::MAX)))
}

impl From<TreeError> for ApiError {
    fn from(error: TreeError) -> Self {
        match error {
            TreeError::Database(source) => Self::unavailable(source),
            TreeError::NoSuchEvent { .. } | TreeError::Backwards { .. } => Self::bad_input(error.to_string()),
            // Whoever may ask for proofs is whoever has to know.
            error => Self::conflict(error.to_string()),
        }
    }
}

async fn find(scope: &Scope<'_>, size: Option<At>) -> ApiResult<Option<StoredCheckpoint>> {
    let tree = &scope.services.app.tree;
    Ok(match size {
        Some(At(size)) => tree.at(size.0.unsigned_abs()).await?,
        None => tree.newest().await?,
    })
}

async fn get(scope: &Scope<'_>, size: Option<At>) -> ApiResult<StoredCheckpoint> {
    find(scope, size).await?.ok_or_else(|| ApiError::not_found("checkpoint"))
}

#[derive(Default)]
pub(crate) struct ProofQuery;

#[Object]
impl ProofQuery {
    /// The signed head over exactly so many events; the newest when `size` is null.
    #[graphql(guard = "Needs(Permission::ReadLedger)")]
    async fn checkpoint(&self, ctx: &Context<'_>, size: Option<At>) -> ApiResult<Option<Checkpoint>> {
        Ok(find(&Scope::of(ctx)?, size).await?.map(Checkpoint))
    }

    /// The proof that an event of the own workspace is in the ledger, under the head over exactly `size`
    /// events, or the newest.
    #[graphql(guard = "Needs(Permission::ReadLedger)", complexity = "PROOF_COST + child_complexity")]
    async fn inclusion_proof(
        &self,
        ctx: &Context<'_>,
        position: At,
        size: Option<At>,
    ) -> ApiResult<Inclusion> {
        let scope = Scope::of(ctx)?;
        let At(position) = position;
        let event = scope.services.log.after(Position(position.0 - 1), 1).await?.pop();
        let own = match event.filter(|event| event.position == position) {
            Some(event) => is_own(scope.services, scope.request, &event).await?,
            None => false,
        };
        if !own {
            return Err(ApiError::not_found("event"));
        }
        let under = get(&scope, size).await?;
        let proof = scope.services.app.tree.prove(position.0.unsigned_abs(), &under).await?;
        let text = proof.to_string();
        let InclusionProof { index, hashes, .. } = proof;
        Ok(Inclusion {
            leaf_index: at(index),
            hashes: hashes.iter().map(hex::encode).collect(),
            checkpoint: Checkpoint(under),
            text,
        })
    }

    /// The proof that the ledger under the head over `to` events, or the newest, begins with that under the
    /// head over `from` events.
    #[graphql(guard = "Needs(Permission::ReadLedger)", complexity = "PROOF_COST + child_complexity")]
    async fn consistency_proof(&self, ctx: &Context<'_>, from: At, to: Option<At>) -> ApiResult<Consistency> {
        let scope = Scope::of(ctx)?;
        let (old, new) = (get(&scope, Some(from)).await?, get(&scope, to).await?);
        let proof = scope.services.app.tree.consistency(&old.checkpoint, &new).await?;
        Ok(Consistency {
            hashes: proof.hashes.iter().map(hex::encode).collect(),
            text: proof.to_string(),
            old: Checkpoint(old),
            new: Checkpoint(new),
        })
    }
}
