//! Sealing of personal and secret values, and pseudonyms.
//!
//! A data key per owner and purpose, 256 bit, wrapped by a versioned master key that never enters
//! the database. XChaCha20-Poly1305 with random nonces; the associated data binds a ciphertext to
//! its owner, purpose and key version, and a body to its id. Small values of one owner and purpose may
//! trade places as far as the vault can tell: which event holds which is in the ledger's leaf hashes.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use botledger_domain::{
    BodyId, BodyRef, BotId, KeyPurpose, Sealed, SharedClock, SubjectId, TurnId, WorkspaceId,
};
use botledger_journal::{NewBody, Place, StoredBody};
use chacha20poly1305::{
    XChaCha20Poly1305, XNonce,
    aead::{Aead, KeyInit, Payload},
};
use hmac::{Hmac, Mac};
use moka::sync::Cache;
use rand::TryRngCore;
use sha2::{Digest, Sha256};
use sqlx::PgPool;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::BodyContent;

/// The keys that are not in the database.
#[derive(Clone)]
pub struct KeyRing {
    /// Master keys by version; the highest wraps new data keys.
    pub master: BTreeMap<i32, Zeroizing<[u8; 32]>>,
    /// Key of all pseudonyms and fingerprints. Changing it makes every person a new one.
    pub pseudonym: Zeroizing<[u8; 32]>,
}

/// Why something stays sealed.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// The data key was deleted: the content is gone for ever, which is what erasure means.
    #[error("the key of this content was deleted")]
    Shredded,
    /// Ciphertext, key or place do not belong together.
    #[error("the sealed content does not open with its key")]
    Tampered,
    /// The master key of that version is not in the key ring.
    #[error("master key version {version} is missing")]
    MissingMasterKey {
        /// Which.
        version: i32,
    },
    /// No random numbers.
    #[error("the system gives no random numbers")]
    Random,
    /// Not the JSON a body holds.
    #[error("the opened body is malformed")]
    Malformed,
    /// The key table cannot be used.
    #[error("the key table cannot be used")]
    Database(#[from] sqlx::Error),
}

type DataKey = Arc<Zeroizing<[u8; 32]>>;

/// Seals and opens. Cheap to clone.
#[derive(Clone)]
pub struct Vault {
    pool: PgPool,
    clock: SharedClock,
    ring: Arc<KeyRing>,
    keys: Cache<(Uuid, KeyPurpose, i32), DataKey>,
    newest: Cache<(Uuid, KeyPurpose), i32>,
}

/// How long an opened data key stays in memory: an erasure is complete after that at the latest.
const KEY_MEMORY: Duration = Duration::from_secs(300);

fn random<const N: usize>() -> Result<[u8; N], VaultError> {
    let mut bytes = [0u8; N];
    rand::rngs::OsRng.try_fill_bytes(&mut bytes).map_err(|_| VaultError::Random)?;
    Ok(bytes)
}

fn encrypt(key: &[u8; 32], nonce: &[u8; 24], plaintext: &[u8], aad: &[u8]) -> Result<Vec<u8>, VaultError> {
    XChaCha20Poly1305::new(key.into())
        .encrypt(&XNonce::from(*nonce), Payload { msg: plaintext, aad })
        .map_err(|_| VaultError::Tampered)
}

fn decrypt(key: &[u8; 32], nonce: &[u8; 24], ciphertext: &[u8], aad: &[u8]) -> Result<Vec<u8>, VaultError> {
    XChaCha20Poly1305::new(key.into())
        .decrypt(&XNonce::from(*nonce), Payload { msg: ciphertext, aad })
        .map_err(|_| VaultError::Tampered)
}

fn binding(owner: Uuid, purpose: KeyPurpose, version: i32, place: &str) -> Vec<u8> {
    format!("botledger/1|{owner}|{}|{version}|{place}", purpose.as_ref()).into_bytes()
}

impl Vault {
    /// A vault over the key table of a database.
    #[must_use]
    pub fn new(pool: PgPool, clock: SharedClock, ring: KeyRing) -> Self {
        let keys = Cache::builder().max_capacity(100_000).time_to_live(KEY_MEMORY).build();
        let newest = Cache::builder().max_capacity(100_000).time_to_live(KEY_MEMORY).build();
        Self { pool, clock, ring: Arc::new(ring), keys, newest }
    }

    /// Seals a small value for an event. The owner's key is made on first use.
    ///
    /// # Errors
    /// When the key table cannot be used.
    pub async fn seal(
        &self,
        owner: Uuid,
        purpose: KeyPurpose,
        plaintext: &[u8],
    ) -> Result<Sealed, VaultError> {
        let (version, key) = self.newest_key(owner, purpose).await?;
        let nonce = random::<24>()?;
        let ciphertext = encrypt(&key, &nonce, plaintext, &binding(owner, purpose, version, "value"))?;
        Ok(Sealed {
            owner,
            purpose,
            key_version: version,
            nonce: hex::encode(nonce),
            ciphertext: hex::encode(ciphertext),
        })
    }

    /// Opens a small value of an event.
    ///
    /// # Errors
    /// [`VaultError::Shredded`] after an erasure; others when it was tampered with or keys are missing.
    pub async fn open(&self, sealed: &Sealed) -> Result<Zeroizing<Vec<u8>>, VaultError> {
        let key = self.key(sealed.owner, sealed.purpose, sealed.key_version).await?;
        let mut nonce = [0u8; 24];
        hex::decode_to_slice(&sealed.nonce, &mut nonce).map_err(|_| VaultError::Tampered)?;
        let ciphertext = hex::decode(&sealed.ciphertext).map_err(|_| VaultError::Tampered)?;
        let aad = binding(sealed.owner, sealed.purpose, sealed.key_version, "value");
        decrypt(&key, &nonce, &ciphertext, &aad).map(Zeroizing::new)
    }

    /// Seals a body: the row to store and the reference for the event.
    ///
    /// # Errors
    /// When the key table cannot be used.
    pub async fn seal_body(
        &self,
        body_id: BodyId,
        owner: Uuid,
        turn_id: TurnId,
        content: &BodyContent,
        place: Option<Place>,
    ) -> Result<(NewBody, BodyRef), VaultError> {
        let purpose = KeyPurpose::Messages;
        let plaintext = Zeroizing::new(serde_json::to_vec(content).map_err(|_| VaultError::Malformed)?);
        let (key_version, key) = self.newest_key(owner, purpose).await?;
        let nonce = random::<24>()?;
        let aad = binding(owner, purpose, key_version, &body_id.to_string());
        let ciphertext = encrypt(&key, &nonce, &plaintext, &aad)?;
        let reference = BodyRef {
            body_id,
            bytes: plaintext.len() as u64,
            ciphertext_sha256: hex::encode(Sha256::digest(&ciphertext)),
        };
        Ok((NewBody { body_id, owner, purpose, key_version, nonce, ciphertext, turn_id, place }, reference))
    }

    /// Opens a stored body.
    ///
    /// # Errors
    /// [`VaultError::Shredded`] after an erasure; others when it was tampered with or keys are missing.
    pub async fn open_body(&self, body: &StoredBody) -> Result<BodyContent, VaultError> {
        let key = self.key(body.owner, body.purpose, body.key_version).await?;
        let aad = binding(body.owner, body.purpose, body.key_version, &body.body_id.to_string());
        let plaintext = Zeroizing::new(decrypt(&key, &body.nonce, &body.ciphertext, &aad)?);
        serde_json::from_slice(&plaintext).map_err(|_| VaultError::Malformed)
    }

    /// A person's pseudonym in a workspace.
    #[must_use]
    pub fn subject_id(&self, workspace: WorkspaceId, telegram_user_id: i64) -> SubjectId {
        SubjectId(self.pseudonym(&format!("subject|{workspace}|{telegram_user_id}")))
    }

    /// A chat's pseudonym with a bot.
    #[must_use]
    pub fn chat_pseudonym(&self, bot: BotId, chat_id: i64) -> Uuid {
        self.pseudonym(&format!("chat|{bot}|{chat_id}"))
    }

    /// A keyed fingerprint, 128 bit in hex: tells equality of secrets without showing them.
    #[must_use]
    pub fn fingerprint(&self, label: &str, value: &[u8]) -> String {
        let mac = self.mac(label, value);
        hex::encode(&mac[..16])
    }

    fn pseudonym(&self, text: &str) -> Uuid {
        let mac = self.mac("pseudonym", text.as_bytes());
        let mut bytes = [0u8; 16];
        bytes.copy_from_slice(&mac[..16]);
        uuid::Builder::from_custom_bytes(bytes).into_uuid()
    }

    fn mac(&self, label: &str, value: &[u8]) -> [u8; 32] {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.ring.pseudonym.as_slice())
            .expect("HMAC takes keys of any size");
        mac.update(label.as_bytes());
        mac.update(b"|");
        mac.update(value);
        mac.finalize().into_bytes().into()
    }

    /// Wraps every data key anew that another master key than the newest wraps; afterwards the others may
    /// go. Everything can be read and sealed meanwhile. Gives how many it wrapped.
    ///
    /// # Errors
    /// When a master key is missing or wrong, or the key table cannot be used. What was wrapped anew
    /// stays so.
    pub async fn rewrap(&self) -> Result<u64, VaultError> {
        let (newest, _) = self.newest_master()?;
        let mut rewrapped = 0;
        loop {
            let page = sqlx::query!(
                "SELECT owner, purpose, version, wrapped, master_version FROM keys.data_keys
                 WHERE master_version <> $1 LIMIT 500",
                newest,
            )
            .fetch_all(&self.pool)
            .await?;
            if page.is_empty() {
                return Ok(rewrapped);
            }
            for row in page {
                let purpose = row.purpose.parse().map_err(|_| VaultError::Malformed)?;
                let key = self.unwrap(row.owner, purpose, row.version, &row.wrapped, row.master_version)?;
                let wrapped = self.wrap(row.owner, purpose, row.version, &key)?;
                // An erasure or another run may have been here meanwhile.
                let done = sqlx::query!(
                    "UPDATE keys.data_keys SET wrapped = $4, master_version = $5
                     WHERE owner = $1 AND purpose = $2 AND version = $3 AND master_version = $6",
                    row.owner,
                    row.purpose,
                    row.version,
                    wrapped,
                    newest,
                    row.master_version,
                )
                .execute(&self.pool)
                .await?;
                rewrapped += done.rows_affected();
            }
        }
    }

    fn newest_master(&self) -> Result<(i32, &Zeroizing<[u8; 32]>), VaultError> {
        let newest = self.ring.master.last_key_value().ok_or(VaultError::MissingMasterKey { version: 1 })?;
        Ok((*newest.0, newest.1))
    }

    fn wrap(
        &self,
        owner: Uuid,
        purpose: KeyPurpose,
        version: i32,
        key: &[u8; 32],
    ) -> Result<Vec<u8>, VaultError> {
        let (_, master) = self.newest_master()?;
        let nonce = random::<24>()?;
        let mut wrapped = nonce.to_vec();
        wrapped.extend(encrypt(master, &nonce, key, &binding(owner, purpose, version, "key"))?);
        Ok(wrapped)
    }

    async fn newest_key(&self, owner: Uuid, purpose: KeyPurpose) -> Result<(i32, DataKey), VaultError> {
        if let Some(version) = self.newest.get(&(owner, purpose))
            && let Some(key) = self.keys.get(&(owner, purpose, version))
        {
            return Ok((version, key));
        }
        let stored = sqlx::query!(
            "SELECT version, wrapped, master_version FROM keys.data_keys
             WHERE owner = $1 AND purpose = $2 ORDER BY version DESC LIMIT 1",
            owner,
            purpose.as_ref(),
        )
        .fetch_optional(&self.pool)
        .await?;
        let version = match stored {
            Some(row) => {
                let key = self.unwrap(owner, purpose, row.version, &row.wrapped, row.master_version)?;
                self.keys.insert((owner, purpose, row.version), key);
                row.version
            }
            None => {
                self.create_key(owner, purpose).await?;
                1
            }
        };
        self.newest.insert((owner, purpose), version);
        Ok((version, self.key(owner, purpose, version).await?))
    }

    /// Another process may make the same key at the same moment: the first row stands, and the key
    /// is read back.
    async fn create_key(&self, owner: Uuid, purpose: KeyPurpose) -> Result<(), VaultError> {
        let (master_version, _) = self.newest_master()?;
        let wrapped = self.wrap(owner, purpose, 1, &Zeroizing::new(random::<32>()?))?;
        sqlx::query!(
            "INSERT INTO keys.data_keys (owner, purpose, version, wrapped, master_version, created_at)
             VALUES ($1, $2, 1, $3, $4, $5) ON CONFLICT DO NOTHING",
            owner,
            purpose.as_ref(),
            wrapped,
            master_version,
            self.clock.now(),
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    async fn key(&self, owner: Uuid, purpose: KeyPurpose, version: i32) -> Result<DataKey, VaultError> {
        if let Some(key) = self.keys.get(&(owner, purpose, version)) {
            return Ok(key);
        }
        let row = sqlx::query!(
            "SELECT wrapped, master_version FROM keys.data_keys WHERE owner = $1 AND purpose = $2 AND version = $3",
            owner,
            purpose.as_ref(),
            version,
        )
        .fetch_optional(&self.pool)
        .await?
        .ok_or(VaultError::Shredded)?;
        let key = self.unwrap(owner, purpose, version, &row.wrapped, row.master_version)?;
        self.keys.insert((owner, purpose, version), Arc::clone(&key));
        Ok(key)
    }

    fn unwrap(
        &self,
        owner: Uuid,
        purpose: KeyPurpose,
        version: i32,
        wrapped: &[u8],
        master_version: i32,
    ) -> Result<DataKey, VaultError> {
        let master = self
            .ring
            .master
            .get(&master_version)
            .ok_or(VaultError::MissingMasterKey { version: master_version })?;
        let (nonce, ciphertext) = wrapped.split_first_chunk::<24>().ok_or(VaultError::Tampered)?;
        let key =
            Zeroizing::new(decrypt(master, nonce, ciphertext, &binding(owner, purpose, version, "key"))?);
        let key: [u8; 32] = key.as_slice().try_into().map_err(|_| VaultError::Tampered)?;
        Ok(Arc::new(Zeroizing::new(key)))
    }
}
