use std::sync::Arc;

use botledger_domain::{
    OperatorId, PlanName, Reason, WorkspaceId,
    operator::{Login, Operator, OperatorCommand, OperatorError, OperatorStatus, Permission, Role},
    quota::PlanTerms,
    workspace::WorkspaceError,
};
use chrono::{DateTime, Utc};

use crate::{
    Audit, AuditEntry, Caller, CommandError, Core, OneTimeSecret, Origin, Session, SessionError, Workspaces,
    credentials::{Credentials, REFRESH_LIFE},
    execute::{Executed, execute},
};

/// The people who run the platform, and how they get in.
#[derive(Clone)]
pub struct Operators {
    core: Arc<Core>,
    credentials: Credentials,
    workspaces: Workspaces,
    audit: Audit,
}

/// Whose a login is.
struct Claimed {
    operator: OperatorId,
    workspace: WorkspaceId,
    has_password: bool,
}

type Outcome = Result<Executed<Operator>, CommandError<OperatorError>>;

impl Operators {
    pub(crate) fn new(core: Arc<Core>, workspaces: Workspaces, audit: Audit) -> Self {
        let credentials = Credentials::new(core.pool.clone());
        Self { core, credentials, workspaces, audit }
    }

    /// The way in for the first owner: a one-time link while nobody has a password yet. Makes the
    /// first workspace with its default plan when there is none.
    ///
    /// # Errors
    /// When ledger or database cannot be used.
    pub async fn bootstrap_owner(
        &self,
        caller: &Caller,
        workspace_name: &str,
        plan: PlanName,
        terms: PlanTerms,
    ) -> Result<Option<OneTimeSecret>, CommandError<OperatorError>> {
        let active = sqlx::query_scalar!(
            r#"SELECT count(*) AS "count!" FROM operator_logins WHERE password_hash IS NOT NULL"#
        )
        .fetch_one(self.credentials.pool())
        .await?;
        if active > 0 {
            return Ok(None);
        }
        // Every step may have been taken before, by a process that died or by one that runs now: the
        // claimed login says which workspace and account are meant, and both are made only once.
        let login = Login::parse("owner")?;
        let Claimed { operator, workspace, .. } =
            self.claim(&login, WorkspaceId(self.core.ids.next())).await?;
        match self.workspaces.create(caller, workspace, workspace_name.to_owned(), plan, terms).await {
            Ok(_) | Err(CommandError::Refused(WorkspaceError::AlreadyCreated)) => {}
            Err(error) => return Err(error.within()),
        }
        match self.invite_into(caller, operator, workspace, login, Role::Owner).await {
            Ok(_) | Err(CommandError::Refused(OperatorError::AlreadyInvited)) => {}
            Err(error) => return Err(error),
        }
        self.link(operator).await.map(Some)
    }

    /// Makes an account; the link lets its owner set a password. While there is none, the same invitation
    /// gives another link, and earlier ones end: a link that was lost or ran out locks nobody out.
    ///
    /// # Errors
    /// Without the permission; when the login is taken, or was invited with another role.
    pub async fn invite(
        &self,
        caller: &Caller,
        workspace: WorkspaceId,
        login: Login,
        role: Role,
    ) -> Result<(OperatorId, Executed<Operator>, OneTimeSecret), CommandError<OperatorError>> {
        caller.require(Permission::ManageOperators)?;
        if !caller.sees(Some(workspace)) {
            return Err(CommandError::NotFound { what: "workspace" });
        }
        let taken = CommandError::Invalid {
            code: "OPERATOR_LOGIN_TAKEN",
            message: format!("the login {} is taken; choose another", login.as_str()),
        };
        let Claimed { operator, workspace: owner, has_password } = self.claim(&login, workspace).await?;
        // Once there is a password, a link would be a way to replace it.
        if owner != workspace || has_password {
            return Err(taken);
        }
        let done = match self.invite_into(caller, operator, workspace, login, role).await {
            Err(CommandError::Refused(OperatorError::AlreadyInvited)) => return Err(taken),
            done => done?,
        };
        if done.after.state.status == OperatorStatus::Disabled {
            return Err(CommandError::Refused(OperatorError::Disabled));
        }
        Ok((operator, done, self.link(operator).await?))
    }

    /// Claims a login before its account is made: of two invitations with one name both come to the
    /// same account, and the ledger lets one of them make it.
    async fn claim(
        &self,
        login: &Login,
        workspace: WorkspaceId,
    ) -> Result<Claimed, CommandError<OperatorError>> {
        sqlx::query!(
            "INSERT INTO operator_logins (login, operator_id, workspace) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
            login.as_str(),
            self.core.ids.next(),
            workspace.uuid(),
        )
        .execute(self.credentials.pool())
        .await?;
        let claimed = sqlx::query!(
            r#"SELECT operator_id, workspace, password_hash IS NOT NULL AS "has_password!"
               FROM operator_logins WHERE login = $1"#,
            login.as_str()
        )
        .fetch_one(self.credentials.pool())
        .await?;
        Ok(Claimed {
            operator: OperatorId(claimed.operator_id),
            workspace: WorkspaceId(claimed.workspace),
            has_password: claimed.has_password,
        })
    }

    async fn invite_into(
        &self,
        caller: &Caller,
        operator: OperatorId,
        workspace: WorkspaceId,
        login: Login,
        role: Role,
    ) -> Outcome {
        let command = OperatorCommand::Invite { workspace, login, role, by: caller.operator_id() };
        execute(&self.core, caller, &operator.to_string(), command, |_| Ok(())).await
    }

    async fn link(&self, operator: OperatorId) -> Result<OneTimeSecret, CommandError<OperatorError>> {
        self.credentials.new_link(operator, self.core.clock.now()).await.map_err(CommandError::unavailable)
    }

    /// Uses a one-time link: sets the password and logs in.
    ///
    /// # Errors
    /// When the link is not valid any more or the password too weak.
    pub async fn activate(
        &self,
        secret: &str,
        password: &str,
        from: Origin,
    ) -> Result<Session, SessionError> {
        let session = self.use_link(secret, password, from.clone()).await;
        if session.as_ref().is_err_and(|error| !matches!(error, SessionError::Unavailable(_))) {
            self.note(None, "session.activate", "refused", from).await;
        }
        session
    }

    async fn use_link(&self, secret: &str, password: &str, from: Origin) -> Result<Session, SessionError> {
        // Hashing first: a weak password must not use the link up.
        let hash = self.credentials.hash(password).await?;
        // Used up last: whatever fails before leaves a link that can be tried again.
        let operator = self.credentials.find_link(secret, self.core.clock.now()).await?;
        let caller = Caller {
            actor: botledger_domain::Actor::Operator(operator.uuid()),
            ..Caller::system("graphql", self.core.ids.next())
        };
        execute::<Operator>(
            &self.core,
            &caller,
            &operator.to_string(),
            OperatorCommand::Activate,
            |_| Ok(()),
        )
        .await
        .map_err(|error| match error {
            CommandError::Refused(_) => SessionError::BadLink,
            other => SessionError::unavailable(other),
        })?;
        self.credentials.use_link(secret, &hash, self.core.clock.now()).await?;
        self.note(Some(operator), "session.activate", "ok", from).await;
        self.open_session(operator, self.core.ids.next()).await
    }

    /// Logs in.
    ///
    /// # Errors
    /// [`SessionError::BadCredentials`] for every reason that lies with the caller.
    pub async fn login(&self, login: &str, password: &str, from: Origin) -> Result<Session, SessionError> {
        // What cannot be a login is an unknown one.
        let login = Login::parse(login).ok();
        let session = match self.credentials.verify(login.as_ref().map(Login::as_str), password).await {
            Ok(operator) => match self.open_session(operator, self.core.ids.next()).await {
                Err(SessionError::BadRefreshToken) => Err(SessionError::BadCredentials),
                other => other,
            },
            Err(error) => Err(error),
        };
        match &session {
            Ok(session) => self.note(Some(session.operator), "session.login", "ok", from).await,
            Err(SessionError::BadCredentials) => self.note(None, "session.login", "refused", from).await,
            Err(_) => {}
        }
        session
    }

    /// Exchanges a refresh token for the next one.
    ///
    /// # Errors
    /// When the token is not valid any more; then a stolen family ends.
    pub async fn refresh(&self, token: &str, from: Origin) -> Result<Session, SessionError> {
        let exchanged = self.credentials.exchange(token, self.core.clock.now()).await?;
        if exchanged.reused {
            self.note(Some(exchanged.operator), "session.refresh", "refused", from).await;
            return Err(SessionError::BadRefreshToken);
        }
        self.open_session(exchanged.operator, exchanged.family).await
    }

    /// Ends a session; an unknown token ends nothing and is no error.
    ///
    /// # Errors
    /// When the database cannot be used.
    pub async fn logout(&self, token: &str, from: Origin) -> Result<(), SessionError> {
        match self.credentials.exchange(token, self.core.clock.now()).await {
            Ok(exchanged) => {
                self.credentials.revoke_family(exchanged.family, self.core.clock.now()).await?;
                self.note(Some(exchanged.operator), "session.logout", "ok", from).await;
                Ok(())
            }
            Err(SessionError::BadRefreshToken) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn open_session(&self, operator: OperatorId, family: uuid::Uuid) -> Result<Session, SessionError> {
        let state = self.standing(operator).await?.ok_or(SessionError::BadRefreshToken)?;
        let (Some(workspace), Some(role), Some(login)) = (state.workspace, state.role, state.login) else {
            return Err(SessionError::BadRefreshToken);
        };
        let now = self.core.clock.now();
        let refresh_token = self.credentials.new_refresh_token(operator, family, now).await?;
        Ok(Session {
            operator,
            workspace,
            role,
            login,
            refresh_token,
            refresh_expires_at: now + REFRESH_LIFE,
        })
    }

    /// The operator as they stand, if they may act now. Asked again on every request.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub async fn standing(&self, operator: OperatorId) -> Result<Option<Operator>, SessionError> {
        let loaded = self
            .core
            .journal
            .load::<Operator>(&operator.to_string())
            .await
            .map_err(SessionError::unavailable)?;
        Ok((loaded.state.status == OperatorStatus::Active).then_some(loaded.state))
    }

    /// Gives another role.
    ///
    /// # Errors
    /// Without the permission; for one's own account.
    pub async fn change_role(&self, caller: &Caller, operator: OperatorId, role: Role) -> Outcome {
        let by = self.manager(caller, operator)?;
        self.run(caller, operator, OperatorCommand::ChangeRole { role, by }).await
    }

    /// Shuts out; running sessions end with their access token, within minutes.
    ///
    /// # Errors
    /// Without the permission; for one's own account.
    pub async fn disable(&self, caller: &Caller, operator: OperatorId, reason: Reason) -> Outcome {
        let by = self.manager(caller, operator)?;
        let done = self.run(caller, operator, OperatorCommand::Disable { reason, by }).await?;
        self.credentials
            .revoke_all(operator, self.core.clock.now())
            .await
            .map_err(CommandError::unavailable)?;
        Ok(done)
    }

    /// Lets in again.
    ///
    /// # Errors
    /// Without the permission.
    pub async fn enable(&self, caller: &Caller, operator: OperatorId, reason: Reason) -> Outcome {
        let by = self.manager(caller, operator)?;
        self.run(caller, operator, OperatorCommand::Enable { reason, by }).await
    }

    /// Lets an auditor read personal text until a moment; every reading is noted in the audit table.
    ///
    /// # Errors
    /// Without the permission; for one's own account, for another role, for longer than 30 days.
    pub async fn grant_personal_access(
        &self,
        caller: &Caller,
        operator: OperatorId,
        until: DateTime<Utc>,
        reason: Reason,
    ) -> Outcome {
        let by = self.manager(caller, operator)?;
        self.run(caller, operator, OperatorCommand::GrantPersonalAccess { until, reason, by }).await
    }

    /// Ends that early. Where it has ended it was so already.
    ///
    /// # Errors
    /// Without the permission; for one's own account.
    pub async fn revoke_personal_access(
        &self,
        caller: &Caller,
        operator: OperatorId,
        reason: Reason,
    ) -> Outcome {
        let by = self.manager(caller, operator)?;
        self.run(caller, operator, OperatorCommand::RevokePersonalAccess { reason, by }).await
    }

    fn manager(
        &self,
        caller: &Caller,
        operator: OperatorId,
    ) -> Result<OperatorId, CommandError<OperatorError>> {
        caller.require(Permission::ManageOperators)?;
        match caller.operator_id() {
            Some(by) if by == operator => Err(CommandError::Refused(OperatorError::OwnAccount)),
            by => Ok(by.unwrap_or(OperatorId(uuid::Uuid::nil()))),
        }
    }

    async fn run(&self, caller: &Caller, operator: OperatorId, command: OperatorCommand) -> Outcome {
        execute(&self.core, caller, &operator.to_string(), command, |state: &Operator| {
            if state.status == OperatorStatus::Unknown || !caller.sees(state.workspace) {
                return Err(CommandError::NotFound { what: "operator" });
            }
            Ok(())
        })
        .await
    }

    async fn note(
        &self,
        operator_id: Option<OperatorId>,
        action: &str,
        outcome: &'static str,
        origin: Origin,
    ) {
        self.audit
            .record(AuditEntry {
                operator_id,
                workspace: None,
                action: action.to_owned(),
                outcome,
                detail: serde_json::json!({}),
                source: "graphql",
                origin,
                correlation_id: None,
            })
            .await;
    }
}
