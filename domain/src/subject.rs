//! A person, by keyed pseudonym: first seen, what they call themselves (sealed), what they chose.

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::IntoStaticStr;

use crate::{BotId, Decide, DomainError, Language, Sealed, WorkspaceId, aggregate::aggregate};

/// What we know of a person. Names are sealed and stay so.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Subject {
    /// Where they were first seen; absent before that.
    pub workspace: Option<WorkspaceId>,
    /// Sealed JSON of name and username as Telegram tells them.
    pub profile: Option<Sealed>,
    /// Keyed fingerprint of the profile's plaintext: tells a change without unsealing.
    pub profile_fingerprint: Option<String>,
    /// The one they chose, else that of their Telegram client, else that of the first bot they wrote to.
    pub language: Language,
    /// Whether they chose the language themselves.
    pub language_chosen: bool,
}

/// What can be asked.
#[derive(Clone, Debug)]
pub enum SubjectCommand {
    /// A message came from this person.
    See {
        workspace: WorkspaceId,
        bot: BotId,
        profile: Sealed,
        profile_fingerprint: String,
        client_language: Language,
    },
    /// The person picked a language in `/settings`.
    ChooseLanguage { language: Language },
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, IntoStaticStr)]
#[serde(tag = "type", rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum SubjectEvent {
    /// The first message of a person in this workspace.
    FirstSeen {
        workspace: WorkspaceId,
        bot: BotId,
        profile: Sealed,
        profile_fingerprint: String,
        language: Language,
        first_seen_at: DateTime<Utc>,
    },
    /// The person changed name or username.
    ProfileChanged { profile: Sealed, profile_fingerprint: String, changed_at: DateTime<Utc> },
    /// The person chose a language.
    LanguageChosen { language: Language, chosen_at: DateTime<Utc> },
}

/// Why a command was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubjectError {
    /// Nobody has seen this person yet.
    #[error("this person is not known")]
    Unknown,
}

impl DomainError for SubjectError {
    fn code(&self) -> &'static str {
        match self {
            Self::Unknown => "SUBJECT_UNKNOWN",
        }
    }
}

impl Decide for Subject {
    fn decide(&self, command: SubjectCommand, now: DateTime<Utc>) -> Result<Vec<SubjectEvent>, SubjectError> {
        match command {
            SubjectCommand::See { workspace, bot, profile, profile_fingerprint, client_language } => {
                if self.workspace.is_none() {
                    return Ok(vec![SubjectEvent::FirstSeen {
                        workspace,
                        bot,
                        profile,
                        profile_fingerprint,
                        language: client_language,
                        first_seen_at: now,
                    }]);
                }
                if self.profile_fingerprint.as_ref() == Some(&profile_fingerprint) {
                    return Ok(vec![]);
                }
                Ok(vec![SubjectEvent::ProfileChanged { profile, profile_fingerprint, changed_at: now }])
            }
            SubjectCommand::ChooseLanguage { language } => {
                if self.workspace.is_none() {
                    return Err(SubjectError::Unknown);
                }
                if self.language_chosen && self.language == language {
                    return Ok(vec![]);
                }
                Ok(vec![SubjectEvent::LanguageChosen { language, chosen_at: now }])
            }
        }
    }
}

impl Subject {
    fn record(&mut self, event: SubjectEvent) {
        match event {
            SubjectEvent::FirstSeen { workspace, profile, profile_fingerprint, language, .. } => {
                self.workspace = Some(workspace);
                self.profile = Some(profile);
                self.profile_fingerprint = Some(profile_fingerprint);
                self.language = language;
            }
            SubjectEvent::ProfileChanged { profile, profile_fingerprint, .. } => {
                self.profile = Some(profile);
                self.profile_fingerprint = Some(profile_fingerprint);
            }
            SubjectEvent::LanguageChosen { language, .. } => {
                self.language = language;
                self.language_chosen = true;
            }
        }
    }
}

aggregate!(Subject, "subject", SubjectCommand, SubjectEvent, SubjectError);

#[cfg(test)]
mod tests;
