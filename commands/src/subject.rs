use std::sync::Arc;

use botledger_domain::{
    BotId, KeyPurpose, Language, Sealed, SubjectId, WorkspaceId,
    operator::Permission,
    subject::{Subject, SubjectCommand, SubjectError},
};
use serde::{Deserialize, Serialize};

use crate::{
    Caller, CommandError, Core, VaultError,
    execute::{Executed, execute},
};

/// What Telegram tells of a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PersonFacts {
    /// Telegram's user id, up to 52 bits.
    pub telegram_id: i64,
    pub first_name: String,
    pub last_name: Option<String>,
    pub username: Option<String>,
    /// IETF tag of the person's Telegram client.
    pub language_tag: Option<String>,
}

/// The part of it that is sealed into the subject's profile, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    pub telegram_id: i64,
    pub first_name: String,
    pub last_name: Option<String>,
    pub username: Option<String>,
}

/// People.
#[derive(Clone)]
pub struct Subjects {
    core: Arc<Core>,
}

impl Subjects {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self { core }
    }

    /// Takes note of a person who wrote: records who is new or renamed. Gives the language to speak: that
    /// of the person, or the bot's own for newcomers whose client's is unknown.
    ///
    /// # Errors
    /// When ledger or keys cannot be used.
    pub async fn see(
        &self,
        caller: &Caller,
        workspace: WorkspaceId,
        bot: BotId,
        person: &PersonFacts,
        default_language: Language,
    ) -> Result<Language, CommandError<SubjectError>> {
        let subject = self.core.vault.subject_id(workspace, person.telegram_id);
        let profile = Profile {
            telegram_id: person.telegram_id,
            first_name: person.first_name.clone(),
            last_name: person.last_name.clone(),
            username: person.username.clone(),
        };
        let profile = serde_json::to_vec(&profile).map_err(CommandError::broken)?;
        let profile_fingerprint = self.core.vault.fingerprint("profile", &profile);
        let known = self.core.journal.load::<Subject>(&subject.to_string()).await?;
        if known.state.profile_fingerprint.as_ref() == Some(&profile_fingerprint) {
            return Ok(known.state.language);
        }
        let profile = self.core.vault.seal(subject.uuid(), KeyPurpose::Profile, &profile).await?;
        let command = SubjectCommand::See {
            workspace,
            bot,
            profile,
            profile_fingerprint,
            client_language: person
                .language_tag
                .as_deref()
                .and_then(Language::nearest)
                .unwrap_or(default_language),
        };
        let done = execute::<Subject>(&self.core, caller, &subject.to_string(), command, |_| Ok(())).await?;
        Ok(done.after.state.language)
    }

    /// The person picks a language.
    ///
    /// # Errors
    /// Without the permission; when the person is not known or the ledger cannot be used.
    pub async fn choose_language(
        &self,
        caller: &Caller,
        subject: SubjectId,
        language: Language,
    ) -> Result<Executed<Subject>, CommandError<SubjectError>> {
        caller.require(Permission::Moderate)?;
        let command = SubjectCommand::ChooseLanguage { language };
        execute(&self.core, caller, &subject.to_string(), command, |state: &Subject| {
            if state.workspace.is_some() && !caller.sees(state.workspace) {
                return Err(CommandError::NotFound { what: "person" });
            }
            Ok(())
        })
        .await
    }

    /// Opens the sealed profile; absent when the person is unknown or was erased.
    ///
    /// # Errors
    /// When keys or ledger cannot be used.
    pub async fn profile(&self, subject: SubjectId) -> Result<Option<Profile>, CommandError<SubjectError>> {
        let known = self.core.journal.load::<Subject>(&subject.to_string()).await?;
        let Some(sealed) = known.state.profile else { return Ok(None) };
        Ok(self.open_profile(&sealed).await?)
    }

    /// Opens a profile that was read somewhere; absent when its person was erased.
    ///
    /// # Errors
    /// When keys cannot be used.
    pub async fn open_profile(&self, sealed: &Sealed) -> Result<Option<Profile>, VaultError> {
        match self.core.vault.open(sealed).await {
            Ok(plaintext) => Ok(serde_json::from_slice(&plaintext).ok()),
            Err(VaultError::Shredded) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
