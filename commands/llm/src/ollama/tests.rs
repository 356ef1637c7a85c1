use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::*;
use crate::ChatTurn;

/// Plays one script a connection: raw bytes, each element a packet of its own.
async fn scripted(scripts: Vec<Vec<Vec<u8>>>) -> (SocketAddr, tokio::task::JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let server = tokio::spawn(async move {
        let mut requests = Vec::new();
        for script in scripts {
            let (mut socket, _) = listener.accept().await.expect("a client");
            let mut seen = Vec::new();
            let mut chunk = [0u8; 4096];
            loop {
                let n = socket.read(&mut chunk).await.expect("readable");
                seen.extend_from_slice(&chunk[..n]);
                let text = String::from_utf8_lossy(&seen);
                let complete = text.split_once("\r\n\r\n").is_some_and(|(head, body)| {
                    head.lines()
                        .find_map(|l| {
                            l.to_ascii_lowercase().strip_prefix("content-length: ").map(str::to_owned)
                        })
                        .is_none_or(|length| body.len() >= length.parse().expect("a number"))
                });
                if n == 0 || complete {
                    break;
                }
            }
            requests.push(String::from_utf8_lossy(&seen).into_owned());
            for packet in script {
                if packet == b"HANG" {
                    std::future::pending::<()>().await;
                }
                socket.write_all(&packet).await.expect("writable");
                socket.flush().await.expect("writable");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        requests
    });
    (address, server)
}

const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\nconnection: close\r\n\r\n";

fn line(text: &str) -> Vec<u8> {
    format!("{{\"message\":{{\"role\":\"assistant\",\"content\":\"{text}\"}},\"done\":false}}\n").into_bytes()
}

const DONE: &[u8] =
    b"{\"message\":{\"role\":\"assistant\",\"content\":\"\"},\"done\":true,\"done_reason\":\"stop\",\"prompt_eval_count\":7,\"eval_count\":2}\n";

fn request() -> ChatRequest {
    ChatRequest {
        model: "test".to_owned(),
        messages: vec![ChatTurn { role: ChatRole::User, content: "hello".to_owned() }],
        num_ctx: 2048,
        num_predict: 128,
        temperature: None,
    }
}

async fn ask(address: SocketAddr, limits: OllamaLimits) -> (String, Result<Completion, LlmError>) {
    let ollama = Ollama::new(&format!("http://{address}"), reqwest::Client::new(), limits);
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut stream = match ollama.chat(request(), CancellationToken::new(), deadline).await {
        Ok(stream) => stream,
        Err(error) => return (String::new(), Err(error)),
    };
    let mut text = String::new();
    while let Some(piece) = stream.next().await {
        match piece {
            Ok(ChatEvent::Text(more)) => text.push_str(&more),
            Ok(ChatEvent::Done(done)) => return (text, Ok(done)),
            Err(error) => return (text, Err(error)),
        }
    }
    panic!("the stream ended without an end")
}

fn once() -> OllamaLimits {
    OllamaLimits { retries: 0, ..OllamaLimits::default() }
}

#[tokio::test]
async fn a_letter_cut_between_packets_arrives_whole_and_truncation_is_off() {
    let whole = line("привет");
    let (left, right) = whole.split_at(45);
    let (address, server) =
        scripted(vec![vec![HEAD.to_vec(), left.to_vec(), right.to_vec(), DONE.to_vec()]]).await;
    let (text, done) = ask(address, once()).await;
    assert_eq!(text, "привет");
    let usage = done.expect("whole").usage;
    assert_eq!((usage.prompt_tokens, usage.completion_tokens, usage.estimated), (7, 2, false));
    let sent = server.await.expect("served").remove(0);
    assert!(sent.contains("\"truncate\":false") && sent.contains("\"stream\":true"), "{sent}");
}

#[tokio::test]
async fn absent_metrics_are_estimated_and_marked() {
    let done = b"{\"message\":{\"content\":\"\"},\"done\":true,\"done_reason\":\"length\"}\n".to_vec();
    let (address, _server) = scripted(vec![vec![HEAD.to_vec(), line("12345678"), done]]).await;
    let (_, done) = ask(address, once()).await;
    let done = done.expect("whole");
    assert_eq!(
        (done.finish, done.usage.completion_tokens, done.usage.estimated),
        (FinishReason::Length, 2, true)
    );
}

#[tokio::test]
async fn an_error_in_the_stream_and_an_end_without_done_are_errors() {
    for tail in [b"{\"error\":\"boom\"}\n".to_vec(), Vec::new()] {
        let (address, _server) = scripted(vec![vec![HEAD.to_vec(), line("half"), tail]]).await;
        let (text, end) = ask(address, OllamaLimits::default()).await;
        assert_eq!((text.as_str(), end.expect_err("not whole")), ("half", LlmError::Interrupted));
    }
}

#[tokio::test]
async fn failures_before_the_first_text_are_retried_and_counted() {
    let busy = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 0\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".to_vec();
    let good = vec![HEAD.to_vec(), line("ok"), DONE.to_vec()];
    let (address, _server) = scripted(vec![vec![busy], good]).await;
    let (text, done) = ask(address, OllamaLimits::default()).await;
    assert_eq!((text.as_str(), done.expect("second try").attempts), ("ok", 2));
}

#[tokio::test]
async fn refusals_keep_their_meaning() {
    for (status, body, expected) in [
        ("404 Not Found", "{\"error\":\"model not found\"}", LlmError::ModelNotFound),
        ("400 Bad Request", "{\"error\":\"input exceeds the context length\"}", LlmError::ContextTooLong),
        ("400 Bad Request", "{\"error\":\"bad\"}", LlmError::Rejected { status: 400 }),
        ("500 Internal Server Error", "", LlmError::Unavailable),
    ] {
        let answer =
            format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
        let (address, _server) = scripted(vec![vec![answer.into_bytes()]]).await;
        assert_eq!(ask(address, once()).await.1.expect_err("refused"), expected);
    }
}

#[tokio::test]
async fn a_silent_server_is_given_up_and_a_large_answer_cut() {
    let (address, server) = scripted(vec![vec![HEAD.to_vec(), line("x"), b"HANG".to_vec()]]).await;
    let limits = OllamaLimits { idle: Duration::from_millis(100), ..once() };
    assert_eq!(ask(address, limits).await.1.expect_err("silent"), LlmError::IdleTimeout);
    server.abort();
    let (address, _server) = scripted(vec![vec![HEAD.to_vec(), line(&"x".repeat(100)), DONE.to_vec()]]).await;
    let limits = OllamaLimits { max_answer_bytes: 64, ..once() };
    assert_eq!(ask(address, limits).await.1.expect_err("large"), LlmError::TooLarge { limit: 64 });
}

#[tokio::test]
async fn cancelling_ends_the_answer_with_what_came() {
    let (address, server) = scripted(vec![vec![HEAD.to_vec(), line("so far"), b"HANG".to_vec()]]).await;
    let ollama = Ollama::new(&format!("http://{address}"), reqwest::Client::new(), once());
    let cancel = CancellationToken::new();
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut stream = ollama.chat(request(), cancel.clone(), deadline).await.expect("started");
    assert_eq!(stream.next().await, Some(Ok(ChatEvent::Text("so far".to_owned()))));
    cancel.cancel();
    let Some(Ok(ChatEvent::Done(done))) = stream.next().await else { panic!("no end") };
    assert_eq!(done.finish, FinishReason::Cancelled);
    assert!(done.usage.estimated && done.usage.completion_tokens > 0);
    server.abort();
}
