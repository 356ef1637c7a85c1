use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::{AsRefStr, EnumString};
use uuid::Uuid;

use crate::BodyId;

/// What a data key may be used for: retention and erasure differ by purpose.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    JsonSchema,
    AsRefStr,
    EnumString,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum KeyPurpose {
    /// Names, usernames, titles.
    Profile,
    /// Message bodies.
    Messages,
    /// Bot tokens and webhook secrets.
    Credentials,
}

/// A small personal or secret value inside an event, sealed with its owner's data key
/// (XChaCha20-Poly1305). Without the key it is noise, and stays valid as part of the ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Sealed {
    /// Whose key: a subject, a bot or an operator.
    pub owner: Uuid,
    /// Which of the owner's keys.
    pub purpose: KeyPurpose,
    /// Version of that key, from 1.
    pub key_version: i32,
    /// 24 bytes, lower-case hex.
    pub nonce: String,
    /// Ciphertext with tag, lower-case hex.
    pub ciphertext: String,
}

/// An event's pointer to a sealed body in `message_bodies`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BodyRef {
    /// The row.
    pub body_id: BodyId,
    /// Size of the plaintext in bytes.
    pub bytes: u64,
    /// SHA-256 of the **ciphertext**, lower-case hex.
    pub ciphertext_sha256: String,
}
