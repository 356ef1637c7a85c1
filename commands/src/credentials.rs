//! Passwords, one-time links and refresh tokens: hashes only, in tables of their own.

use std::sync::Arc;

use argon2::{
    Argon2,
    password_hash::{PasswordHasher, PasswordVerifier, phc::PasswordHash},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use botledger_domain::{
    OperatorId, WorkspaceId,
    operator::{Login, Role},
};
use chrono::{DateTime, TimeDelta, Utc};
use rand::TryRngCore;
use sha2::{Digest, Sha256};
use sqlx::PgPool;
use tokio::sync::Semaphore;
use uuid::Uuid;
use zeroize::Zeroizing;

/// A secret that is shown once.
#[derive(Clone)]
pub struct OneTimeSecret(pub Zeroizing<String>);

/// Who is logged in, and the token that prolongs it.
#[derive(Clone)]
pub struct Session {
    pub operator: OperatorId,
    pub workspace: WorkspaceId,
    pub role: Role,
    pub login: Login,
    /// Opaque, 256 bit; good for one exchange.
    pub refresh_token: OneTimeSecret,
    pub refresh_expires_at: DateTime<Utc>,
}

/// Why somebody does not get in.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// Unknown login, wrong password, disabled: the same answer and time for all.
    #[error("login or password is not right")]
    BadCredentials,
    /// Unknown, used or expired link.
    #[error("this link is not valid any more; ask for a new one")]
    BadLink,
    /// Unknown, used or expired token.
    #[error("the session has ended; log in again")]
    BadRefreshToken,
    /// Too short or too long.
    #[error("a password has 12 to 200 characters")]
    WeakPassword,
    /// The database cannot be used.
    #[error("logging in is not possible right now; try again shortly")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl SessionError {
    /// A stable code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::BadCredentials => "BAD_CREDENTIALS",
            Self::BadLink => "BAD_LINK",
            Self::BadRefreshToken => "BAD_REFRESH_TOKEN",
            Self::WeakPassword => "WEAK_PASSWORD",
            Self::Unavailable(_) => "UNAVAILABLE",
        }
    }

    pub(crate) fn unavailable(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Unavailable(Box::new(error))
    }
}

impl From<sqlx::Error> for SessionError {
    fn from(error: sqlx::Error) -> Self {
        Self::unavailable(error)
    }
}

/// How long a one-time link works.
pub(crate) const LINK_LIFE: TimeDelta = TimeDelta::hours(24);
/// How long a session lasts without use.
pub(crate) const REFRESH_LIFE: TimeDelta = TimeDelta::days(14);
/// A second use of a refresh token within this time is a lost answer, not a theft (RFC 9700 §4.14.2).
const REFRESH_GRACE: TimeDelta = TimeDelta::seconds(10);

/// A hash that no password has, for unknown logins: they take as long as known ones.
const NOBODYS_HASH: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

#[derive(Clone)]
pub(crate) struct Credentials {
    pool: PgPool,
    /// Hashing takes 19 MiB and a core: more at once would be a way to stop the process.
    hashing: Arc<Semaphore>,
}

pub(crate) fn new_secret() -> Result<OneTimeSecret, SessionError> {
    let mut bytes = Zeroizing::new([0u8; 32]);
    rand::rngs::OsRng.try_fill_bytes(bytes.as_mut_slice()).map_err(SessionError::unavailable)?;
    Ok(OneTimeSecret(Zeroizing::new(URL_SAFE_NO_PAD.encode(bytes.as_slice()))))
}

pub(crate) fn digest(secret: &str) -> Vec<u8> {
    Sha256::digest(secret.as_bytes()).to_vec()
}

/// What a refresh token turned out to be.
pub(crate) struct Exchanged {
    pub(crate) operator: OperatorId,
    pub(crate) family: Uuid,
    /// It had been used long before: somebody has a copy. The family has ended.
    pub(crate) reused: bool,
}

impl Credentials {
    pub(crate) fn new(pool: PgPool) -> Self {
        Self { pool, hashing: Arc::new(Semaphore::new(2)) }
    }

    pub(crate) fn pool(&self) -> &PgPool {
        &self.pool
    }

    pub(crate) async fn hash(&self, password: &str) -> Result<String, SessionError> {
        if !(12..=200).contains(&password.chars().count()) {
            return Err(SessionError::WeakPassword);
        }
        let _permit = self.hashing.acquire().await.map_err(SessionError::unavailable)?;
        let password = Zeroizing::new(password.to_owned());
        let hash = tokio::task::spawn_blocking(move || {
            Argon2::default().hash_password(password.as_bytes()).map(|hash| hash.to_string())
        });
        hash.await.map_err(SessionError::unavailable)?.map_err(SessionError::unavailable)
    }

    /// The operator behind a login, if the password is right. Without a login it takes as long.
    pub(crate) async fn verify(
        &self,
        login: Option<&str>,
        password: &str,
    ) -> Result<OperatorId, SessionError> {
        let row =
            sqlx::query!("SELECT operator_id, password_hash FROM operator_logins WHERE login = $1", login)
                .fetch_optional(&self.pool)
                .await?;
        let (operator, hash) = match row {
            Some(row) => (Some(OperatorId(row.operator_id)), row.password_hash),
            None => (None, None),
        };
        let hash = hash.unwrap_or_else(|| NOBODYS_HASH.to_owned());
        let password = Zeroizing::new(password.chars().take(201).collect::<String>());
        let _permit = self.hashing.acquire().await.map_err(SessionError::unavailable)?;
        let right = tokio::task::spawn_blocking(move || {
            PasswordHash::new(&hash)
                .is_ok_and(|hash| Argon2::default().verify_password(password.as_bytes(), &hash).is_ok())
        })
        .await
        .map_err(SessionError::unavailable)?;
        operator.filter(|_| right).ok_or(SessionError::BadCredentials)
    }

    /// A new link; earlier ones of the operator end: who lost one does not know who found it.
    pub(crate) async fn new_link(
        &self,
        operator: OperatorId,
        now: DateTime<Utc>,
    ) -> Result<OneTimeSecret, SessionError> {
        let secret = new_secret()?;
        sqlx::query!(
            "WITH ended AS (
                 UPDATE one_time_links SET used_at = $3 WHERE operator_id = $2 AND used_at IS NULL
             )
             INSERT INTO one_time_links (secret_hash, operator_id, created_at, expires_at)
             VALUES ($1, $2, $3, $4)",
            digest(&secret.0),
            operator.uuid(),
            now,
            now + LINK_LIFE,
        )
        .execute(&self.pool)
        .await?;
        Ok(secret)
    }

    /// Whose a link is, while it works.
    pub(crate) async fn find_link(
        &self,
        secret: &str,
        now: DateTime<Utc>,
    ) -> Result<OperatorId, SessionError> {
        let operator = sqlx::query_scalar!(
            "SELECT operator_id FROM one_time_links
             WHERE secret_hash = $1 AND used_at IS NULL AND expires_at > $2",
            digest(secret),
            now,
        )
        .fetch_optional(&self.pool)
        .await?;
        operator.map(OperatorId).ok_or(SessionError::BadLink)
    }

    /// Uses a link up and sets the password, both or neither. All links of the operator end with it, and
    /// one made at the same moment finds a password: no link replaces one.
    pub(crate) async fn use_link(
        &self,
        secret: &str,
        password_hash: &str,
        now: DateTime<Utc>,
    ) -> Result<(), SessionError> {
        let used = sqlx::query!(
            "WITH used AS (
                 UPDATE one_time_links SET used_at = $2
                 WHERE used_at IS NULL AND operator_id = (
                     SELECT operator_id FROM one_time_links
                     WHERE secret_hash = $1 AND used_at IS NULL AND expires_at > $2
                 )
                 RETURNING operator_id
             )
             UPDATE operator_logins SET password_hash = $3
             WHERE password_hash IS NULL AND operator_id IN (SELECT operator_id FROM used)",
            digest(secret),
            now,
            password_hash,
        )
        .execute(&self.pool)
        .await?;
        if used.rows_affected() == 1 { Ok(()) } else { Err(SessionError::BadLink) }
    }

    pub(crate) async fn new_refresh_token(
        &self,
        operator: OperatorId,
        family: Uuid,
        now: DateTime<Utc>,
    ) -> Result<OneTimeSecret, SessionError> {
        let token = new_secret()?;
        sqlx::query!(
            "INSERT INTO refresh_tokens (token_hash, family, operator_id, issued_at, expires_at)
             VALUES ($1, $2, $3, $4, $5)",
            digest(&token.0),
            family,
            operator.uuid(),
            now,
            now + REFRESH_LIFE,
        )
        .execute(&self.pool)
        .await?;
        Ok(token)
    }

    /// Uses a refresh token up. A second use after the grace time means that two parties hold it:
    /// the whole family ends.
    pub(crate) async fn exchange(&self, token: &str, now: DateTime<Utc>) -> Result<Exchanged, SessionError> {
        let hash = digest(token);
        let fresh = sqlx::query!(
            "UPDATE refresh_tokens SET used_at = $2
             WHERE token_hash = $1 AND used_at IS NULL AND revoked_at IS NULL AND expires_at > $2
             RETURNING operator_id, family",
            hash,
            now,
        )
        .fetch_optional(&self.pool)
        .await?;
        if let Some(row) = fresh {
            return Ok(Exchanged {
                operator: OperatorId(row.operator_id),
                family: row.family,
                reused: false,
            });
        }
        let known = sqlx::query!(
            "SELECT operator_id, family, used_at, revoked_at FROM refresh_tokens WHERE token_hash = $1",
            hash,
        )
        .fetch_optional(&self.pool)
        .await?
        .ok_or(SessionError::BadRefreshToken)?;
        match (known.used_at, known.revoked_at) {
            (Some(used_at), None) if now - used_at <= REFRESH_GRACE => {
                Ok(Exchanged { operator: OperatorId(known.operator_id), family: known.family, reused: false })
            }
            (Some(_), None) => {
                self.revoke_family(known.family, now).await?;
                Ok(Exchanged { operator: OperatorId(known.operator_id), family: known.family, reused: true })
            }
            _ => Err(SessionError::BadRefreshToken),
        }
    }

    pub(crate) async fn revoke_family(&self, family: Uuid, now: DateTime<Utc>) -> Result<(), SessionError> {
        sqlx::query!(
            "UPDATE refresh_tokens SET revoked_at = $2 WHERE family = $1 AND revoked_at IS NULL",
            family,
            now,
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    pub(crate) async fn revoke_all(
        &self,
        operator: OperatorId,
        now: DateTime<Utc>,
    ) -> Result<(), SessionError> {
        sqlx::query!(
            "UPDATE refresh_tokens SET revoked_at = $2 WHERE operator_id = $1 AND revoked_at IS NULL",
            operator.uuid(),
            now,
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_login_costs_the_same_hashing_as_a_known_one() {
        let nobody = PasswordHash::new(NOBODYS_HASH).expect("a PHC string");
        let known = Argon2::default().hash_password(b"correct horse battery").expect("hashes");
        assert_eq!((nobody.algorithm, nobody.version), (known.algorithm, known.version));
        assert_eq!(nobody.params.to_string(), known.params.to_string());
        let length = |hash: &PasswordHash| hash.hash.map(|output| output.as_ref().len());
        assert_eq!(length(&nobody), length(&known));
        assert!(Argon2::default().verify_password(b"", &nobody).is_err());
    }
}
