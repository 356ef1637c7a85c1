//! The stand-in for Ollama: its protocol, its faults, its remote control.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use anyhow::Result;
use botledger_sim::{ModelFault, OllamaConfig, OllamaSim};
use serde_json::{Value, json};

struct Desk {
    sim: OllamaSim,
    http: reqwest::Client,
}

impl Desk {
    async fn open() -> Result<Self> {
        let config = OllamaConfig { models: vec!["small".to_owned()], ..OllamaConfig::default() };
        Ok(Self { sim: OllamaSim::start(config).await?, http: reqwest::Client::new() })
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.sim.url())
    }

    async fn chat(&self, more: Value) -> Result<reqwest::Response> {
        let mut body = json!({
            "model": "small", "messages": [{"role": "user", "content": "hello there"}], "truncate": false,
        });
        for (key, value) in more.as_object().unwrap() {
            body[key] = value.clone();
        }
        Ok(self.http.post(self.url("/api/chat")).json(&body).send().await?)
    }

    /// The lines of a stream, and whether it broke.
    async fn lines(&self, more: Value) -> Result<(Vec<String>, bool)> {
        use futures::StreamExt;
        let mut stream = self.chat(more).await?.bytes_stream();
        let mut text = Vec::new();
        while let Some(piece) = stream.next().await {
            match piece {
                Ok(piece) => text.extend_from_slice(&piece),
                Err(_) => return Ok((split(&text), true)),
            }
        }
        Ok((split(&text), false))
    }
}

fn split(text: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(text).lines().map(str::to_owned).collect()
}

fn parsed(line: &str) -> Value {
    serde_json::from_str(line).unwrap()
}

#[tokio::test]
async fn an_answer_streams_line_by_line_and_counts_its_tokens() -> Result<()> {
    let desk = Desk::open().await?;
    let (lines, broke) = desk.lines(json!({})).await?;
    assert!(!broke);
    let (last, pieces) = lines.split_last().unwrap();
    let text: String =
        pieces.iter().map(|line| parsed(line)["message"]["content"].as_str().unwrap().to_owned()).collect();
    assert!(text.contains("hello there"), "{text}");
    let last = parsed(last);
    assert_eq!((last["done"].as_bool(), last["done_reason"].as_str()), (Some(true), Some("stop")));
    assert_eq!(last["eval_count"].as_u64(), Some(pieces.len() as u64));
    assert!(last["prompt_eval_count"].as_u64().unwrap() > 0);

    let whole: Value = desk.chat(json!({"stream": false})).await?.json().await?;
    assert_eq!(whole["message"]["content"], text);
    let (lines, _) = desk.lines(json!({"options": {"num_predict": 2}})).await?;
    assert_eq!((lines.len(), parsed(&lines[2])["done_reason"].as_str()), (3, Some("length")));
    Ok(())
}

#[tokio::test]
async fn requests_it_does_not_understand_are_refused() -> Result<()> {
    let desk = Desk::open().await?;
    assert_eq!(desk.chat(json!({"model": "large"})).await?.status(), 404);
    assert_eq!(desk.chat(json!({"messages": 1})).await?.status(), 400);
    let rubbish = desk.http.post(desk.url("/api/chat")).body("rubbish").send().await?;
    assert_eq!(rubbish.status(), 400);
    assert!(desk.sim.served().is_empty());
    let tags: Value = desk.http.get(desk.url("/api/tags")).send().await?.json().await?;
    assert_eq!(tags["models"][0]["name"], "small");
    Ok(())
}

#[tokio::test]
async fn each_fault_strikes_once_in_the_order_given() -> Result<()> {
    let desk = Desk::open().await?;
    desk.sim.fault(ModelFault::Status { code: 503, message: "server busy".to_owned() });
    desk.sim.fault(ModelFault::Cut);
    desk.sim.fault(ModelFault::CutAfter { pieces: 2 });
    desk.sim.fault(ModelFault::ErrorAfter { pieces: 1, message: "boom".to_owned() });
    desk.sim.fault(ModelFault::GarbageAfter { pieces: 1 });
    assert_eq!(desk.chat(json!({})).await?.status(), 503);
    assert!(desk.chat(json!({})).await.is_err());
    let (lines, broke) = desk.lines(json!({})).await?;
    assert_eq!((lines.len(), broke), (2, true));
    let (lines, _) = desk.lines(json!({})).await?;
    assert_eq!((lines.len(), parsed(&lines[1])["error"].as_str()), (2, Some("boom")));
    let (lines, _) = desk.lines(json!({})).await?;
    assert_eq!(lines[1], "<html>");
    let (lines, broke) = desk.lines(json!({})).await?;
    assert!(!broke && parsed(lines.last().unwrap())["done"] == true);
    assert_eq!(desk.sim.served().len(), 6);
    Ok(())
}

#[tokio::test]
async fn the_remote_control_does_what_the_functions_do() -> Result<()> {
    let desk = Desk::open().await?;
    let health: Value = desk.http.get(desk.url("/_sim/health")).send().await?.json().await?;
    assert_eq!(health, json!({"simulated": "ollama"}));
    let fault = json!({"kind": "status", "code": 500, "message": "out of memory"});
    desk.http.post(desk.url("/_sim/faults")).json(&fault).send().await?.error_for_status()?;
    let refused = desk.chat(json!({})).await?;
    assert_eq!(refused.status(), 500);
    assert_eq!(refused.json::<Value>().await?, json!({"error": "out of memory"}));
    desk.http.post(desk.url("/_sim/hold")).json(&true).send().await?.error_for_status()?;
    let mut held = Box::pin(desk.lines(json!({})));
    while desk.sim.served().len() < 2 {
        tokio::select! {
            _ = &mut held => panic!("it was held"),
            () = tokio::task::yield_now() => {}
        }
    }
    desk.http.post(desk.url("/_sim/hold")).json(&false).send().await?.error_for_status()?;
    assert!(!held.await?.1);
    let served: Value = desk.http.get(desk.url("/_sim/served")).send().await?.json().await?;
    assert_eq!(served[1]["prompt"], "hello there");
    assert_eq!(served[1]["truncate"], false);
    Ok(())
}
