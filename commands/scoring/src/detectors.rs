//! All detectors over one reading of a text.

use std::sync::{Arc, LazyLock};

use crate::Normalised;
use crate::attack::{AttackModel, AttackScore};
use crate::content::{ContentModel, ContentScore};
use crate::pii::{self, PiiSpan};
use crate::spam::{SpamModel, SpamScore};

/// The detectors a workspace uses. Cloning shares the models.
#[derive(Clone, Debug)]
pub struct Detectors {
    attack: Arc<AttackModel>,
    spam: Arc<SpamModel>,
    content: Arc<ContentModel>,
}

/// What all detectors say about one text. Spans are code points of the original.
#[derive(Clone, Debug, PartialEq)]
pub struct Analysis {
    pub attack: AttackScore,
    pub spam: SpamScore,
    pub content: ContentScore,
    /// Personal data and secrets, in order.
    pub pii: Vec<PiiSpan>,
}

impl Detectors {
    /// The detectors without any operator's data. The first call of a process trains them, which takes a
    /// fraction of a second: make it at start.
    pub fn shipped() -> &'static Self {
        static SHIPPED: LazyLock<Detectors> = LazyLock::new(|| {
            Detectors::new(
                Arc::new(AttackModel::shipped().clone()),
                Arc::new(SpamModel::shipped().clone()),
                Arc::new(ContentModel::shipped().clone()),
            )
        });
        &SHIPPED
    }

    /// Detectors with models of an operator's own; [`Detectors::with_attack`] and its siblings replace one.
    #[must_use]
    pub fn new(attack: Arc<AttackModel>, spam: Arc<SpamModel>, content: Arc<ContentModel>) -> Self {
        Self { attack, spam, content }
    }

    /// The same with another attack model.
    #[must_use]
    pub fn with_attack(self, attack: Arc<AttackModel>) -> Self {
        Self { attack, ..self }
    }

    /// The same with another spam model.
    #[must_use]
    pub fn with_spam(self, spam: Arc<SpamModel>) -> Self {
        Self { spam, ..self }
    }

    /// The same with another content model.
    #[must_use]
    pub fn with_content(self, content: Arc<ContentModel>) -> Self {
        Self { content, ..self }
    }

    /// Runs all detectors. Of a very long text its beginning and its end are read
    /// ([`crate::normalise::READ_EACH_END`]), except for personal data, which must not slip through anywhere.
    #[must_use]
    pub fn analyse(&self, text: &str) -> Analysis {
        self.analyse_normalised(text, &Normalised::of(text))
    }

    /// As [`Detectors::analyse`], for a text that was normalised already.
    #[must_use]
    pub fn analyse_normalised(&self, text: &str, normalised: &Normalised) -> Analysis {
        Analysis {
            attack: self.attack.score_normalised(text, normalised),
            spam: self.spam.score(normalised),
            content: self.content.score(normalised),
            pii: pii::find(text),
        }
    }

    /// The version of every model, to be stored beside what they said.
    #[must_use]
    pub fn versions(&self) -> Versions {
        Versions {
            attack: self.attack.version().to_owned(),
            spam: self.spam.version().to_owned(),
            content: self.content.version().to_owned(),
        }
    }
}

/// Which models spoke: hashes of what they were made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versions {
    pub attack: String,
    pub spam: String,
    pub content: String,
}
