//! The adapters for moderation and embeddings against the stand-ins: what they say, and what they make of
//! servers that fail.

use std::{sync::Arc, time::Duration};

use botledger_llm::{
    EmbeddingProvider, GuardPrompt, LlamaGuard, LlmError, ModerationProvider, ModerationVerdict, Ollama,
    OllamaLimits, OpenAiModeration, OpenAiModerationConfig,
};
use botledger_sim::{
    EmbedFault, ModelFault, ModerationConfig, ModerationFault, ModerationSim, OllamaConfig, OllamaSim,
};
use serde_json::json;
use tokio::time::Instant;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

/// A moderation endpoint and its client.
struct Endpoint {
    sim: ModerationSim,
    client: OpenAiModeration,
}

impl Endpoint {
    async fn open(change: impl FnOnce(&mut OpenAiModerationConfig)) -> Self {
        let key = Some("sesame".to_owned());
        let sim = ModerationSim::start(ModerationConfig { key: key.clone(), ..ModerationConfig::default() });
        let sim = sim.await.expect("a free port");
        let mut config = OpenAiModerationConfig {
            base_url: sim.url(),
            key,
            model: "omni-moderation-latest".to_owned(),
            timeout: Duration::from_secs(5),
            retries: 0,
        };
        change(&mut config);
        Self { client: OpenAiModeration::new(config, reqwest::Client::new()), sim }
    }

    async fn ask(&self, text: &str) -> Result<ModerationVerdict, LlmError> {
        self.client.moderate(text, soon()).await
    }
}

fn flagged(verdict: &ModerationVerdict) -> Vec<(&'static str, u16)> {
    verdict.flagged().map(|(category, score)| (category.as_str(), score)).collect()
}

#[tokio::test]
async fn a_moderation_endpoint_speaks_in_our_categories() {
    let endpoint = Endpoint::open(|_| {}).await;
    let verdict = endpoint.ask("good morning").await.expect("a verdict");
    assert!(!verdict.is_flagged());
    assert_eq!((verdict.categories.len(), verdict.model.as_str()), (9, "omni-moderation-latest"));
    let verdict =
        endpoint.ask("[flag: hate/threatening, self-harm/intent, illicit/violent]").await.expect("a verdict");
    assert_eq!(flagged(&verdict), [("SH", 970), ("H2", 970), ("illicit", 970)]);
    assert_eq!(verdict.others, Vec::<String>::new());
    assert_eq!(endpoint.sim.served().len(), 2);
}

#[tokio::test]
async fn failures_of_a_moderation_endpoint_are_told_apart_and_never_harmless() {
    let status = |code| ModerationFault::Status { code, message: "no".to_owned(), retry_after_s: Some(7) };
    let overloaded = || LlmError::Overloaded { retry_after: Some(Duration::from_secs(7)) };
    let body = |text: &str| ModerationFault::Body { text: text.to_owned() };
    let no_result = json!({"id": "modr-1", "model": "m", "results": []}).to_string();
    // A fresh client each: five failures in a row would open the circuit.
    for (fault, expected) in [
        (status(429), overloaded()),
        (status(503), overloaded()),
        (status(500), LlmError::Unavailable),
        (status(404), LlmError::ModelNotFound),
        (status(403), LlmError::Rejected { status: 403 }),
        (ModerationFault::Cut, LlmError::Unavailable),
        (ModerationFault::Hang, LlmError::IdleTimeout),
        (body("<html>"), LlmError::Malformed),
        (body("{}"), LlmError::Malformed),
        (body(&no_result), LlmError::Malformed),
    ] {
        let endpoint = Endpoint::open(|config| config.timeout = Duration::from_millis(300)).await;
        endpoint.sim.fault(fault.clone());
        assert_eq!(endpoint.ask("hello").await, Err(expected), "{fault:?}");
        assert!(endpoint.ask("hello").await.is_ok(), "after {fault:?}");
    }
    let endpoint = Endpoint::open(|config| config.key = Some("wrong".to_owned())).await;
    assert_eq!(endpoint.ask("hello").await, Err(LlmError::Rejected { status: 401 }));
}

#[tokio::test]
async fn passing_failures_are_retried_and_the_deadline_is_kept() {
    let endpoint = Endpoint::open(|config| config.retries = 2).await;
    endpoint.sim.fault(ModerationFault::Cut);
    let again = ModerationFault::Status { code: 503, message: "busy".to_owned(), retry_after_s: Some(0) };
    endpoint.sim.fault(again);
    assert!(endpoint.ask("hello").await.is_ok());
    assert_eq!(endpoint.sim.served().len(), 3);

    // Asked to wait for longer than there is time, it says so at once.
    let later = ModerationFault::Status { code: 429, message: "busy".to_owned(), retry_after_s: Some(600) };
    endpoint.sim.fault(later);
    let refused = endpoint.ask("hello").await;
    assert_eq!(refused, Err(LlmError::Overloaded { retry_after: Some(Duration::from_secs(600)) }));

    endpoint.sim.fault(ModerationFault::Hang);
    let soon = Instant::now() + Duration::from_millis(200);
    assert_eq!(endpoint.client.moderate("hello", soon).await, Err(LlmError::DeadlineExceeded));
}

#[tokio::test]
async fn a_moderation_endpoint_that_keeps_failing_is_left_alone() {
    let endpoint = Endpoint::open(|_| {}).await;
    for _ in 0..5 {
        endpoint.sim.fault(ModerationFault::Cut);
        assert_eq!(endpoint.ask("hello").await, Err(LlmError::Unavailable));
    }
    assert!(matches!(endpoint.ask("hello").await, Err(LlmError::CircuitOpen { .. })));
    assert_eq!(endpoint.sim.served().len(), 5, "nobody asked it a sixth time");
}

/// A guard model and its adapter.
async fn guard(model: &str, prompt: GuardPrompt, num_ctx: u32) -> (OllamaSim, LlamaGuard) {
    let sim = OllamaSim::start(OllamaConfig::default()).await.expect("a free port");
    let limits = OllamaLimits { retries: 0, ..OllamaLimits::default() };
    let chat = Arc::new(Ollama::new(&sim.url(), reqwest::Client::new(), limits));
    (sim, LlamaGuard::new(chat, model.to_owned(), prompt, num_ctx))
}

#[tokio::test]
async fn a_guard_model_speaks_in_our_categories() {
    for prompt in [GuardPrompt::OfModel, GuardPrompt::LlamaGuard3] {
        let (sim, guard) = guard("llama-guard3:1b", prompt, 4_096).await;
        let verdict = guard.moderate("good morning", soon()).await.expect("a verdict");
        assert!(!verdict.is_flagged());
        let verdict = guard.moderate("[hazard: S1, S10, S6]", soon()).await.expect("a verdict");
        assert_eq!(flagged(&verdict), [("H", 1_000), ("V", 1_000), ("illicit", 1_000)]);
        assert_eq!((verdict.others, verdict.model.as_str()), (vec!["S6".to_owned()], "llama-guard3:1b"));
        let asked = sim.served().remove(0);
        assert_eq!(asked.prompt.contains("S9: Indiscriminate Weapons."), prompt == GuardPrompt::LlamaGuard3);
        assert_eq!((&asked.truncate, &asked.options["temperature"]), (&json!(false), &json!(0.0)));
    }
}

#[tokio::test]
async fn what_a_guard_model_says_beside_a_verdict_is_an_error() {
    let (sim, guard) = guard("llama-guard3:1b", GuardPrompt::OfModel, 4_096).await;
    sim.fault(ModelFault::Answer { text: "I cannot help with that".to_owned() });
    assert_eq!(guard.moderate("hello", soon()).await, Err(LlmError::Malformed));
    sim.fault(ModelFault::CutAfter { pieces: 1 });
    assert_eq!(guard.moderate("hello", soon()).await, Err(LlmError::Interrupted));
    sim.fault(ModelFault::Status { code: 404, message: "model not found".to_owned() });
    assert_eq!(guard.moderate("hello", soon()).await, Err(LlmError::ModelNotFound));
}

#[tokio::test]
async fn a_long_text_is_judged_to_its_end_or_refused() {
    let (sim, guard) = guard("llama-guard3:1b", GuardPrompt::LlamaGuard3, 2_048).await;
    let text = format!("{} [hazard: S11]", "слово ".repeat(300));
    let verdict = guard.moderate(&text, soon()).await.expect("a verdict");
    assert_eq!(flagged(&verdict), [("SH", 1_000)]);
    assert!(sim.served().len() > 1);
    let refused = guard.moderate(&"слово ".repeat(2_000), soon()).await;
    assert_eq!(refused, Err(LlmError::ContextTooLong));
}

async fn embedder() -> (OllamaSim, Ollama) {
    let sim = OllamaSim::start(OllamaConfig::default()).await.expect("a free port");
    let limits =
        OllamaLimits { retries: 1, first_byte: Duration::from_millis(500), ..OllamaLimits::default() };
    let ollama = Ollama::new(&sim.url(), reqwest::Client::new(), limits);
    (sim, ollama)
}

#[tokio::test]
async fn embeddings_come_in_the_order_of_the_texts_over_several_requests() {
    let (sim, ollama) = embedder().await;
    let texts: Vec<String> = (0..150).map(|number| format!("text number {number}")).collect();
    let vectors = ollama.embed("vectors", &texts, soon()).await.expect("vectors");
    assert_eq!(vectors.len(), 150);
    assert_eq!(sim.embedded().iter().map(Vec::len).collect::<Vec<_>>(), [64, 64, 22]);
    let last = ollama.embed("vectors", &texts[149..], soon()).await.expect("a vector");
    assert_eq!(vectors[149], last[0]);
    assert_eq!(ollama.embed("vectors", &[], soon()).await, Ok(Vec::new()));
    assert_eq!(sim.embedded().len(), 4, "no texts, no call");
}

#[tokio::test]
async fn embeddings_that_make_no_sense_are_errors() {
    let (sim, ollama) = embedder().await;
    let texts = ["one".to_owned(), "two".to_owned()];
    for embeddings in
        [json!([[1.0]]), json!([[1.0], [1.0, 2.0]]), json!([[], []]), json!([[1e39], [0.0]]), json!("no")]
    {
        sim.fault_embedding(EmbedFault::Vectors { embeddings: embeddings.clone() });
        assert_eq!(ollama.embed("vectors", &texts, soon()).await, Err(LlmError::Malformed), "{embeddings}");
    }
    let long = ["long ".repeat(2_000)];
    assert_eq!(ollama.embed("vectors", &long, soon()).await, Err(LlmError::ContextTooLong));
}

#[tokio::test]
async fn embeddings_are_retried_and_given_up() {
    let (sim, ollama) = embedder().await;
    let texts = ["one".to_owned()];
    sim.fault_embedding(EmbedFault::Cut);
    assert!(ollama.embed("vectors", &texts, soon()).await.is_ok(), "the second attempt");
    let missing = EmbedFault::Status { code: 404, message: "model not found".to_owned() };
    sim.fault_embedding(missing);
    assert_eq!(ollama.embed("vectors", &texts, soon()).await, Err(LlmError::ModelNotFound));
    sim.fault_embedding(EmbedFault::Hang);
    sim.fault_embedding(EmbedFault::Hang);
    assert_eq!(ollama.embed("vectors", &texts, soon()).await, Err(LlmError::IdleTimeout));
}
