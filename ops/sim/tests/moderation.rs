//! The stand-ins that judge: OpenAI's moderation endpoint, Llama Guard on Ollama, embeddings.

use anyhow::Result;
use botledger_sim::{
    EmbedFault, ModelFault, ModerationConfig, ModerationFault, ModerationSim, OllamaConfig, OllamaSim,
};
use serde_json::{Value, json};

async fn post(url: &str, key: Option<&str>, body: Value) -> Result<reqwest::Response> {
    let mut request = reqwest::Client::new().post(url).json(&body);
    if let Some(key) = key {
        request = request.bearer_auth(key);
    }
    Ok(request.send().await?)
}

#[tokio::test]
async fn a_text_is_flagged_for_what_it_asks_to_be() -> Result<()> {
    let sim = ModerationSim::start(ModerationConfig::default()).await?;
    let url = format!("{}/moderations", sim.url());
    let answer: Value =
        post(&url, None, json!({"input": ["hello", "[flag: hate, violence/graphic]"]})).await?.json().await?;
    assert_eq!(answer["model"], "omni-moderation-latest");
    assert!(answer["id"].as_str().unwrap().starts_with("modr-"));
    let [harmless, flagged] = &answer["results"].as_array().unwrap()[..] else { panic!("two results") };
    assert_eq!(harmless["flagged"], false);
    assert_eq!(harmless["categories"].as_object().unwrap().len(), 13);
    assert_eq!((&flagged["flagged"], &flagged["categories"]["hate"]), (&json!(true), &json!(true)));
    assert_eq!(flagged["categories"]["violence"], false);
    assert!(flagged["category_scores"]["violence/graphic"].as_f64().unwrap() > 0.9);
    assert_eq!(flagged["category_applied_input_types"]["hate"], json!(["text"]));

    let parts = json!({"input": [{"type": "text", "text": "[flag: sexual]"}, {"type": "image_url", "image_url": {}}]});
    let answer: Value = post(&url, None, parts).await?.json().await?;
    assert_eq!(answer["results"][0]["categories"]["sexual"], true);
    assert_eq!(sim.served().len(), 3);
    Ok(())
}

#[tokio::test]
async fn keys_and_requests_are_checked_in_openais_words() -> Result<()> {
    let config = ModerationConfig { key: Some("sesame".to_owned()), ..ModerationConfig::default() };
    let sim = ModerationSim::start(config).await?;
    let url = format!("{}/moderations", sim.url());
    for (key, code) in [(None, Value::Null), (Some("wrong"), json!("invalid_api_key"))] {
        let refused = post(&url, key, json!({"input": "hello"})).await?;
        assert_eq!(refused.status(), 401);
        let error: Value = refused.json().await?;
        assert_eq!(
            (&error["error"]["code"], &error["error"]["type"]),
            (&code, &json!("invalid_request_error"))
        );
    }
    assert_eq!(post(&url, Some("sesame"), json!({"input": "hello"})).await?.status(), 200);
    for input in [json!({}), json!({"input": 1}), json!({"input": []}), json!({"input": [1]})] {
        let refused = post(&url, Some("sesame"), input).await?;
        assert_eq!(refused.status(), 400);
        assert_eq!(refused.json::<Value>().await?["error"]["param"], "input");
    }
    Ok(())
}

#[tokio::test]
async fn faults_of_the_moderation_endpoint_strike_once_in_the_order_given() -> Result<()> {
    let sim = ModerationSim::start(ModerationConfig::default()).await?;
    let url = format!("{}/moderations", sim.url());
    let remote = url.replace("/v1/moderations", "/_sim/faults");
    let busy = json!({"kind": "status", "code": 429, "message": "slow down", "retry_after_s": 3});
    post(&remote, None, busy).await?.error_for_status()?;
    sim.fault(ModerationFault::Cut);
    sim.fault(ModerationFault::Body { text: "<html>".to_owned() });
    let hello = || post(&url, None, json!({"input": "hello"}));
    let refused = hello().await?;
    assert_eq!((refused.status().as_u16(), &refused.headers()["retry-after"]), (429, &"3".parse()?));
    assert_eq!(refused.json::<Value>().await?["error"]["code"], "rate_limit_exceeded");
    assert!(hello().await.is_err());
    assert_eq!(hello().await?.text().await?, "<html>");
    assert_eq!(hello().await?.status(), 200);
    let served: Value = reqwest::get(url.replace("/v1/moderations", "/_sim/served")).await?.json().await?;
    assert_eq!(served, json!(["hello", "hello", "hello", "hello"]));
    Ok(())
}

#[tokio::test]
async fn a_guard_model_judges_what_is_said_and_not_its_policy() -> Result<()> {
    let sim = OllamaSim::start(OllamaConfig::default()).await?;
    let url = format!("{}/api/chat", sim.url());
    let ask = async |model: &str, text: &str| -> Result<String> {
        let messages = json!([{"role": "user", "content": text}]);
        let body = json!({"model": model, "messages": messages, "stream": false});
        let answer: Value = post(&url, None, body).await?.json().await?;
        Ok(answer["message"]["content"].as_str().unwrap().to_owned())
    };
    assert_eq!(ask("llama-guard3:1b", "hello").await?, "\n\nsafe");
    assert_eq!(ask("llama-guard3:1b", "[hazard: S1, S10]").await?, "\n\nunsafe\nS1,S10");
    let wrapped = "policy [hazard: S2]\n<BEGIN CONVERSATION>\nUser: [hazard: S11]\n<END CONVERSATION>\n";
    assert_eq!(ask("llama-guard3", wrapped).await?, "\n\nunsafe\nS11");
    assert!(ask("small", "[hazard: S1]").await?.starts_with("You wrote"));
    sim.fault(ModelFault::Answer { text: "I cannot help".to_owned() });
    assert_eq!(ask("llama-guard3", "hello").await?, "I cannot help");
    Ok(())
}

#[tokio::test]
async fn texts_that_are_spelt_alike_have_vectors_that_are_near() -> Result<()> {
    let config = OllamaConfig { models: vec!["vectors".to_owned()], ..OllamaConfig::default() };
    let sim = OllamaSim::start(config).await?;
    let url = format!("{}/api/embed", sim.url());
    let texts = json!(["where is my parcel", "where is my parcel?", "погода на завтра"]);
    let answer: Value = post(&url, None, json!({"model": "vectors", "input": texts})).await?.json().await?;
    let vectors: Vec<Vec<f64>> = serde_json::from_value(answer["embeddings"].clone())?;
    let near = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    assert!(near(&vectors[0], &vectors[1]) > 0.8 && near(&vectors[0], &vectors[2]) < 0.4);
    assert!(vectors.iter().all(|vector| (near(vector, vector) - 1.0).abs() < 1e-3));
    assert!(answer["prompt_eval_count"].as_u64().unwrap() > 0);

    let one: Value = post(&url, None, json!({"model": "vectors", "input": "hello"})).await?.json().await?;
    assert_eq!(one["embeddings"].as_array().unwrap().len(), 1);
    assert_eq!(post(&url, None, json!({"model": "other", "input": "hello"})).await?.status(), 404);
    assert_eq!(post(&url, None, json!({"model": "vectors", "input": 1})).await?.status(), 400);
    let long = json!({"model": "vectors", "input": "long ".repeat(2_000), "truncate": false});
    let refused = post(&url, None, long.clone()).await?;
    assert_eq!(refused.status(), 400);
    assert!(refused.json::<Value>().await?["error"].as_str().unwrap().contains("context length"));
    let mut cut_short = long;
    cut_short["truncate"] = json!(true);
    assert_eq!(post(&url, None, cut_short).await?.status(), 200);

    sim.fault_embedding(EmbedFault::Vectors { embeddings: json!([[1.0]]) });
    let wrong: Value =
        post(&url, None, json!({"model": "vectors", "input": ["a", "b"]})).await?.json().await?;
    assert_eq!(wrong["embeddings"], json!([[1.0]]));
    assert_eq!(sim.embedded().last().unwrap(), &["a".to_owned(), "b".to_owned()]);
    Ok(())
}
