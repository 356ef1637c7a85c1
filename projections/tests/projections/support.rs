//! A desk where any script of commands becomes events, and a projection that counts what it is given.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use botledger_domain::{
    Actor, BodyId, BodyRef, BotId, ConversationId, Decide, EventMetadata, InstanceId, KeyPurpose, Language,
    ModelName, OperatorId, PlanName, Position, Reason, RecordedEvent, ReservationId, Sealed, SubjectId,
    TurnId, WorkspaceId,
    account::{Amounts, Unit},
    bot::{Bot, BotCommand, BotSettings, BotUsername, LeaseEnd, UpdateMode},
    chat_session::{ChatSession, ChatSessionCommand},
    operator::{Login, Operator, OperatorCommand, Role},
    policy::{
        BlockedWord, Policy, PolicyCommand, PolicyMode, PolicyOwner, PolicyRef, PolicyTerms, Response,
        Severity,
    },
    policy_stream,
    price::Price,
    quota::{Period, PlanTerms, Quota, QuotaCommand, ReleaseCause},
    quota_stream,
    signal::{Detector, Findings, IntentFinding, Signal, SignalLevel, TextSpan},
    standing::{
        Evidence, Offence, Scoring, Standing, StandingCommand,
        ladder::{LadderConfig, OffenceKind, Preset},
    },
    standing_stream,
    subject::{Subject, SubjectCommand},
    turn::{Admission, Ask, ChatKind, Lane, Message, RefusalReason, ReplySource, Turn, TurnCommand},
    workspace::{Workspace, WorkspaceCommand},
};
use botledger_journal::{AppendSet, Journal, JournalConfig, Loaded};
use botledger_projections::{LogReader, Projection, ProjectionError};
use chrono::{DateTime, TimeDelta, TimeZone, Utc};
use sqlx::{PgConnection, PgPool};
use strum::IntoEnumIterator;
use uuid::Uuid;

pub(crate) fn noon() -> DateTime<Utc> {
    Utc.with_ymd_and_hms(2026, 11, 24, 12, 0, 0).unwrap()
}

pub(crate) fn metadata() -> EventMetadata {
    EventMetadata::new(&Actor::System("test"), Uuid::now_v7(), Uuid::nil(), "test")
}

pub(crate) fn journal(pool: &PgPool) -> Journal {
    Journal::open(pool.clone(), JournalConfig::default())
}

/// One more process.
pub(crate) fn process() -> InstanceId {
    InstanceId(Uuid::now_v7())
}

/// Waits until something holds; panics after long enough to call it never.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let wait = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), wait)
        .await
        .unwrap_or_else(|_| panic!("never happened: {what}"));
}

/// Appends this many events of the simplest kind, each in a set of its own, on a stream of their own.
pub(crate) async fn append_sessions(journal: &Journal, events: usize) -> Position {
    let stream = Uuid::now_v7();
    let mut chat = Loaded::<ChatSession>::empty(stream.to_string());
    let mut last = Position(0);
    for _ in 0..events {
        let mut set = AppendSet::new(metadata());
        let command = ChatSessionCommand::Open {
            conversation: ConversationId(stream),
            bot: BotId(Uuid::nil()),
            subject: SubjectId(Uuid::nil()),
        };
        set.decide(&mut chat, command, noon()).unwrap();
        last = journal.append(set).await.unwrap().position;
    }
    last
}

/// One command of a script: which kind, and two choices within it.
pub(crate) type Step = (u8, u8, u8);

/// Everything a script has made so far, as the aggregates see it.
pub(crate) struct Desk {
    pub(crate) workspace: Loaded<Workspace>,
    pub(crate) operators: Vec<Loaded<Operator>>,
    pub(crate) bots: Vec<Loaded<Bot>>,
    pub(crate) subjects: Vec<Loaded<Subject>>,
    pub(crate) quotas: Vec<Loaded<Quota>>,
    pub(crate) standings: BTreeMap<(usize, usize), Loaded<Standing>>,
    pub(crate) chats: BTreeMap<(usize, usize), Loaded<ChatSession>>,
    pub(crate) turns: Vec<Loaded<Turn>>,
    /// The workspace's policy, and the bots' own.
    pub(crate) policies: BTreeMap<Option<usize>, Loaded<Policy>>,
    /// Bot and subject of each turn.
    sides: Vec<(usize, usize)>,
    set: AppendSet,
    now: DateTime<Utc>,
    epoch: i64,
}

const BOTS: usize = 2;
const SUBJECTS: usize = 3;
const OPERATORS: usize = 2;

fn many<A: Default>(count: usize, id: impl Fn() -> String) -> Vec<Loaded<A>> {
    (0..count).map(|_| Loaded::empty(id())).collect()
}

fn new_id() -> String {
    Uuid::now_v7().to_string()
}

pub(crate) fn id<T: From<Uuid>, A>(loaded: &Loaded<A>) -> T {
    Uuid::parse_str(&loaded.id).unwrap().into()
}

fn sealed(n: u8) -> Sealed {
    Sealed {
        owner: Uuid::from_u128(n.into()),
        purpose: KeyPurpose::Profile,
        key_version: 1,
        nonce: "00".repeat(24),
        ciphertext: format!("{n:02x}").repeat(20),
    }
}

fn body() -> BodyRef {
    BodyRef { body_id: BodyId(Uuid::now_v7()), bytes: 10, ciphertext_sha256: "cd".repeat(32) }
}

fn reason(n: u8) -> Reason {
    Reason::parse(&format!("причина {n}")).unwrap()
}

fn plan(n: u8) -> PlanName {
    PlanName::parse(&format!("plan-{}", n % 3)).unwrap()
}

fn terms(n: u8) -> PlanTerms {
    let period = [Period::Minute, Period::Hour, Period::Day, Period::Month][usize::from(n % 4)];
    PlanTerms { warn_at_percent: vec![50], ..PlanTerms::tokens(100 + u64::from(n), period) }
}

/// A message of that person: clean, or whatever there is to hold against one, now and then on trial.
pub(crate) fn scoring(bot: BotId, subject: SubjectId, turn: TurnId, a: u8, b: u8) -> Scoring {
    let kinds: Vec<OffenceKind> = OffenceKind::iter().collect();
    let offence = |n: u8| Offence {
        kind: kinds[usize::from(n) % kinds.len()],
        oos_permille: Some(u16::from(n) * 4),
        intent: Some("заказ".to_owned()),
        evidence: vec![Evidence {
            detector: "spam".to_owned(),
            rule: "advert".to_owned(),
            spans: vec![(0, 7)],
        }],
    };
    Scoring {
        bot,
        subject,
        turn,
        offences: (0..b % 4).map(|n| offence(b.wrapping_add(n.wrapping_mul(31)))).collect(),
        rules: LadderConfig::preset(if b > 200 { Preset::Strict } else { Preset::Standard }),
        policy_version: 1 + u32::from(b > 200),
        model_version: "c0ffee".to_owned(),
        dry_run: a > 200,
    }
}

/// Terms that differ from each other.
pub(crate) fn policy_terms(n: u8) -> PolicyTerms {
    let answers = [Response::Ignore, Response::Score, Response::Refuse];
    let response = |at: u8| answers[usize::from(n.wrapping_add(at)) % 3];
    PolicyTerms {
        off_topic: response(0),
        suspected_attack: response(1),
        confident_attack: response(n / 3),
        spam: response(n / 9),
        behaviour: response(n / 27),
        blocked_words: vec![BlockedWord { phrase: "казино".to_owned(), severity: Severity::Medium }],
        preset: [Preset::Lenient, Preset::Standard, Preset::Strict][usize::from(n % 3)],
        throttled_per_minute: u32::from(n) + 1,
        ..PolicyTerms::default()
    }
}

/// Anything detectors may say about a message.
pub(crate) fn findings(a: u8, b: u8) -> Findings {
    let detectors: [(Detector, &str); 8] = [
        (Detector::Attack, "forget"),
        (Detector::Spam, "advert"),
        (Detector::Category, "H2"),
        (Detector::PersonalData, "EMAIL_ADDRESS"),
        (Detector::Secret, "SECRET"),
        (Detector::BlockedWord, "1"),
        (Detector::Behaviour, "flood"),
        (Detector::Moderation, "V"),
    ];
    let levels = [SignalLevel::Suspected, SignalLevel::Confident, SignalLevel::Severe];
    let signal = |n: u8| {
        let (detector, rule) = detectors[usize::from(n) % detectors.len()];
        Signal {
            detector,
            rule: rule.to_owned(),
            // Severe is a rare thing, and blocks whoever it happens to.
            level: levels[usize::from(n % 32) / 15],
            score_permille: 300 + u16::from(n) * 2,
            spans: vec![TextSpan { start: 0, end: u32::from(n) + 1 }],
        }
    };
    Findings {
        intent: (!a.is_multiple_of(4)).then(|| IntentFinding {
            intent: "заказ".to_owned(),
            oos_permille: (u32::from(b) * 1_000 / 255) as u16,
            method: "ngram".to_owned(),
        }),
        signals: (0..a % 3).map(|n| signal(b.wrapping_add(n.wrapping_mul(37)))).collect(),
        scores: BTreeMap::from([("HR".to_owned(), u16::from(a) * 4 % 1_001)]),
        models: BTreeMap::from([("attack".to_owned(), "c0ffee".to_owned())]),
        unavailable: if a == 7 { vec!["openai".to_owned()] } else { vec![] },
    }
}

fn language(n: u8) -> Language {
    if n.is_multiple_of(2) { Language::En } else { Language::Ru }
}

impl Desk {
    pub(crate) fn new() -> Self {
        let workspace = Loaded::empty(new_id());
        let bots = many(BOTS, new_id);
        let subjects: Vec<Loaded<Subject>> = many(SUBJECTS, new_id);
        let quotas = subjects
            .iter()
            .map(|subject| Loaded::empty(quota_stream(id(&workspace), id(subject)).to_string()))
            .collect();
        Self {
            workspace,
            operators: many(OPERATORS, new_id),
            bots,
            subjects,
            quotas,
            standings: BTreeMap::new(),
            chats: BTreeMap::new(),
            turns: Vec::new(),
            policies: BTreeMap::new(),
            sides: Vec::new(),
            set: AppendSet::new(metadata()),
            now: noon(),
            epoch: 0,
        }
    }

    pub(crate) fn workspace_id(&self) -> WorkspaceId {
        id(&self.workspace)
    }

    /// A chat's stream: any id will do that is the same for both sides.
    pub(crate) fn conversation(&self, bot: usize, subject: usize) -> ConversationId {
        ConversationId::of_chat(id(&self.bots[bot]), id::<Uuid, _>(&self.subjects[subject]), None)
    }

    /// Does what a script says; refused commands leave nothing, as everywhere.
    pub(crate) fn play(&mut self, script: &[Step]) {
        for (kind, a, b) in script {
            self.now += TimeDelta::seconds(i64::from(*a) * 7 + i64::from(*b % 4) * 40);
            match kind % 16 {
                0 => self.direct(*a, *b),
                1 => self.operate(*a, *b),
                2 => self.run_bot(*a, *b),
                3 => self.meet(*a, *b),
                4 => self.grant(*a, *b),
                5 => self.moderate(*a, *b),
                6 => self.chat(*a, *b),
                7..=9 => self.receive(*a, *b),
                15 => self.publish(*a, *b),
                _ => self.advance(*a, *b),
            }
        }
    }

    /// Appends everything that was played since, in order.
    pub(crate) async fn commit(&mut self, journal: &Journal) -> Position {
        let set = std::mem::replace(&mut self.set, AppendSet::new(metadata()));
        journal.append(set).await.unwrap().position
    }

    fn direct(&mut self, a: u8, b: u8) {
        let command = match (self.workspace.version, b % 4) {
            (0, _) => {
                WorkspaceCommand::Create { name: format!("ателье {a}"), plan: plan(a), terms: terms(b) }
            }
            (_, 0) => WorkspaceCommand::Rename { name: format!("atelier {a}") },
            (_, 1) => WorkspaceCommand::DefinePlan { plan: plan(a), terms: terms(b) },
            (_, 2) => WorkspaceCommand::SetDefaultPlan { plan: plan(a) },
            _ => WorkspaceCommand::RetirePlan { plan: plan(a), reason: reason(b) },
        };
        let _ = self.set.decide(&mut self.workspace, command, self.now);
    }

    fn operate(&mut self, a: u8, b: u8) {
        let (workspace, by) = (self.workspace_id(), OperatorId(Uuid::nil()));
        let operator = &mut self.operators[usize::from(a) % OPERATORS];
        let login = Login::parse(&format!("operator-{}", &operator.id[..8])).unwrap();
        let role = [Role::Owner, Role::Auditor, Role::Moderator][usize::from(a % 3)];
        let command = match (operator.version, b % 4) {
            (0, _) => {
                OperatorCommand::Invite { workspace, login, role, by: b.is_multiple_of(2).then_some(by) }
            }
            (_, 0) => OperatorCommand::Activate,
            (_, 1) => OperatorCommand::ChangeRole { role, by },
            (_, 2) => OperatorCommand::Disable { reason: reason(a), by },
            _ => OperatorCommand::Enable { reason: reason(a), by },
        };
        let _ = self.set.decide(operator, command, self.now);
    }

    fn run_bot(&mut self, a: u8, b: u8) {
        let workspace = self.workspace_id();
        self.epoch += 1;
        let bot = &mut self.bots[usize::from(a) % BOTS];
        let settings = BotSettings { welcome: Some(format!("привет {b}")), ..BotSettings::default() };
        let held = bot.state.lease_epoch;
        let command = match (bot.version, b % 8) {
            (0, _) => BotCommand::Register {
                workspace,
                username: BotUsername::parse("a_bot").unwrap(),
                telegram_id: 77,
                token: sealed(a),
                token_fingerprint: "first".to_owned(),
                mode: UpdateMode::Polling,
                settings,
            },
            (_, 0) => BotCommand::RotateToken {
                telegram_id: 77,
                token: sealed(b),
                token_fingerprint: format!("{}", self.epoch),
            },
            (_, 1) => BotCommand::Configure { settings, mode: UpdateMode::Webhook },
            (_, 2 | 7) => BotCommand::Start,
            (_, 3) => BotCommand::Stop { reason: reason(a) },
            (_, 4) => BotCommand::Fault { code: "TOKEN_REVOKED".to_owned(), detail: "401".to_owned() },
            (_, 5) => BotCommand::AcquireLease { instance: InstanceId(Uuid::now_v7()), epoch: self.epoch },
            _ if a > 250 => BotCommand::Archive { reason: reason(b) },
            _ => BotCommand::LoseLease { epoch: held, cause: LeaseEnd::Expired },
        };
        let _ = self.set.decide(bot, command, self.now);
    }

    fn see(&mut self, subject: usize, a: u8, b: u8) {
        let command = SubjectCommand::See {
            workspace: self.workspace_id(),
            bot: id(&self.bots[usize::from(a) % BOTS]),
            profile: sealed(b),
            profile_fingerprint: format!("{b}"),
            client_language: language(b),
        };
        let _ = self.set.decide(&mut self.subjects[subject], command, self.now);
    }

    fn meet(&mut self, a: u8, b: u8) {
        let subject = usize::from(a) % SUBJECTS;
        if b.is_multiple_of(3) {
            let command = SubjectCommand::ChooseLanguage { language: language(b) };
            let _ = self.set.decide(&mut self.subjects[subject], command, self.now);
        } else {
            self.see(subject, a, b);
        }
    }

    fn grant(&mut self, a: u8, b: u8) {
        let subject = usize::from(a) % SUBJECTS;
        let by = OperatorId(Uuid::nil());
        let command = if b.is_multiple_of(3) {
            QuotaCommand::GrantOverride {
                unit: Unit::Tokens,
                amount: u64::from(b) + 1,
                expires_at: self.now + TimeDelta::minutes(i64::from(b)),
                reason: reason(a),
                by,
            }
        } else {
            QuotaCommand::AssignPlan {
                workspace: self.workspace_id(),
                subject: id(&self.subjects[subject]),
                plan: plan(b),
                terms: terms(b),
                by: Some(by),
            }
        };
        let _ = self.set.decide(&mut self.quotas[subject], command, self.now);
    }

    fn moderate(&mut self, a: u8, b: u8) {
        let (bot, subject) = (usize::from(a) % BOTS, usize::from(b) % SUBJECTS);
        let (bot_id, subject_id) = (id(&self.bots[bot]), id(&self.subjects[subject]));
        let by = OperatorId(Uuid::nil());
        let turn = TurnId(Uuid::now_v7());
        let until = (b > 100).then(|| self.now + TimeDelta::minutes(i64::from(b)));
        let command = match a % 16 {
            0 | 1 => StandingCommand::Unblock { by, reason: reason(b) },
            2 => StandingCommand::Block { bot: bot_id, subject: subject_id, by, reason: reason(a), until },
            3 | 4 => StandingCommand::FileAppeal { turn, body: b.is_multiple_of(2).then(body) },
            5 => StandingCommand::GrantAppeal { by, reason: b.is_multiple_of(2).then(|| reason(a)) },
            6 => StandingCommand::DenyAppeal { by, reason: reason(a) },
            7 => StandingCommand::Undo { by, reason: reason(a) },
            _ => StandingCommand::Score(Box::new(scoring(bot_id, subject_id, turn, a, b))),
        };
        let standing = self
            .standings
            .entry((bot, subject))
            .or_insert_with(|| Loaded::empty(standing_stream(bot_id, subject_id).to_string()));
        let _ = self.set.decide(standing, command, self.now);
    }

    fn publish(&mut self, a: u8, b: u8) {
        let owner = a.is_multiple_of(3).then_some(usize::from(a) % BOTS);
        let (workspace, bot) = (self.workspace_id(), owner.map(|bot| id(&self.bots[bot])));
        let by = b.is_multiple_of(2).then_some(OperatorId(Uuid::nil()));
        let policy = self
            .policies
            .entry(owner)
            .or_insert_with(|| Loaded::empty(policy_stream(workspace, bot).to_string()));
        let command = match b % 4 {
            0 => PolicyCommand::Withdraw { reason: reason(a), by },
            kind => PolicyCommand::Publish {
                workspace,
                bot,
                terms: Box::new(policy_terms(b)),
                mode: match kind {
                    1 => PolicyMode::Keep,
                    2 => PolicyMode::Live,
                    _ => PolicyMode::DryRun { until: Some(self.now + TimeDelta::minutes(i64::from(a) + 1)) },
                },
                note: a.is_multiple_of(2).then(|| reason(b)),
                by,
            },
        };
        let _ = self.set.decide(policy, command, self.now);
    }

    /// Only in a chat that a message has come from.
    fn chat(&mut self, a: u8, b: u8) {
        let Some((bot, subject)) = self.sides.get(usize::from(a) % self.sides.len().max(1)).copied() else {
            return;
        };
        let conversation = self.conversation(bot, subject);
        let (bot_id, subject_id) = (id(&self.bots[bot]), id(&self.subjects[subject]));
        let chat =
            self.chats.entry((bot, subject)).or_insert_with(|| Loaded::empty(conversation.to_string()));
        let session = 1 + u32::from(a % 3);
        let command = match b % 4 {
            0 => ChatSessionCommand::Open { conversation, bot: bot_id, subject: subject_id },
            1 => ChatSessionCommand::Switch { session },
            2 => ChatSessionCommand::Rename { session, title: sealed(b) },
            _ => ChatSessionCommand::ClearContext,
        };
        let _ = self.set.decide(chat, command, self.now);
    }

    fn receive(&mut self, a: u8, b: u8) {
        let (bot, subject) = (usize::from(a) % BOTS, usize::from(b) % SUBJECTS);
        let turn = TurnId(Uuid::now_v7());
        let mut loaded = Loaded::<Turn>::empty(turn.to_string());
        let bot_id = id(&self.bots[bot]);
        let command = match b % 16 {
            14 => TurnCommand::Record {
                bot: bot_id,
                subject: None,
                update_id: i64::from(a),
                update_kind: "my_chat_member".to_owned(),
                body: body(),
            },
            15 => TurnCommand::RecordUnreadable {
                bot: bot_id,
                update_id: None,
                body: body(),
                problem: "no JSON".to_owned(),
            },
            kind => {
                self.see(subject, a, b % 2);
                let (ask, lane) = match kind {
                    0 => (Ask::Command { name: "start".to_owned() }, Lane::High),
                    1 => (Ask::Unsupported { content: "photo".to_owned() }, Lane::High),
                    2 => (Ask::Callback, Lane::High),
                    _ => (Ask::Text, Lane::Normal),
                };
                TurnCommand::Receive(Message {
                    workspace: self.workspace_id(),
                    bot: bot_id,
                    subject: id(&self.subjects[subject]),
                    conversation: self.conversation(bot, subject),
                    update_id: i64::from(a),
                    chat_kind: if a.is_multiple_of(2) { ChatKind::Private } else { ChatKind::Group },
                    ask,
                    lane,
                    body: body(),
                    language: language(b),
                    sent_at: self.now,
                })
            }
        };
        self.set.decide(&mut loaded, command, self.now).unwrap();
        if loaded.state.message.is_some() {
            self.turns.push(loaded);
            self.sides.push((bot, subject));
        }
    }

    /// Takes a turn one step further, with what belongs to the step in other streams.
    fn advance(&mut self, a: u8, b: u8) {
        let open: Vec<usize> =
            (0..self.turns.len()).filter(|n| self.turns[*n].state.phase.is_open()).collect();
        let Some(turn) = open.get(usize::from(a) % open.len().max(1)).copied() else { return };
        let (bot, subject) = self.sides[turn];
        let conversation = self.conversation(bot, subject);
        let (bot_id, subject_id) = (id(&self.bots[bot]), id(&self.subjects[subject]));
        let reservation: ReservationId = id(&self.turns[turn]);
        let model = ModelName::parse(["llama3.2:3b", "qwen3:4b"][usize::from(a % 2)]).unwrap();
        let held = self.quotas[subject].state.account.holds.contains_key(&reservation);
        let command = match b % 10 {
            9 => TurnCommand::Score {
                policy: PolicyRef {
                    owner: [PolicyOwner::BuiltIn, PolicyOwner::Workspace, PolicyOwner::Bot]
                        [usize::from(a % 3)],
                    version: u32::from(a % 3),
                    dry_run: a.is_multiple_of(2),
                },
                findings: findings(a, b),
            },
            0 | 1 => {
                let chat = self
                    .chats
                    .entry((bot, subject))
                    .or_insert_with(|| Loaded::empty(conversation.to_string()));
                let ensure = ChatSessionCommand::Ensure { conversation, bot: bot_id, subject: subject_id };
                let _ = self.set.decide(chat, ensure, self.now);
                let session = chat.state.current;
                let tokens = u64::from(b) + 1;
                let reserve =
                    QuotaCommand::Reserve { reservation, asked: Amounts { tokens, messages: 1, money: 0 } };
                let _ = self.set.decide(&mut self.quotas[subject], reserve, self.now);
                TurnCommand::Admit(Admission {
                    reservation,
                    reserved_tokens: tokens,
                    price: Price::default(),
                    reserved_money: 0,
                    budgets: vec![],
                    session,
                    context_epoch: 0,
                    provider: "ollama".to_owned(),
                    model,
                    notices: Vec::new(),
                })
            }
            2 => TurnCommand::Refuse {
                reason: match a % 3 {
                    0 => RefusalReason::Blocked { reason: reason(b), until: None },
                    1 => RefusalReason::RateLimited { scope: "user".to_owned(), retry_at: self.now },
                    _ => RefusalReason::TooLong { tokens: 9_000, limit: 4_096 },
                },
                notify: a.is_multiple_of(2),
                notices: vec![],
            },
            3 => match self.turns[turn].state.admission.clone() {
                Some(admission) => {
                    if held {
                        let settle = QuotaCommand::Settle {
                            reservation,
                            actual: Amounts::only(Unit::Tokens, u64::from(a)),
                            estimated: false,
                        };
                        let _ = self.set.decide(&mut self.quotas[subject], settle, self.now);
                    }
                    TurnCommand::Answer {
                        source: ReplySource::Model {
                            provider: admission.provider,
                            model: admission.model,
                            prompt_tokens: u64::from(a),
                            completion_tokens: u64::from(b),
                            estimated: a.is_multiple_of(2),
                            finish: "stop".to_owned(),
                            attempts: 1,
                        },
                        body: body(),
                        latency_ms: u64::from(a) * 3,
                    }
                }
                None => TurnCommand::Answer { source: ReplySource::Platform, body: body(), latency_ms: 1 },
            },
            4 => {
                if held {
                    let release = QuotaCommand::Release { reservation, cause: ReleaseCause::Failed };
                    let _ = self.set.decide(&mut self.quotas[subject], release, self.now);
                }
                TurnCommand::Fail { code: "PROVIDER_UNAVAILABLE".to_owned(), detail: "503".to_owned() }
            }
            5 => TurnCommand::StartDelivery { message_id: i64::from(a) },
            6 if a.is_multiple_of(3) => TurnCommand::GiveUp {
                class: "blocked".to_owned(),
                code: 403,
                description: "blocked".to_owned(),
            },
            6 if a % 3 == 1 => TurnCommand::LoseOutcome { detail: "timed out".to_owned() },
            _ => TurnCommand::Deliver { message_ids: vec![i64::from(a), i64::from(b)] },
        };
        let _ = self.set.decide(&mut self.turns[turn], command, self.now);
    }
}

/// Folds the log into the live tables page by page, from one position to the next border, without a
/// runner; the last page takes the rest.
pub(crate) async fn fold(
    pool: &PgPool,
    projection: &Arc<dyn Projection>,
    after: Position,
    pages: &[usize],
) -> Result<Position, ProjectionError> {
    let log = LogReader::new(pool.clone());
    let mut connection = pool.acquire().await?;
    let mut at = after;
    for page in pages.iter().copied().chain([100_000]) {
        let events: Vec<Arc<RecordedEvent>> =
            log.after(at, page as i64).await?.into_iter().map(Arc::new).collect();
        let Some(last) = events.last() else { break };
        projection.apply(&mut connection, &events).await?;
        at = last.position;
    }
    Ok(at)
}

/// Says that the live rows of a projection stand at a position, as its runner would.
pub(crate) async fn set_checkpoint(pool: &PgPool, name: &str, position: Position) {
    sqlx::query(
        "INSERT INTO projection_checkpoints (name, version, position) VALUES ($1, 1, $2)
         ON CONFLICT (name) DO UPDATE SET position = $2",
    )
    .bind(name)
    .bind(position.0)
    .execute(pool)
    .await
    .unwrap();
}

/// Counts how often it was given each event, and fails at those it is told to.
pub(crate) struct Tally {
    name: &'static str,
    version: i32,
    poison: Mutex<BTreeSet<i64>>,
}

impl Tally {
    pub(crate) async fn create(pool: &PgPool) -> Arc<Self> {
        sqlx::query("CREATE TABLE read.tally (position bigint PRIMARY KEY, times bigint NOT NULL)")
            .execute(pool)
            .await
            .unwrap();
        Self::of_version(1)
    }

    pub(crate) fn of_version(version: i32) -> Arc<Self> {
        Arc::new(Self { name: "tally", version, poison: Mutex::default() })
    }

    pub(crate) fn poison(&self, positions: impl IntoIterator<Item = i64>) {
        *self.poison.lock().unwrap() = positions.into_iter().collect();
    }

    /// Positions in order, with how often each was applied.
    pub(crate) async fn counted(pool: &PgPool) -> Vec<(i64, i64)> {
        sqlx::query_as("SELECT position, times FROM read.tally ORDER BY position")
            .fetch_all(pool)
            .await
            .unwrap()
    }
}

#[async_trait]
impl Projection for Tally {
    fn name(&self) -> &'static str {
        self.name
    }

    fn version(&self) -> i32 {
        self.version
    }

    fn tables(&self) -> &'static [&'static str] {
        &["tally"]
    }

    async fn apply(&self, tx: &mut PgConnection, page: &[Arc<RecordedEvent>]) -> Result<(), ProjectionError> {
        for event in page {
            if self.poison.lock().unwrap().contains(&event.position.0) {
                return Err(ProjectionError::Inconsistent {
                    position: event.position,
                    problem: "it is poison",
                });
            }
            sqlx::query(
                "INSERT INTO tally AS t (position, times) VALUES ($1, 1)
                 ON CONFLICT (position) DO UPDATE SET times = t.times + 1",
            )
            .bind(event.position.0)
            .execute(&mut *tx)
            .await?;
        }
        Ok(())
    }
}

/// Each position once.
pub(crate) fn once(positions: impl IntoIterator<Item = i64>) -> Vec<(i64, i64)> {
    positions.into_iter().map(|position| (position, 1)).collect()
}

/// The aggregate's own answer to whether it decided anything yet.
pub(crate) fn known<A: Decide>(loaded: &Loaded<A>) -> bool {
    loaded.version > 0
}
