//! Logging in and out. The only mutations that nobody has to be logged in for.

use async_graphql::{Context, InputObject, Object, SimpleObject};
use botledger_commands::{Session, SessionError};
use chrono::{DateTime, Utc};

use super::{
    Scope,
    error::{ApiError, ApiResult, UserError},
    operator::Role,
    scalars::NodeKind,
};

/// A session's tokens.
#[derive(SimpleObject)]
pub(crate) struct SessionTokens {
    /// Goes into `Authorization: Bearer …`.
    access_token: String,
    access_expires_at: DateTime<Utc>,
    /// Good once, for `sessionRefresh`. Using an old one ends the session everywhere.
    refresh_token: String,
    refresh_expires_at: DateTime<Utc>,
    operator_id: async_graphql::ID,
    login: String,
    role: Role,
}

/// Answer of a login.
#[derive(SimpleObject)]
pub(crate) struct SessionPayload {
    session: Option<SessionTokens>,
    /// Why nobody is logged in.
    user_errors: Vec<UserError>,
}

/// Answer of a logout.
#[derive(SimpleObject)]
pub(crate) struct SessionLogoutPayload {
    /// Also when there was nothing to end.
    ended: bool,
}

/// A one-time link, used.
#[derive(InputObject)]
struct SessionActivateInput {
    /// What stands behind `#` in the link.
    #[graphql(secret)]
    secret: String,
    /// 12 to 200 characters.
    #[graphql(secret)]
    password: String,
}

/// Login and password.
#[derive(InputObject)]
struct SessionLoginInput {
    login: String,
    #[graphql(secret)]
    password: String,
}

/// A refresh token.
#[derive(InputObject)]
struct SessionTokenInput {
    #[graphql(secret)]
    refresh_token: String,
}

fn tokens(scope: &Scope<'_>, session: Session) -> ApiResult<SessionTokens> {
    let app = &scope.services.app;
    let (access_token, access_expires_at) =
        scope.services.tokens.issue(session.operator, app.core.clock.now(), app.core.ids.next())?;
    Ok(SessionTokens {
        access_token,
        access_expires_at,
        refresh_token: session.refresh_token.0.to_string(),
        refresh_expires_at: session.refresh_expires_at,
        operator_id: NodeKind::Operator.id(session.operator.uuid()),
        login: session.login.as_str().to_owned(),
        role: session.role.into(),
    })
}

fn answer(scope: &Scope<'_>, session: Result<Session, SessionError>) -> ApiResult<SessionPayload> {
    match session {
        Ok(session) => Ok(SessionPayload { session: Some(tokens(scope, session)?), user_errors: Vec::new() }),
        Err(error @ SessionError::Unavailable(_)) => Err(ApiError::unavailable(error)),
        Err(error) => Ok(SessionPayload {
            session: None,
            user_errors: vec![UserError::new(error.code(), error.to_string())],
        }),
    }
}

#[derive(Default)]
pub(crate) struct SessionMutation;

#[Object]
impl SessionMutation {
    /// Uses a one-time link: sets the password and logs in.
    async fn session_activate(
        &self,
        ctx: &Context<'_>,
        input: SessionActivateInput,
    ) -> ApiResult<SessionPayload> {
        let scope = Scope::of(ctx)?;
        let now = scope.services.app.core.clock.now();
        scope.services.attempts.link(scope.request.ip, now).map_err(ApiError::rate_limited)?;
        let operators = &scope.services.app.operators;
        let session = operators.activate(&input.secret, &input.password, scope.request.origin.clone()).await;
        answer(&scope, session)
    }

    /// Logs in.
    async fn session_login(&self, ctx: &Context<'_>, input: SessionLoginInput) -> ApiResult<SessionPayload> {
        let scope = Scope::of(ctx)?;
        let now = scope.services.app.core.clock.now();
        scope.services.attempts.login(scope.request.ip, &input.login, now).map_err(ApiError::rate_limited)?;
        let operators = &scope.services.app.operators;
        let session = operators.login(&input.login, &input.password, scope.request.origin.clone()).await;
        answer(&scope, session)
    }

    /// Exchanges a refresh token for new tokens.
    async fn session_refresh(
        &self,
        ctx: &Context<'_>,
        input: SessionTokenInput,
    ) -> ApiResult<SessionPayload> {
        let scope = Scope::of(ctx)?;
        let now = scope.services.app.core.clock.now();
        scope.services.attempts.refresh(&input.refresh_token, now).map_err(ApiError::rate_limited)?;
        let session =
            scope.services.app.operators.refresh(&input.refresh_token, scope.request.origin.clone()).await;
        answer(&scope, session)
    }

    /// Ends a session; its access token runs out within minutes.
    async fn session_logout(
        &self,
        ctx: &Context<'_>,
        input: SessionTokenInput,
    ) -> ApiResult<SessionLogoutPayload> {
        let scope = Scope::of(ctx)?;
        match scope.services.app.operators.logout(&input.refresh_token, scope.request.origin.clone()).await {
            Ok(()) => Ok(SessionLogoutPayload { ended: true }),
            Err(error) => Err(ApiError::unavailable(error)),
        }
    }
}
