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

async fn ask(address: SocketAddr, limits: OllamaLimits) -> (String, Result<Completion, LlmFailure>) {
    let ollama = Ollama::new(&format!("http://{address}"), reqwest::Client::new(), limits);
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut stream = match ollama.chat(request(), CancellationToken::new(), deadline).await {
        Ok(stream) => stream,
        Err(error) => return (String::new(), Err(error.into())),
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
        let failure = end.expect_err("not whole");
        assert_eq!((text.as_str(), failure.error), ("half", LlmError::Interrupted));
        let used = failure.used.expect("the model was at work");
        assert!(used.prompt_tokens > 0 && used.completion_tokens > 0 && used.estimated);
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
        let failure = ask(address, once()).await.1.expect_err("refused");
        assert_eq!((failure.error, failure.used), (expected, None));
    }
}

#[tokio::test]
async fn a_silent_server_is_given_up_and_a_large_answer_cut() {
    let (address, server) = scripted(vec![vec![HEAD.to_vec(), line("x"), b"HANG".to_vec()]]).await;
    let limits = OllamaLimits { idle: Duration::from_millis(100), ..once() };
    assert_eq!(ask(address, limits).await.1.expect_err("silent").error, LlmError::IdleTimeout);
    server.abort();
    let (address, _server) = scripted(vec![vec![HEAD.to_vec(), line(&"x".repeat(100)), DONE.to_vec()]]).await;
    let limits = OllamaLimits { max_answer_bytes: 64, ..once() };
    assert_eq!(ask(address, limits).await.1.expect_err("large").error, LlmError::TooLarge { limit: 64 });
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

#[tokio::test]
async fn a_stop_before_the_first_word_still_counts_the_prompt() {
    let (address, server) = scripted(vec![vec![HEAD.to_vec(), b"HANG".to_vec()]]).await;
    let ollama = Ollama::new(&format!("http://{address}"), reqwest::Client::new(), once());
    let cancel = CancellationToken::new();
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut stream = ollama.chat(request(), cancel.clone(), deadline).await.expect("started");
    // Nothing tells from outside that the request is there but that the model stays silent.
    tokio::time::timeout(Duration::from_millis(50), stream.next()).await.expect_err("no word yet");
    cancel.cancel();
    let Some(Ok(ChatEvent::Done(done))) = stream.next().await else { panic!("no end") };
    assert!(done.usage.prompt_tokens > 0 && done.usage.completion_tokens == 0 && done.usage.estimated);
    server.abort();
}

#[tokio::test]
async fn what_was_stopped_before_it_was_sent_costs_nothing() {
    let ollama = Ollama::new("http://127.0.0.1:9", reqwest::Client::new(), once());
    let cancel = CancellationToken::new();
    cancel.cancel();
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut stream = ollama.chat(request(), cancel, deadline).await.expect("started");
    let Some(Ok(ChatEvent::Done(done))) = stream.next().await else { panic!("no end") };
    assert_eq!((done.usage.prompt_tokens, done.usage.completion_tokens), (0, 0));
}

#[tokio::test]
async fn a_refusal_that_never_ends_is_read_no_longer_than_the_deadline_and_no_further_than_needed() {
    let head = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n{\"error\":\"context\"".to_vec();
    let (address, server) = scripted(vec![vec![head.clone(), b"HANG".to_vec()]]).await;
    let limits = OllamaLimits { first_byte: Duration::from_millis(200), ..once() };
    assert_eq!(ask(address, limits).await.1.expect_err("refused").error, LlmError::ContextTooLong);
    server.abort();
    let (address, server) = scripted(vec![vec![head, vec![b'x'; 4 * REFUSAL_BYTES], b"HANG".to_vec()]]).await;
    let limits = OllamaLimits { first_byte: Duration::from_secs(60), ..once() };
    assert_eq!(ask(address, limits).await.1.expect_err("refused").error, LlmError::ContextTooLong);
    server.abort();
}

#[tokio::test]
async fn a_stop_does_not_close_the_circuit() {
    let ollama = Ollama::new("http://127.0.0.1:9", reqwest::Client::new(), once());
    let deadline = Instant::now() + Duration::from_secs(5);
    for _ in 0..4 {
        ollama.breaker.failed("test");
    }
    let cancel = CancellationToken::new();
    cancel.cancel();
    let mut stream = ollama.chat(request(), cancel, deadline).await.expect("started");
    assert!(matches!(stream.next().await, Some(Ok(ChatEvent::Done(_)))));
    ollama.breaker.failed("test");
    let refused = ollama.chat(request(), CancellationToken::new(), deadline).await;
    assert!(matches!(refused, Err(LlmError::CircuitOpen { .. })), "the fifth failure in a row");
}
