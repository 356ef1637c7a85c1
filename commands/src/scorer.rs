//! What the detectors see in a message, as facts for a policy to judge. Nothing here decides anything:
//! [`PolicyTerms::judge`] does, from what is recorded.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use botledger_domain::{
    BotId, SubjectId, TurnId,
    policy::PolicyTerms,
    signal::{Detector, Findings, IntentFinding, Signal, SignalLevel, TextSpan},
};
use botledger_llm::{EmbeddingProvider, ModerationProvider, ModerationVerdict};
use botledger_scoring::{
    Detectors, Normalised, Span, attack, content,
    evidence::Evidence,
    intent::{EmbeddedIntents, Example, IntentModel, Material, OUT_OF_SCOPE, Options},
    lexicon::BlockedWords,
    pii::{self, MaskStyle, PiiKind, PiiKinds, PiiSpan},
};
use chrono::{DateTime, Utc};
use moka::sync::Cache;
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;
use uuid::Uuid;

use crate::{EffectivePolicy, behaviour::Behaviour};

/// Moderation services and guard models by the name policies call them by.
pub type ModerationServices = BTreeMap<String, Arc<dyn ModerationProvider>>;

/// What detects outside of this process.
#[derive(Clone, Default)]
pub struct DetectorServices {
    pub moderation: ModerationServices,
    /// Absent where no policy may ask for embeddings.
    pub embeddings: Option<Arc<dyn EmbeddingProvider>>,
}

/// How long a moderation service may take before it counts as unavailable: somebody is waiting.
const SERVICE_PATIENCE: Duration = Duration::from_secs(3);
/// How long the vector of a message may take: after that its words have to do.
const EMBEDDING_PATIENCE: Duration = Duration::from_millis(1_500);
/// How long the vectors of a part of a policy's examples may take.
const LEARNING_PATIENCE: Duration = Duration::from_secs(120);
/// Examples that are embedded by one call.
const EMBEDDED_AT_ONCE: usize = 64;
/// What learned policies may take up in this process, in bytes: more than the largest one that can be published.
const MOST_LEARNED: u64 = 1 << 30;
/// How long after a failure a policy's examples are embedded again.
const LEARNING_PAUSE: Duration = Duration::from_secs(60);
/// Signals of one detector that are kept, the strongest first.
const MOST_SIGNALS: usize = 16;
/// Places of one signal that are kept.
const MOST_SPANS: usize = 16;
/// Scores below this are left out of the findings, in thousandths: no line is drawn that low.
const WORTH_KEEPING: u16 = 50;
/// A moderation service's score that is a signal though the service did not flag it, in thousandths.
const MODERATION_SIGNAL: u16 = 500;
/// Characters of a service's own category that are kept.
const LONGEST_CATEGORY: usize = 64;
/// From here on a recogniser of personal data is sure, in thousandths.
const SURE_DATA: u16 = 850;
/// Letters of a version's hash that are recorded with each message.
const SHORT_HASH: usize = 16;
/// What runs in this process, as findings name it when it fails.
const OWN_DETECTORS: [&str; 6] = ["attack", "spam", "category", "personal_data", "secret", "blocked_word"];

/// Asks the detectors.
#[derive(Clone)]
pub(crate) struct Scorer {
    learned: Cache<(Uuid, u32), Arc<Learned>>,
    meanings: Cache<(Uuid, u32), Arc<Mutex<Meaning>>>,
    /// One at a time learns from embeddings: that takes a core for up to a minute.
    learning: Arc<Semaphore>,
    behaviour: Behaviour,
    services: Arc<DetectorServices>,
}

/// What an embedding model makes of a policy's version.
#[derive(Default)]
enum Meaning {
    #[default]
    Unknown,
    Learning,
    Known(Arc<EmbeddedIntents>),
    Failed(Instant),
}

impl Meaning {
    fn bytes(&self) -> u32 {
        match self {
            Self::Known(known) => u32::try_from(known.bytes()).unwrap_or(u32::MAX),
            Self::Unknown | Self::Learning | Self::Failed(_) => 0,
        }
    }
}

/// Whose message is looked at.
#[derive(Clone, Copy)]
pub(crate) struct Sender {
    pub(crate) bot: BotId,
    pub(crate) subject: SubjectId,
    pub(crate) turn: TurnId,
}

/// What a version of a policy teaches the detectors.
#[derive(Default)]
struct Learned {
    /// Absent when the policy names no intents; an error when none could be learned.
    intents: Option<Result<IntentModel, ()>>,
    words: Option<Result<Words, ()>>,
    /// What it takes up, as far as can be told.
    bytes: u32,
}

/// A policy's blocked words, and the number of each entry.
struct Words {
    blocked: BlockedWords,
    numbers: BTreeMap<String, usize>,
}

impl Scorer {
    pub(crate) fn new(services: DetectorServices) -> Self {
        let idle = Duration::from_secs(3_600);
        let learned = Cache::builder()
            .max_capacity(MOST_LEARNED)
            .weigher(|_, learned: &Arc<Learned>| learned.bytes)
            .time_to_idle(idle)
            .build();
        let meanings = Cache::builder()
            .max_capacity(MOST_LEARNED)
            .weigher(|_, meaning: &Arc<Mutex<Meaning>>| {
                meaning.lock().unwrap_or_else(PoisonError::into_inner).bytes()
            })
            .time_to_idle(idle)
            .build();
        let (learning, services) = (Arc::new(Semaphore::new(1)), Arc::new(services));
        Self { learned, meanings, learning, behaviour: Behaviour::new(), services }
    }

    /// Trains what the detectors ship with, once per process.
    pub(crate) fn warm_up() {
        tokio::task::spawn_blocking(|| {
            Detectors::shipped();
        });
    }

    /// Everything there is to say about a text. Looking again at the same turn changes nothing.
    pub(crate) async fn look(
        &self,
        policy: &EffectivePolicy,
        sender: Sender,
        text: &str,
        now: DateTime<Utc>,
    ) -> Findings {
        let begun = Instant::now();
        let (scorer, terms, key, own_text) =
            (self.clone(), Arc::clone(&policy.terms), policy.key, text.to_owned());
        let own =
            tokio::task::spawn_blocking(move || look_ourselves(&scorer.learned(key, &terms), &own_text));
        let (own, (others, meant)) = tokio::join!(own, self.ask_others(policy, text));
        // A detector that fell over is one that gave no answer; the policy says what follows.
        let mut findings = own.unwrap_or_else(|error| {
            // What a panic says may quote the message.
            let panicked = error.is_panic();
            tracing::error!(turn.id = %sender.turn, panicked, "the detectors failed");
            Findings { unavailable: OWN_DETECTORS.map(str::to_owned).to_vec(), ..Findings::default() }
        });
        if let Some((intent, version)) = meant {
            findings.intent = Some(intent);
            findings.models.insert("intent".to_owned(), version);
        }
        for (service, verdict) in others {
            take_verdict(&mut findings, service, verdict);
        }
        let suspicious = [Detector::Attack, Detector::BlockedWord]
            .into_iter()
            .any(|detector| findings.of(detector).next().is_some());
        let Sender { bot, subject, turn } = sender;
        findings.signals.extend(self.behaviour.message(bot, subject, turn, text, suspicious, now));
        count(&findings);
        metrics::histogram!("botledger_scoring_seconds").record(begun.elapsed().as_secs_f64());
        findings
    }

    /// What there is to say about a message beyond the person's own rate limit, which nobody reads; nothing
    /// when it is not one of a flood.
    pub(crate) fn look_at_refused(&self, sender: Sender, now: DateTime<Utc>) -> Option<Findings> {
        let Sender { bot, subject, turn } = sender;
        let signal = self.behaviour.refused(bot, subject, turn, now)?;
        let findings = Findings { signals: vec![signal], ..Findings::default() };
        count(&findings);
        Some(findings)
    }

    /// What a policy's version teaches; learned once per process, which takes up to seconds for very large
    /// policies. Those who wait for the same version wait together.
    fn learned(&self, key: Option<(Uuid, u32)>, terms: &PolicyTerms) -> Arc<Learned> {
        match key {
            Some(key) => self.learned.get_with(key, || Arc::new(Learned::of(terms))),
            None => Arc::default(),
        }
    }

    /// What those outside of this process say. What leaves for them leaves without personal data.
    async fn ask_others<'p>(
        &self,
        policy: &'p EffectivePolicy,
        text: &str,
    ) -> (Vec<(&'p str, Option<ModerationVerdict>)>, Option<(IntentFinding, String)>) {
        let terms = &policy.terms;
        if terms.moderation.is_empty() && terms.embedding_model.is_none() {
            return (vec![], None);
        }
        let text = text.to_owned();
        let masked = tokio::task::spawn_blocking(move || {
            pii::mask_kinds(&text, PiiKinds::personal(), MaskStyle::Kind).text
        });
        // A text that cannot be masked does not leave: nobody is asked, and the policy says what follows.
        let Ok(masked) = masked.await else {
            return (terms.moderation.iter().map(|rule| (rule.service.as_str(), None)).collect(), None);
        };
        tokio::join!(self.ask_services(terms, &masked), self.ask_meaning(policy, &masked))
    }

    async fn ask_services<'p>(
        &self,
        terms: &'p PolicyTerms,
        masked: &str,
    ) -> Vec<(&'p str, Option<ModerationVerdict>)> {
        let deadline = tokio::time::Instant::now() + SERVICE_PATIENCE;
        let asked = terms.moderation.iter().map(|rule| {
            let service = self.services.moderation.get(&rule.service);
            async move {
                let verdict = match service {
                    Some(service) => {
                        service.moderate(masked, deadline).await.map_err(|error| error.to_string())
                    }
                    None => Err("no such service is configured".to_owned()),
                };
                if let Err(problem) = &verdict {
                    tracing::warn!(service = %rule.service, problem, "a moderation service gave no answer");
                }
                (rule.service.as_str(), verdict.ok())
            }
        });
        futures::future::join_all(asked).await
    }
}

impl Scorer {
    /// What a text asks for by its meaning; nothing where the policy names no embedding model, and where the
    /// model gives no answer or does not know the policy yet: then its words have to do.
    async fn ask_meaning(&self, policy: &EffectivePolicy, masked: &str) -> Option<(IntentFinding, String)> {
        let (model, key) = (policy.terms.embedding_model.as_ref()?, policy.key?);
        if policy.terms.intents.is_empty() {
            return None;
        }
        let fallback = |reason: &'static str| {
            metrics::counter!("botledger_embedding_fallbacks_total", "reason" => reason).increment(1);
            None
        };
        let Some(provider) = self.services.embeddings.clone() else { return fallback("none") };
        let Some(known) = self.meaning(key, policy, &provider) else { return fallback("learning") };
        let deadline = tokio::time::Instant::now() + EMBEDDING_PATIENCE;
        let texts = [masked.to_owned()];
        let asked = provider.embed(model.as_str(), &texts, deadline);
        let vector = match tokio::time::timeout_at(deadline, asked).await {
            Ok(Ok(mut vectors)) => vectors.pop()?,
            Ok(Err(error)) => {
                tracing::warn!(error = %error, "an embedding model gave no answer");
                return fallback("unavailable");
            }
            Err(_) => return fallback("timeout"),
        };
        let version = short(known.version());
        let score = tokio::task::spawn_blocking(move || known.predict(vector)).await;
        let Ok(Ok(score)) = score else { return fallback("unfit") };
        let method = format!("embedding {}", model.as_str());
        Some((IntentFinding { intent: score.intent, oos_permille: score.oos_permille, method }, version))
    }

    /// What is known of a policy's version; begins to learn where nobody did.
    fn meaning(
        &self,
        key: (Uuid, u32),
        policy: &EffectivePolicy,
        provider: &Arc<dyn EmbeddingProvider>,
    ) -> Option<Arc<EmbeddedIntents>> {
        let place = self.meanings.get_with(key, Arc::default);
        let mut meaning = place.lock().unwrap_or_else(PoisonError::into_inner);
        match &*meaning {
            Meaning::Known(known) => return Some(Arc::clone(known)),
            Meaning::Learning => return None,
            Meaning::Failed(at) if at.elapsed() < LEARNING_PAUSE => return None,
            Meaning::Unknown | Meaning::Failed(_) => *meaning = Meaning::Learning,
        }
        drop(meaning);
        let (terms, provider) = (Arc::clone(&policy.terms), Arc::clone(provider));
        let (meanings, learning) = (self.meanings.clone(), Arc::clone(&self.learning));
        let learned = tokio::spawn(async move {
            let _turn = learning.acquire_owned().await;
            learn_meaning(&terms, provider.as_ref()).await
        });
        tokio::spawn(async move {
            // What a panic says may quote the examples.
            let learned = learned.await.unwrap_or_else(|_| Err("learning fell over".to_owned()));
            let now = match learned {
                Ok(known) => Meaning::Known(Arc::new(known)),
                Err(problem) => {
                    tracing::warn!(problem, "a policy's intents cannot be learned from their embeddings");
                    Meaning::Failed(Instant::now())
                }
            };
            *place.lock().unwrap_or_else(PoisonError::into_inner) = now;
            // Weighed anew.
            meanings.insert(key, place);
        });
        None
    }
}

async fn learn_meaning(
    terms: &PolicyTerms,
    provider: &dyn EmbeddingProvider,
) -> Result<EmbeddedIntents, String> {
    let Some(model) = &terms.embedding_model else { return Err("no model is named".to_owned()) };
    let material = Material::of(&examples(terms)).map_err(|error| error.to_string())?;
    let texts = material.texts();
    let mut vectors = Vec::with_capacity(texts.len());
    for part in texts.chunks(EMBEDDED_AT_ONCE) {
        let deadline = tokio::time::Instant::now() + LEARNING_PATIENCE;
        let embedded = provider.embed(model.as_str(), part, deadline).await;
        vectors.extend(embedded.map_err(|error| error.to_string())?);
    }
    let (model, rejection) = (model.as_str().to_owned(), Options::default().false_rejection_permille);
    tokio::task::spawn_blocking(move || material.learn(vectors, &model, rejection))
        .await
        .map_err(|_| "learning fell over".to_owned())?
        .map_err(|error| error.to_string())
}

/// A policy's intents and what it is not for, as models are taught.
fn examples(terms: &PolicyTerms) -> Vec<Example> {
    let named = |intent: &str, text: &String| Example { text: text.clone(), intent: intent.to_owned() };
    let mut examples: Vec<Example> = Vec::new();
    for intent in &terms.intents {
        examples.extend(intent.examples.iter().map(|text| named(&intent.name, text)));
    }
    examples.extend(terms.not_this.iter().map(|text| named(OUT_OF_SCOPE, text)));
    examples
}

impl Learned {
    fn of(terms: &PolicyTerms) -> Self {
        let intents = (!terms.intents.is_empty()).then(|| {
            IntentModel::train(&examples(terms), Options::default())
                .map_err(|error| tracing::error!(error = %error, "a policy's intents cannot be learned"))
        });
        let words = (!terms.blocked_words.is_empty()).then(|| Words::of(terms));
        let model = intents.as_ref().and_then(|intents| intents.as_ref().ok());
        let bytes = model.map_or(0, |model| model.to_bytes().len());
        Self { intents, words, bytes: u32::try_from(bytes).unwrap_or(u32::MAX) }
    }
}

impl Words {
    fn of(terms: &PolicyTerms) -> Result<Self, ()> {
        let phrases: Vec<&str> = terms.blocked_words.iter().map(|word| word.phrase.trim()).collect();
        let blocked = BlockedWords::compile(&phrases)
            .map_err(|error| tracing::error!(error = %error, "a policy's blocked words cannot be used"))?;
        let mut numbers = BTreeMap::new();
        for (at, phrase) in phrases.into_iter().enumerate() {
            numbers.entry(phrase.to_owned()).or_insert(at + 1);
        }
        Ok(Self { blocked, numbers })
    }
}

/// What the installation's own detectors see.
fn look_ourselves(learned: &Learned, text: &str) -> Findings {
    let detectors = Detectors::shipped();
    let normalised = Normalised::of(text);
    let seen = detectors.analyse_normalised(text, &normalised);
    let mut findings = Findings::default();

    keep_score(&mut findings, "attack", permille(seen.attack.score));
    if let Some(level) = seen.attack.level {
        let score = permille(seen.attack.score);
        findings.signals.extend(by_rule(Detector::Attack, sure(level), score, &seen.attack.evidence));
    }
    keep_score(&mut findings, "spam", permille(seen.spam.score));
    if let Some(level) = seen.spam.level {
        let score = permille(seen.spam.score);
        findings.signals.extend(by_rule(Detector::Spam, sure(level), score, &seen.spam.evidence));
    }
    for (category, score) in &seen.content.categories {
        keep_score(&mut findings, category, permille(*score as f32));
    }
    for flag in &seen.content.flagged {
        let level = match flag.severity {
            content::Severity::Severe => SignalLevel::Severe,
            _ => SignalLevel::Confident,
        };
        let score = seen.content.categories.get(flag.category).map_or(0, |score| permille(*score as f32));
        let spans = flag.evidence.iter().map(|evidence| evidence.span);
        findings.signals.push(signal(Detector::Category, flag.category, level, score, spans));
    }
    findings.signals.extend(by_kind(&seen.pii));
    match &learned.words {
        Some(Ok(words)) => findings.signals.extend(blocked(words, &normalised)),
        Some(Err(())) => findings.unavailable.push("blocked_word".to_owned()),
        None => {}
    }
    let versions = detectors.versions();
    let models = [("attack", versions.attack), ("spam", versions.spam), ("category", versions.content)];
    findings.models.extend(models.map(|(name, version)| (name.to_owned(), short(&version))));
    match &learned.intents {
        Some(Ok(model)) => {
            let score = model.predict(&normalised);
            let method = "ngram".to_owned();
            findings.intent =
                Some(IntentFinding { intent: score.intent, oos_permille: score.oos_permille, method });
            findings.models.insert("intent".to_owned(), short(model.version()));
        }
        Some(Err(())) => findings.unavailable.push("intent".to_owned()),
        None => {}
    }
    findings
}

fn sure(level: attack::Level) -> SignalLevel {
    match level {
        attack::Level::Suspected => SignalLevel::Suspected,
        attack::Level::Confident => SignalLevel::Confident,
    }
}

/// One signal for each of a detector's rules, in the order of the evidence: strongest first.
fn by_rule(detector: Detector, level: SignalLevel, score: u16, evidence: &[Evidence]) -> Vec<Signal> {
    let mut rules: Vec<&str> = Vec::new();
    for found in evidence {
        if !rules.contains(&found.rule) && rules.len() < MOST_SIGNALS {
            rules.push(found.rule);
        }
    }
    if rules.is_empty() {
        rules.push("model");
    }
    let of_rule = |rule: &str| {
        let spans = evidence.iter().filter(|found| found.rule == rule).map(|found| found.span);
        signal(detector, rule, level, score, spans)
    };
    rules.into_iter().map(of_rule).collect()
}

/// One signal for each kind of personal data or secret.
fn by_kind(spans: &[PiiSpan]) -> Vec<Signal> {
    let mut kinds: BTreeMap<PiiKind, Vec<&PiiSpan>> = BTreeMap::new();
    for span in spans {
        kinds.entry(span.kind).or_default().push(span);
    }
    kinds
        .into_iter()
        .map(|(kind, spans)| {
            let detector =
                if secret_kinds().contains(kind) { Detector::Secret } else { Detector::PersonalData };
            let score = spans.iter().map(|span| span.confidence_permille).max().unwrap_or_default();
            let level = if score >= SURE_DATA { SignalLevel::Confident } else { SignalLevel::Suspected };
            let places = spans.iter().map(|span| Span { start: span.start, end: span.end });
            signal(detector, kind.as_str(), level, score, places)
        })
        .collect()
}

/// The kinds that are secrets; the rest is personal data.
pub(crate) fn secret_kinds() -> PiiKinds {
    [PiiKind::TelegramBotToken, PiiKind::Url, PiiKind::Secret].into_iter().collect()
}

/// One signal for each entry of the policy's list that is in the text.
fn blocked(words: &Words, text: &Normalised) -> Vec<Signal> {
    let mut entries: BTreeMap<usize, Vec<Span>> = BTreeMap::new();
    for hit in words.blocked.find(text) {
        if let Some(number) = words.numbers.get(&hit.word) {
            entries.entry(*number).or_default().push(hit.span);
        }
    }
    let signals = entries.into_iter().take(MOST_SIGNALS).map(|(number, spans)| {
        signal(Detector::BlockedWord, &number.to_string(), SignalLevel::Confident, 1_000, spans)
    });
    signals.collect()
}

fn take_verdict(findings: &mut Findings, service: &str, verdict: Option<ModerationVerdict>) {
    let Some(verdict) = verdict else {
        findings.unavailable.push(service.to_owned());
        return;
    };
    for (category, found) in &verdict.categories {
        keep_score(findings, &format!("{service}.{}", category.as_str()), found.score_permille);
        if found.flagged || found.score_permille >= MODERATION_SIGNAL {
            let level = if found.flagged { SignalLevel::Confident } else { SignalLevel::Suspected };
            let score = found.score_permille;
            findings.signals.push(signal(Detector::Moderation, category.as_str(), level, score, []));
        }
    }
    for other in verdict.others.iter().take(MOST_SIGNALS) {
        // A name of somebody else's goes into the ledger: nothing but what names are made of.
        let plain = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '/' | '.');
        let name: String = other.chars().filter(plain).take(LONGEST_CATEGORY).collect();
        findings.signals.push(signal(Detector::Moderation, &name, SignalLevel::Confident, 1_000, []));
    }
    findings.models.insert(service.to_owned(), verdict.model);
}

fn signal(
    detector: Detector,
    rule: &str,
    level: SignalLevel,
    score_permille: u16,
    spans: impl IntoIterator<Item = Span>,
) -> Signal {
    let spans = spans.into_iter().take(MOST_SPANS).map(|span| TextSpan { start: span.start, end: span.end });
    Signal { detector, rule: rule.to_owned(), level, score_permille, spans: spans.collect() }
}

fn keep_score(findings: &mut Findings, name: &str, score: u16) {
    if score >= WORTH_KEEPING {
        findings.scores.insert(name.to_owned(), score);
    }
}

fn permille(score: f32) -> u16 {
    (score.clamp(0.0, 1.0) * 1_000.0).round() as u16
}

fn short(hash: &str) -> String {
    hash.chars().take(SHORT_HASH).collect()
}

/// One name for all the models that took part; empty when none did.
pub(crate) fn model_version(findings: &Findings) -> String {
    if findings.models.is_empty() {
        return String::new();
    }
    let mut digest = Sha256::new();
    for (name, version) in &findings.models {
        digest.update(format!("{name}={version}\n"));
    }
    short(&hex::encode(digest.finalize()))
}

fn count(findings: &Findings) {
    for signal in &findings.signals {
        let (detector, level): (&'static str, &'static str) = (signal.detector.into(), signal.level.into());
        metrics::counter!("botledger_signals_total", "detector" => detector, "level" => level).increment(1);
    }
    for detector in &findings.unavailable {
        metrics::counter!("botledger_detectors_unavailable_total", "detector" => detector.clone())
            .increment(1);
    }
}

pub(crate) fn describe_metrics() {
    use metrics::{Unit, describe_counter, describe_histogram};
    describe_counter!(
        "botledger_signals_total",
        Unit::Count,
        "What detectors saw in messages, by detector and level"
    );
    describe_counter!(
        "botledger_detectors_unavailable_total",
        Unit::Count,
        "Messages for which a detector gave no answer, by detector or service"
    );
    describe_counter!(
        "botledger_standing_transitions_total",
        Unit::Count,
        "Moves up the ladder of standing, by state and by whether the policy only watches"
    );
    describe_counter!(
        "botledger_embedding_fallbacks_total",
        Unit::Count,
        "Messages whose intent was told by their words though the policy names an embedding model, by why"
    );
    describe_histogram!(
        "botledger_scoring_seconds",
        Unit::Seconds,
        "All detectors and moderation services over one message"
    );
}
