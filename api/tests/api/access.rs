//! Who may ask for what: the schema is walked, so that no field can be added without a decision.

use std::collections::{BTreeMap, BTreeSet};

use botledger_commands::{Caller, PolicyScope};
use botledger_domain::{
    Reason,
    operator::{
        Permission::{self, *},
        Role,
    },
    policy::{PolicyMode, PolicyTerms},
};
use reqwest::header;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::{
    http::INTROSPECTION,
    support::{Platform, code_of, system},
};

/// Root fields that anybody may ask for: how else to get in.
const PUBLIC: [&str; 4] = ["sessionActivate", "sessionLogin", "sessionRefresh", "sessionLogout"];

/// What every other root field needs.
const NEEDS: &[(&str, Permission)] = &[
    ("auditEntries", ReadLedger),
    ("bot", ReadOperations),
    ("bots", ReadOperations),
    ("botRegister", ManageBots),
    ("botRotateToken", ManageBots),
    ("botConfigure", ManageBots),
    ("botStart", ManageBots),
    ("botStop", ManageBots),
    ("botArchive", ManageBots),
    ("checkpoint", ReadLedger),
    ("consistencyProof", ReadLedger),
    ("inclusionProof", ReadLedger),
    ("conversation", ReadOperations),
    ("conversations", ReadOperations),
    ("conversationOpenSession", Moderate),
    ("conversationSwitchSession", Moderate),
    ("conversationRenameSession", Moderate),
    ("conversationClearContext", Moderate),
    ("event", ReadLedger),
    ("events", ReadLedger),
    ("eventRecorded", ReadLedger),
    ("node", ReadOperations),
    ("nodes", ReadOperations),
    ("moderationQueue", ReadOperations),
    ("moderationCase", ReadOperations),
    ("moderationDecide", Moderate),
    ("me", ReadSelf),
    ("operator", ReadLedger),
    ("operators", ReadLedger),
    ("operatorInvite", ManageOperators),
    ("operatorChangeRole", ManageOperators),
    ("operatorDisable", ManageOperators),
    ("operatorEnable", ManageOperators),
    ("operatorGrantPersonalAccess", ManageOperators),
    ("operatorRevokePersonalAccess", ManageOperators),
    ("person", ReadOperations),
    ("people", ReadOperations),
    ("personChooseLanguage", Moderate),
    ("platform", ReadSelf),
    ("projections", ReadOperations),
    ("projectionChanges", ReadOperations),
    ("projectionDecide", ManageBots),
    ("projectionRebuild", ManageBots),
    ("projectionSwap", ManageBots),
    ("projectionRollBack", ManageBots),
    ("projectionCancelRebuild", ManageBots),
    ("projectionForgetPrevious", ManageBots),
    ("quota", ReadOperations),
    ("quotas", ReadOperations),
    ("quotaAssignPlan", ManageQuotas),
    ("quotaGrantOverride", ManageQuotas),
    ("budget", ReadOperations),
    ("budgets", ReadOperations),
    ("budgetSet", ManageQuotas),
    ("budgetRaise", ManageQuotas),
    ("budgetRemove", ManageQuotas),
    ("standing", ReadOperations),
    ("standings", ReadOperations),
    ("standingBlock", Moderate),
    ("standingUnblock", Moderate),
    ("standingAppealGrant", Moderate),
    ("standingAppealDeny", Moderate),
    ("standingUndo", Moderate),
    ("standingChanged", ReadOperations),
    ("turn", ReadOperations),
    ("turns", ReadOperations),
    ("turnFail", ManageBots),
    ("turnChanged", ReadOperations),
    ("usage", ReadUsage),
    ("workspace", ReadSelf),
    ("workspaceRename", ManageBots),
    ("planDefine", ManageQuotas),
    ("planSetDefault", ManageQuotas),
    ("planRetire", ManageQuotas),
    ("rateLimits", ReadOperations),
    ("rateOverride", ReadOperations),
    ("rateOverrides", ReadOperations),
    ("rateOverrideSet", ManageQuotas),
    ("rateOverrideRemove", ManageQuotas),
    ("policy", ReadOperations),
    ("policyVersion", ReadOperations),
    ("policyVersions", ReadOperations),
    ("effectivePolicy", ReadOperations),
    ("policyWhatIf", ReadOperations),
    ("planWhatIf", ReadOperations),
    ("history", ReadLedger),
    ("changes", ReadLedger),
    ("policyPublish", ManagePolicies),
    ("policyRestore", ManagePolicies),
    ("policyWithdraw", ManagePolicies),
    ("policyChanged", ReadOperations),
    ("accessList", ReadOperations),
    ("accessEntries", ReadOperations),
    ("accessListAdd", ManagePolicies),
    ("accessListRemove", ManagePolicies),
    ("accessListClose", ManagePolicies),
    ("accessListOpen", ManagePolicies),
];

/// Inputs of which exactly one field is given.
const ONE_OF: [&str; 3] = ["AccessTargetInput", "AsOf", "HolderInput"];

/// Fields below the root that need `ReadPersonal`, with a query that gets there.
const PERSONAL: [(&str, &str); 6] = [
    ("Person.profile", "query q($id: ID!) { turn(id: $id) { person { profile { firstName } } } }"),
    ("Turn.prompt", "query q($id: ID!) { turn(id: $id) { prompt } }"),
    ("Turn.reply", "query q($id: ID!) { turn(id: $id) { reply } }"),
    (
        "Conversation.exchanges",
        "{ conversations(first: 5) { edges { node { exchanges(first: 5) { edges { cursor } } } } } }",
    ),
    ("ModerationCase.appealText", "{ moderationQueue { edges { node { appealText } } } }"),
    ("ChatSession.title", "{ conversations { edges { node { sessions { title } } } } }"),
];

/// Texts and numbers that could say something about a person and do not: everything else that may is
/// behind one of the fields above.
const PLAIN: &str = "
    AccessEntry.network AccessEntry.reason
    AuditChange.before
    AuditEntry.action AuditEntry.correlationId AuditEntry.detail AuditEntry.instance AuditEntry.source
    AuditEntry.sourceIp AuditEntry.userAgent
    DetectorModel.name DetectorModel.version DetectorScore.name
    Findings.intent Findings.intentMethod Findings.unavailable Signal.rule
    Ladder.afterBlock Ladder.baseBlockMs Ladder.creditDrift Ladder.creditViolation Ladder.driftHalfLifeMs
    Ladder.ladderWindowMs Ladder.maxBlockMs Ladder.tempBlock Ladder.throttle Ladder.throttleExit
    Ladder.violationHalfLifeMs Ladder.warn Ladder.warnExit
    PolicyBlockedWord.phrase PolicyCategory.category PolicyChange.eventType PolicyIntent.examples
    PolicyIntent.name PolicyModeration.service PolicyTerms.embeddingModel PolicyTerms.notThis
    PolicyVersion.note PolicyVersion.withdrawalReason
    Checkpoint.note Checkpoint.origin Checkpoint.rootHash ConsistencyProof.hashes ConsistencyProof.text
    InclusionProof.hashes InclusionProof.text
    Bot.holder Bot.leaseEpoch Bot.statusReason Bot.telegramId Bot.username
    BotSettings.model BotSettings.systemPrompt BotSettings.welcome
    Conversation.messages Conversation.turnCount
    Event.actor Event.aggregateId Event.aggregateType Event.correlationId Event.eventType
    Event.eventVersion Event.instance Event.leafHash Event.payload Event.source
    Operator.login
    Person.messages
    LimitLeft.carried LimitLeft.limit LimitLeft.remaining LimitLeft.reserved LimitLeft.used
    LimitWarning.limit LimitWarning.used
    Plan.name Plan.tokens PlanLimit.amount PlanLimit.rollOver
    PlanWhatIf.demandsChanged PlanWhatIf.estimated PlanWhatIf.peopleAsked PlanWhatIf.peopleChanged PlanWhatIf.unknown
    PlanWhatIfSums.held PlanWhatIfSums.refused PlanWhatIfSums.warnings
    Platform.simulated Platform.version
    Projection.error Projection.failedStream Projection.failedType Projection.holder Projection.name
    Projection.status ProjectionChange.actor ProjectionChange.change ProjectionChange.name
    ProjectionChange.reason ProjectionComparison.different ProjectionComparison.liveRows
    ProjectionComparison.rows ProjectionRebuild.error ProjectionRebuild.state
    Quota.plan Quota.planTokens Quota.refusals Quota.reserved Quota.used
    QuotaOverride.amount QuotaOverride.tokens
    Raise.amount
    RateLimitState.limit RateLimitState.perMinute RateLimitState.remaining
    RateOverride.name RateOverride.reason
    SessionTokens.accessToken SessionTokens.login SessionTokens.refreshToken
    Evidence.detector Evidence.rule
    LadderThresholds.tempBlockMilli LadderThresholds.throttleExitMilli LadderThresholds.throttleMilli
    LadderThresholds.warnExitMilli LadderThresholds.warnMilli
    ModerationCase.reason ModerationCase.scoreMilli
    ScoredOffence.intent ScoredOffence.pointsMilli
    Scoring.driftAfterMilli Scoring.driftBeforeMilli Scoring.modelVersion Scoring.pointsMilli
    Scoring.violationAfterMilli Scoring.violationBeforeMilli
    Standing.driftMilli Standing.modelVersion Standing.reason Standing.scoreMilli Standing.tempBlocks
    Standing.trialScoreMilli Standing.violationMilli Standing.warnings
    StandingChange.eventType
    StandingContribution.liveMilli StandingContribution.modelVersion
    StandingExplanation.driftMilli StandingExplanation.modelVersion StandingExplanation.reason
    StandingExplanation.scoreMilli StandingExplanation.violationMilli
    StateChange.after StateChange.before StateChange.path StateChanges.events
    Turn.command Turn.completionTokens Turn.failure Turn.finish Turn.latencyMs Turn.messageIds
    Turn.model Turn.promptTokens Turn.provider Turn.refusal Turn.refusalKind Turn.reservedTokens
    Turn.updateId
    TurnChange.eventType
    Usage.admitted Usage.answered Usage.completionTokens Usage.delivered Usage.failed Usage.latencyMsSum
    Usage.messages Usage.model Usage.outcomeUnknown Usage.promptTokens Usage.refused Usage.undeliverable
    UserError.code UserError.field UserError.message
    WhatIfAmounts.messages WhatIfAmounts.money WhatIfAmounts.tokens
    Workspace.defaultPlan Workspace.name
";

/// Through which permissions each type can be got at.
const REACHED: &[(&str, &str)] = &[
    ("AccessEntry", "manage_policies read_operations"),
    ("AccessList", "manage_policies read_operations"),
    ("AuditChange", "read_ledger"),
    ("AuditEntry", "read_ledger"),
    ("Bot", "manage_bots moderate read_operations"),
    ("BotSettings", "manage_bots moderate read_operations"),
    ("Budget", "manage_quotas read_operations"),
    ("ChatSession", "moderate read_operations"),
    ("Checkpoint", "read_ledger"),
    ("ConsistencyProof", "read_ledger"),
    ("Conversation", "moderate read_operations"),
    ("DetectorModel", "manage_bots moderate read_operations"),
    ("DetectorScore", "manage_bots moderate read_operations"),
    ("EffectivePolicy", "read_operations"),
    ("Event", "read_ledger"),
    ("Evidence", "moderate read_operations"),
    ("ExhaustedLimit", "manage_quotas read_operations"),
    ("Findings", "manage_bots moderate read_operations"),
    ("HistoryStep", "read_ledger"),
    ("InclusionProof", "read_ledger"),
    ("Ladder", "manage_bots manage_policies moderate read_operations"),
    ("LadderPoints", "manage_bots manage_policies moderate read_operations"),
    ("LadderThresholds", "moderate read_operations"),
    ("LimitLeft", "manage_bots manage_quotas moderate read_operations"),
    ("LimitWarning", "manage_bots manage_quotas moderate read_operations"),
    ("ModerationCase", "moderate read_operations"),
    ("ModerationOutcome", "moderate"),
    // Of read_operations only where it is read_ledger as well: `node` looks itself.
    ("Operator", "manage_operators read_ledger read_operations read_self"),
    ("ParallelAnswers", "manage_bots moderate read_operations"),
    ("Person", "manage_bots moderate read_operations"),
    ("Plan", "manage_bots manage_quotas read_operations read_self"),
    ("PlanLimit", "manage_bots manage_quotas moderate read_operations read_self"),
    ("PlanWhatIf", "read_operations"),
    ("PlanWhatIfSums", "read_operations"),
    ("Platform", "read_self"),
    ("Policy", "manage_policies read_operations"),
    ("PolicyBlockedWord", "manage_bots manage_policies moderate read_operations"),
    ("PolicyCategory", "manage_bots manage_policies moderate read_operations"),
    ("PolicyChange", "read_operations"),
    ("PolicyIntent", "manage_bots manage_policies moderate read_operations"),
    ("PolicyModeration", "manage_bots manage_policies moderate read_operations"),
    ("PolicyTerms", "manage_bots manage_policies moderate read_operations"),
    ("PolicyVersion", "manage_bots manage_policies moderate read_operations"),
    ("PolicyWhatIf", "read_operations"),
    ("Projection", "manage_bots read_operations"),
    ("ProjectionChange", "read_operations"),
    ("ProjectionComparison", "manage_bots read_operations"),
    ("ProjectionRebuild", "manage_bots read_operations"),
    ("Quota", "manage_bots manage_quotas moderate read_operations"),
    ("QuotaOverride", "manage_bots manage_quotas moderate read_operations"),
    ("Raise", "manage_quotas read_operations"),
    ("RateLimit", "manage_bots manage_quotas moderate read_operations"),
    ("RateLimitState", "read_operations"),
    ("RateLimits", "manage_bots moderate read_operations"),
    ("RateOverride", "manage_quotas read_operations"),
    ("ScoredOffence", "moderate read_operations"),
    ("Scoring", "moderate read_operations"),
    ("SessionTokens", "nothing"),
    ("Signal", "manage_bots moderate read_operations"),
    ("Standing", "moderate read_operations"),
    ("StandingChange", "read_operations"),
    ("StandingContribution", "moderate read_operations"),
    ("StandingExplanation", "moderate read_operations"),
    ("StateChange", "read_ledger"),
    ("StateChanges", "read_ledger"),
    ("TextSpan", "manage_bots moderate read_operations"),
    ("TokenRates", "manage_bots moderate read_operations"),
    ("Turn", "manage_bots moderate read_operations"),
    ("TurnChange", "read_operations"),
    ("TurnPolicy", "manage_bots moderate read_operations"),
    ("Usage", "read_usage"),
    ("UserError", "manage_bots manage_operators manage_policies manage_quotas moderate nothing"),
    ("WhatIfAmounts", "read_operations"),
    ("WhatIfDemand", "read_operations"),
    ("WhatIfLimit", "read_operations"),
    ("WhatIfMessages", "read_operations"),
    ("WhatIfOffences", "read_operations"),
    ("WhatIfPeople", "read_operations"),
    ("WhatIfPerson", "read_operations"),
    ("WhatIfQuota", "read_operations"),
    ("WhatIfRungs", "read_operations"),
    ("WhatIfSums", "read_operations"),
    ("WhatIfTurn", "read_operations"),
    ("Workspace", "manage_bots manage_quotas read_operations read_self"),
];

const ROLES: [Role; 6] =
    [Role::Owner, Role::Admin, Role::Moderator, Role::Auditor, Role::Analyst, Role::Member];

/// The schema as introspection shows it.
struct Schema {
    types: BTreeMap<String, Value>,
}

impl Schema {
    fn read(data: &Value) -> Self {
        let types = data["__schema"]["types"].as_array().unwrap();
        Self {
            types: types.iter().map(|one| (one["name"].as_str().unwrap().to_owned(), one.clone())).collect(),
        }
    }

    fn fields(&self, name: &str) -> &[Value] {
        self.types[name]["fields"].as_array().map_or(&[], Vec::as_slice)
    }

    /// What a field or an argument is in the end.
    fn named(kind: &Value) -> &str {
        match kind["name"].as_str() {
            Some(name) => name,
            None => Self::named(&kind["ofType"]),
        }
    }

    /// All types that a field leads to without passing a personal one.
    fn reach(&self, field: &Value, seen: &mut BTreeSet<String>) {
        let name = Self::named(&field["type"]);
        let possible = self.types[name]["possibleTypes"].as_array().map_or(&[] as &[_], Vec::as_slice);
        for name in possible.iter().map(Self::named).chain([name]) {
            if !seen.insert(name.to_owned()) {
                continue;
            }
            for field in self.fields(name) {
                if !is_personal(name, field) {
                    self.reach(field, seen);
                }
            }
        }
    }

    /// A value that has the shape of a type.
    fn value(&self, kind: &Value) -> String {
        match (kind["kind"].as_str().unwrap(), kind["name"].as_str()) {
            ("NON_NULL", _) => self.value(&kind["ofType"]),
            ("LIST", _) => format!("[{}]", self.value(&kind["ofType"])),
            ("ENUM", Some(name)) => self.types[name]["enumValues"][0]["name"].as_str().unwrap().to_owned(),
            ("INPUT_OBJECT", Some(name)) => {
                let fields = self.types[name]["inputFields"].as_array().unwrap();
                let first = ONE_OF.contains(&name).then(|| fields[0]["name"].clone());
                let required = fields.iter().filter(|field| {
                    field["type"]["kind"] == "NON_NULL" || Some(&field["name"]) == first.as_ref()
                });
                let given: Vec<String> = required
                    .map(|field| {
                        format!("{}: {}", field["name"].as_str().unwrap(), self.value(&field["type"]))
                    })
                    .collect();
                format!("{{{}}}", given.join(", "))
            }
            (_, Some("DateTime")) => "\"2026-11-24T10:00:00Z\"".to_owned(),
            (_, Some("ID")) => "\"bot:01900000-0000-7000-8000-000000000000\"".to_owned(),
            (_, Some("Int")) => "1".to_owned(),
            (_, Some("Boolean")) => "true".to_owned(),
            _ => "\"1\"".to_owned(),
        }
    }

    /// A document that asks for one root field with what it needs.
    fn document(&self, operation: &str, field: &Value) -> String {
        let arguments = field["args"].as_array().unwrap();
        let required = arguments.iter().filter(|argument| argument["type"]["kind"] == "NON_NULL");
        let given: Vec<String> = required
            .map(|argument| {
                format!("{}: {}", argument["name"].as_str().unwrap(), self.value(&argument["type"]))
            })
            .collect();
        // A subscription begins with what happened, or there would be nothing to see.
        let arguments = if operation == "subscription" {
            "(after: \"0\")".to_owned()
        } else if given.is_empty() {
            String::new()
        } else {
            format!("({})", given.join(", "))
        };
        format!("{operation} {{ {}{arguments} {{ __typename }} }}", field["name"].as_str().unwrap())
    }
}

fn is_personal(parent: &str, field: &Value) -> bool {
    let name = format!("{parent}.{}", field["name"].as_str().unwrap());
    PERSONAL.iter().any(|(personal, _)| *personal == name)
}

/// What stands around things: lists, answers.
fn is_frame(name: &str) -> bool {
    name == "PageInfo" || ["Connection", "Edge", "Payload"].iter().any(|end| name.ends_with(end))
}

async fn schema(platform: &Platform, token: &str) -> Schema {
    Schema::read(&platform.data(token, INTROSPECTION, json!({})).await)
}

/// The first answer, over whatever transport the operation has.
async fn first(platform: &Platform, token: Option<&str>, operation: &str, document: &str) -> Value {
    if operation != "subscription" {
        return platform.post(token, document, json!({})).await.json();
    }
    let request = platform.http.post(platform.url()).header(header::ACCEPT, "text/event-stream");
    let request = match token {
        Some(token) => request.bearer_auth(token),
        None => request,
    };
    let mut response = request.json(&json!({"query": document})).send().await.unwrap();
    let mut text = String::new();
    while !text.contains("\n\n") {
        text.push_str(std::str::from_utf8(&response.chunk().await.unwrap().unwrap()).unwrap());
    }
    let data = text.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
    serde_json::from_str(data).unwrap()
}

#[sqlx::test(migrations = "../migrations")]
async fn every_root_field_is_public_by_decision_or_asks_for_a_permission(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let tenant = platform.tenant("one").await;
    let bot = platform.bot(&tenant, 1).await;
    let turn = platform.talk(bot, 10, 77, "hello").await;
    // Something has to be told by every subscription.
    let (person, spam) = (platform.person_of(turn).await, Reason::parse("spam").unwrap());
    platform.app.standings.block(&system(), bot.0, person, spam, None).await.unwrap();
    let (own, terms) = (PolicyScope::Bot(bot.0), PolicyTerms::default());
    platform.app.policies.publish(&system(), own, terms, PolicyMode::Keep, None).await.unwrap();
    platform.settle().await;
    let schema = schema(&platform, &tenant.token).await;
    let needs: BTreeMap<&str, Permission> = NEEDS.iter().copied().collect();
    let tokens: Vec<(Role, String)> = {
        let mut tokens = Vec::new();
        for role in ROLES {
            tokens.push((role, platform.token_as(&tenant, role).await));
        }
        tokens
    };
    let mut seen = BTreeSet::new();
    for (root, operation) in [("Query", "query"), ("Mutation", "mutation"), ("Subscription", "subscription")]
    {
        for field in schema.fields(root) {
            let name = field["name"].as_str().unwrap();
            seen.insert(name.to_owned());
            let document = schema.document(operation, field);
            if PUBLIC.contains(&name) {
                let answer = first(&platform, None, operation, &document).await;
                assert!(answer.get("errors").is_none(), "{document}: {answer}");
                continue;
            }
            let permission =
                *needs.get(name).unwrap_or_else(|| panic!("nobody decided who may ask for {name}"));
            let stranger = first(&platform, None, operation, &document).await;
            assert_eq!(code_of(&stranger), "UNAUTHENTICATED", "{document}");
            assert!(stranger["data"].is_null() || stranger["data"][name].is_null(), "{stranger}");
            for (role, token) in &tokens {
                if !role.may(permission) {
                    let refused = first(&platform, Some(token), operation, &document).await;
                    assert_eq!(code_of(&refused), "FORBIDDEN", "{role:?}: {document}");
                    assert!(refused["data"].is_null() || refused["data"][name].is_null(), "{refused}");
                } else {
                    let answer = first(&platform, Some(token), operation, &document).await;
                    let code = answer["errors"][0]["extensions"]["code"].as_str();
                    assert!(
                        !matches!(code, Some("FORBIDDEN" | "UNAUTHENTICATED")),
                        "{role:?}: {document}: {answer}"
                    );
                }
            }
        }
    }
    let decided: BTreeSet<String> = PUBLIC.into_iter().chain(needs.into_keys()).map(str::to_owned).collect();
    assert_eq!(seen, decided, "the lists above name fields that are gone");
}

#[sqlx::test(migrations = "../migrations")]
async fn every_field_of_every_type_is_open_by_decision(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let tenant = platform.tenant("one").await;
    let schema = schema(&platform, &tenant.token).await;
    let needs: BTreeMap<&str, Permission> = NEEDS.iter().copied().collect();
    let mut reached: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut fields = BTreeMap::new();
    for root in ["Query", "Mutation", "Subscription"] {
        for field in schema.fields(root) {
            let through = needs.get(field["name"].as_str().unwrap()).map_or("nothing", AsRef::as_ref);
            let mut types = BTreeSet::new();
            schema.reach(field, &mut types);
            for name in types {
                for field in schema.fields(&name) {
                    let full = format!("{name}.{}", field["name"].as_str().unwrap());
                    fields.insert(full, (name.clone(), field));
                }
                reached.entry(name).or_default().insert(through.to_owned());
            }
        }
    }
    // A type that is got at in a new way may show too much to somebody.
    let reached: Vec<(String, String)> = reached
        .into_iter()
        .filter(|(name, _)| schema.types[name]["kind"] == "OBJECT" && !is_frame(name))
        .map(|(name, through)| (name, through.into_iter().collect::<Vec<_>>().join(" ")))
        .collect();
    let decided: Vec<(String, String)> =
        REACHED.iter().map(|(name, through)| ((*name).to_owned(), (*through).to_owned())).collect();
    assert_eq!(reached, decided);
    // Figures, ids, times and words of the schema name nobody; texts and numbers of Telegram may.
    let mut plain = BTreeSet::new();
    let mut personal = BTreeSet::new();
    for (name, (parent, field)) in fields {
        if is_personal(&parent, field) {
            personal.insert(name);
        } else if matches!(Schema::named(&field["type"]), "String" | "JSON" | "BigInt") && !is_frame(&parent)
        {
            plain.insert(name);
        }
    }
    let decided: BTreeSet<String> = PLAIN.split_whitespace().map(str::to_owned).collect();
    assert_eq!(plain, decided, "nobody decided whether these are personal, or they are gone");
    let decided: BTreeSet<String> = PERSONAL.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(personal, decided, "the list of personal fields names what is gone");
}

#[sqlx::test(migrations = "../migrations")]
async fn personal_text_is_for_those_who_talk_to_people(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let tenant = platform.tenant("one").await;
    let bot = platform.bot(&tenant, 1).await;
    let turn = platform.talk(bot, 10, 77, "a private matter").await;
    let (person, standings) = (platform.person_of(turn).await, &platform.app.standings);
    standings.block(&system(), bot.0, person, Reason::parse("spam").unwrap(), None).await.unwrap();
    let caller = Caller::subject(person, turn);
    standings.file_appeal(&caller, bot.0, person, turn, "a private matter").await.unwrap();
    platform.settle().await;
    let id = format!("turn:{turn}");
    let query = "query q($id: ID!) {
        turn(id: $id) { id prompt reply person { id profile { firstName telegramId username } } }
        conversations(first: 5) { edges { node { exchanges(first: 5) { edges { node { prompt reply } } } sessions { title } } } } }";
    for role in [Role::Owner, Role::Admin, Role::Moderator] {
        let token = platform.token_as(&tenant, role).await;
        for (field, query) in PERSONAL {
            let answer = platform.post(Some(&token), query, json!({"id": id})).await.json();
            assert!(answer.get("errors").is_none(), "{role:?}: {field}: {answer}");
        }
        let data = platform.data(&token, query, json!({"id": id})).await;
        assert_eq!(data["turn"]["prompt"], "a private matter");
        assert_eq!(data["turn"]["reply"], "You said something.");
        assert_eq!(
            data["turn"]["person"]["profile"],
            json!({"firstName": "Ada", "telegramId": "77", "username": "ada_77"})
        );
        let exchange = &data["conversations"]["edges"][0]["node"]["exchanges"]["edges"][0]["node"];
        assert_eq!(exchange, &json!({"prompt": "a private matter", "reply": "You said something."}));
    }
    for role in [Role::Auditor, Role::Analyst, Role::Member] {
        let token = platform.token_as(&tenant, role).await;
        for (field, query) in PERSONAL {
            let answer = platform.post(Some(&token), query, json!({"id": id})).await;
            assert_eq!(answer.code(), "FORBIDDEN", "{role:?}: {field}");
            let own = !role.may(ReadOperations)
                || answer.text.contains("ReadPersonal")
                || answer.text.contains("read_personal");
            assert!(own, "{field} itself is guarded: {}", answer.text);
            assert!(!answer.text.contains("Ada") && !answer.text.contains("private"), "{}", answer.text);
        }
    }
    let token = platform.token_as(&tenant, Role::Auditor).await;
    // What the auditor may see does not give it away either.
    let open = platform
        .data(
            &token,
            "{ turns { edges { node { id phase person { id language messages } } } }
               events(first: 200) { edges { node { payload actor correlationId } } }
               people { edges { node { id } } } }",
            json!({}),
        )
        .await;
    let text = open.to_string();
    assert!(
        !text.contains("private matter") && !text.contains("ada_77") && !text.contains("You said"),
        "{text}"
    );
}

#[sqlx::test(migrations = "../migrations")]
async fn a_refused_admin_call_is_noted(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let tenant = platform.tenant("one").await;
    let token = platform.token_as(&tenant, Role::Analyst).await;
    let invite = "mutation { operatorInvite(input: {login: \"mallory\", role: OWNER}) { link } }";
    assert_eq!(platform.refusal(Some(&token), invite, json!({})).await, "FORBIDDEN");
    let noted: i64 = sqlx::query_scalar("SELECT count(*) FROM audit_log WHERE outcome = 'forbidden'")
        .fetch_one(&platform.pool)
        .await
        .unwrap();
    assert_eq!(noted, 1);
}

#[sqlx::test(migrations = "../migrations")]
async fn a_bad_token_is_refused_and_never_taken_for_none(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let tenant = platform.tenant("one").await;
    let expired = platform.token_until(tenant.owner, -1);
    let unknown = platform.token(botledger_domain::OperatorId(uuid::Uuid::now_v7()));
    for token in ["", "x", "a.b.c", &expired, &unknown, &tenant.token[..tenant.token.len() - 2]] {
        let answer = platform.post(Some(token), "{ __typename }", json!({})).await;
        assert_eq!((answer.status.as_u16(), answer.header("www-authenticate")), (401, "Bearer"), "{token}");
    }
    let basic = platform
        .request(|http, url| {
            http.post(url).basic_auth("owner", Some("x")).json(&json!({"query": "{ __typename }"}))
        })
        .await;
    assert_eq!(basic.status, 401);
}
