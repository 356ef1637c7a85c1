//! Access tokens: short-lived, signed with Ed25519. A token says who; what they may is asked anew
//! on every request.

use std::time::Duration;

use botledger_domain::{OperatorId, WorkspaceId, operator::Role};
use chrono::{DateTime, TimeDelta, Utc};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, jwk::Jwk};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{Services, graphql::error::ApiError};

const ISSUER: &str = "botledger";
const AUDIENCE: &str = "botledger-api";
/// RFC 9068: tells an access token from every other JWT under the same key.
const TYPE: &str = "at+jwt";
/// Longest token looked at.
const MAX_TOKEN: usize = 2_048;
/// PKCS #8 (RFC 8410) in front of a 32-byte Ed25519 seed.
const PKCS8: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];

/// An operator who may act now.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) operator: OperatorId,
    pub(crate) workspace: WorkspaceId,
    pub(crate) role: Role,
    /// An auditor was let read personal text until then.
    pub(crate) reads_personal_until: Option<DateTime<Utc>>,
    /// When the access token ends, and with it every subscription.
    pub(crate) expires_at: DateTime<Utc>,
}

#[derive(Serialize, Deserialize)]
struct Claims {
    iss: String,
    aud: String,
    sub: Uuid,
    iat: i64,
    nbf: i64,
    exp: i64,
    jti: Uuid,
}

/// Signs and checks access tokens.
pub(crate) struct Tokens {
    signing: EncodingKey,
    checking: DecodingKey,
    validation: Validation,
    life: TimeDelta,
}

impl Tokens {
    pub(crate) fn new(seed: &[u8; 32], life: Duration) -> Self {
        let signing = EncodingKey::from_ed_der(&[PKCS8.as_slice(), seed].concat());
        let checking = Jwk::from_encoding_key(&signing, Algorithm::EdDSA)
            .and_then(|public| DecodingKey::from_jwk(&public))
            .expect("every 32 bytes are an Ed25519 seed");
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.set_issuer(&[ISSUER]);
        validation.set_audience(&[AUDIENCE]);
        validation.set_required_spec_claims(&["iss", "aud", "sub", "exp"]);
        // Times are compared with our own clock below.
        validation.validate_exp = false;
        validation.validate_nbf = false;
        let life = TimeDelta::from_std(life).unwrap_or(TimeDelta::minutes(15));
        Self { signing, checking, validation, life }
    }

    /// A token and when it ends.
    pub(crate) fn issue(
        &self,
        operator: OperatorId,
        now: DateTime<Utc>,
        id: Uuid,
    ) -> Result<(String, DateTime<Utc>), ApiError> {
        let expires_at = now + self.life;
        let claims = Claims {
            iss: ISSUER.to_owned(),
            aud: AUDIENCE.to_owned(),
            sub: operator.uuid(),
            iat: now.timestamp(),
            nbf: now.timestamp(),
            exp: expires_at.timestamp(),
            jti: id,
        };
        let header = Header { typ: Some(TYPE.to_owned()), ..Header::new(Algorithm::EdDSA) };
        match jsonwebtoken::encode(&header, &claims, &self.signing) {
            Ok(token) => Ok((token, expires_at)),
            Err(error) => {
                tracing::error!(error = %error, "an access token could not be signed");
                Err(ApiError::internal())
            }
        }
    }

    /// Whose token it is and when it ends; nothing for every other text.
    pub(crate) fn check(&self, token: &str, now: DateTime<Utc>) -> Option<(OperatorId, DateTime<Utc>)> {
        if token.len() > MAX_TOKEN {
            return None;
        }
        let data = jsonwebtoken::decode::<Claims>(token, &self.checking, &self.validation).ok()?;
        let fresh = data.claims.nbf <= now.timestamp() + 5 && now.timestamp() < data.claims.exp;
        if data.header.typ.as_deref() != Some(TYPE) || !fresh {
            return None;
        }
        Some((OperatorId(data.claims.sub), DateTime::from_timestamp(data.claims.exp, 0)?))
    }
}

/// Why nobody is authenticated.
pub(crate) enum AuthFailure {
    /// The token is not good, or its operator may not act any more.
    Refused,
    /// Whether it is good cannot be told now.
    Unavailable,
}

/// The bearer of a token, as they stand now.
pub(crate) async fn authenticate(services: &Services, token: &str) -> Result<Identity, AuthFailure> {
    let now = services.app.core.clock.now();
    let (operator, expires_at) = services.tokens.check(token, now).ok_or(AuthFailure::Refused)?;
    stand(services, operator, expires_at).await
}

/// The same operator, looked at again.
pub(crate) async fn again(services: &Services, identity: &Identity) -> Result<Identity, AuthFailure> {
    if services.app.core.clock.now() >= identity.expires_at {
        return Err(AuthFailure::Refused);
    }
    stand(services, identity.operator, identity.expires_at).await
}

async fn stand(
    services: &Services,
    operator: OperatorId,
    expires_at: DateTime<Utc>,
) -> Result<Identity, AuthFailure> {
    let standing = services.app.operators.standing(operator).await.map_err(|error| {
        tracing::error!(error = %error, "an operator's standing cannot be read");
        AuthFailure::Unavailable
    })?;
    let state = standing.ok_or(AuthFailure::Refused)?;
    match (state.workspace, state.role) {
        (Some(workspace), Some(role)) => {
            let reads_personal_until = state.reads_personal_until;
            Ok(Identity { operator, workspace, role, reads_personal_until, expires_at })
        }
        _ => Err(AuthFailure::Refused),
    }
}

/// The token of an `Authorization: Bearer` value.
pub(crate) fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.trim().split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> DateTime<Utc> {
        "2026-11-24T10:00:00Z".parse().expect("a time")
    }

    #[test]
    fn a_token_is_good_until_it_ends_and_only_under_its_key() {
        let tokens = Tokens::new(&[7; 32], Duration::from_secs(900));
        let operator = OperatorId(Uuid::from_u128(1));
        let (token, expires_at) =
            tokens.issue(operator, now(), Uuid::nil()).unwrap_or_else(|_| panic!("signs"));
        assert_eq!(tokens.check(&token, now()), Some((operator, expires_at)));
        assert_eq!(tokens.check(&token, now() + TimeDelta::seconds(899)).map(|it| it.0), Some(operator));
        assert_eq!(tokens.check(&token, now() + TimeDelta::seconds(900)), None);
        assert_eq!(tokens.check(&token, now() - TimeDelta::seconds(60)), None);
        assert_eq!(Tokens::new(&[8; 32], Duration::from_secs(900)).check(&token, now()), None);
    }

    #[test]
    fn other_algorithms_types_and_texts_are_refused() {
        let tokens = Tokens::new(&[7; 32], Duration::from_secs(900));
        let claims = Claims {
            iss: ISSUER.into(),
            aud: AUDIENCE.into(),
            sub: Uuid::from_u128(1),
            iat: now().timestamp(),
            nbf: now().timestamp(),
            exp: now().timestamp() + 900,
            jti: Uuid::nil(),
        };
        let hmac = jsonwebtoken::encode(
            &Header::new(Algorithm::HS256),
            &claims,
            &EncodingKey::from_secret(&[7; 32]),
        );
        assert_eq!(tokens.check(&hmac.expect("signs"), now()), None);
        let plain = jsonwebtoken::encode(&Header::new(Algorithm::EdDSA), &claims, &tokens.signing);
        assert_eq!(tokens.check(&plain.expect("signs"), now()), None, "typ is not at+jwt");
        for text in ["", ".", "a.b.c", &"x".repeat(100_000)] {
            assert_eq!(tokens.check(text, now()), None);
        }
    }
}
