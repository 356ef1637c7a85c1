//! Plays files at a running stand-in: real updates as they are, or texts as messages of many people.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::{Value, json};

use crate::{Person, SimBot};

/// What is played, to whom, how fast.
#[derive(Clone, Debug)]
pub struct FeedConfig {
    /// The stand-in's URL.
    pub api: String,
    /// JSONL files, one after the other.
    pub files: Vec<PathBuf>,
    /// Usernames of bots; all of the stand-in's when empty. Lines go round.
    pub bots: Vec<String>,
    /// How many people write the texts.
    pub people: u32,
    /// Lines a second; 0 for as fast as it goes.
    pub rate: f64,
}

/// What was played.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fed {
    /// Texts written by people.
    pub texts: u64,
    /// Updates of any kind.
    pub updates: u64,
}

/// Why nothing, or not all, was played.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// A file cannot be read.
    #[error("{} cannot be read: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A line is neither an update nor a text. Nothing was played.
    #[error(
        "{} line {line}: {problem}; a line is an Update, {{\"update\": Update}} or {{\"text\": \"…\"}}",
        path.display()
    )]
    Line {
        /// Which file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong.
        problem: String,
    },
    /// There is nobody to play to.
    #[error("the stand-in has no bots; name some")]
    NoBots,
    /// The stand-in gives no answer or refuses.
    #[error("the stand-in at {api} {problem}")]
    Api {
        /// Where.
        api: String,
        /// What is wrong.
        problem: String,
    },
}

/// How often a second something is played, at most.
const STEPS_A_SECOND: f64 = 100.0;

enum Line {
    Text(String),
    Update(Value),
}

/// Reads all files first, so that a bad line stops everything before it begins; then plays.
///
/// # Errors
/// See [`FeedError`].
pub async fn feed(config: &FeedConfig, mut progress: impl FnMut(u64, u64)) -> Result<Fed, FeedError> {
    let mut lines = Vec::new();
    for path in &config.files {
        read(path, &mut lines)?;
    }
    let api = Api { base: config.api.trim_end_matches('/').to_owned(), http: reqwest::Client::new() };
    let bots = match config.bots.is_empty() {
        true => api.bots().await?.into_iter().map(|bot| bot.username).collect(),
        false => config.bots.clone(),
    };
    if bots.is_empty() {
        return Err(FeedError::NoBots);
    }
    let people = u64::from(config.people.max(1));
    let total = lines.len() as u64;
    let mut fed = Fed::default();
    let begun = tokio::time::Instant::now();
    // Small steps: a crowd that speaks in chorus would be measured as a queue.
    let step = if config.rate > 0.0 { ((config.rate / STEPS_A_SECOND).ceil() as usize).max(1) } else { 200 };
    let mut played = 0_u64;
    while !lines.is_empty() {
        let rest = lines.split_off(step.min(lines.len()));
        let (mut said, mut updates) = (Vec::new(), Vec::new());
        for line in std::mem::replace(&mut lines, rest) {
            match line {
                Line::Text(text) => {
                    // The same person stays with the same bot.
                    let number = fed.texts % people;
                    let bot = &bots[usize::try_from(number).unwrap_or(0) % bots.len()];
                    let person = Person::number(i64::try_from(number).unwrap_or(0) + 1);
                    said.push(json!({"bot": bot, "person": person, "text": text}));
                    fed.texts += 1;
                }
                Line::Update(update) => {
                    let bot = &bots[usize::try_from(fed.updates).unwrap_or(0) % bots.len()];
                    updates.push(json!({"bot": bot, "update": update}));
                    fed.updates += 1;
                }
            }
            played += 1;
        }
        if !said.is_empty() {
            api.post("say_many", &Value::from(said)).await?;
        }
        if !updates.is_empty() {
            api.post("updates", &Value::from(updates)).await?;
        }
        progress(played, total);
        if config.rate > 0.0 {
            tokio::time::sleep_until(begun + Duration::from_secs_f64(played as f64 / config.rate)).await;
        }
    }
    Ok(fed)
}

fn read(path: &Path, lines: &mut Vec<Line>) -> Result<(), FeedError> {
    let text =
        std::fs::read_to_string(path).map_err(|source| FeedError::File { path: path.to_owned(), source })?;
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let parsed = parse(line).map_err(|problem| FeedError::Line {
            path: path.to_owned(),
            line: index + 1,
            problem,
        })?;
        lines.push(parsed);
    }
    Ok(())
}

fn parse(line: &str) -> Result<Line, String> {
    let mut value: Value = serde_json::from_str(line).map_err(|error| format!("it is no JSON ({error})"))?;
    if value["update"].is_object() {
        return Ok(Line::Update(value["update"].take()));
    }
    if value["update_id"].is_i64() {
        return Ok(Line::Update(value));
    }
    match value["text"].as_str() {
        Some(text) if !text.is_empty() => Ok(Line::Text(text.to_owned())),
        _ => Err("it has neither an update nor a text".to_owned()),
    }
}

struct Api {
    base: String,
    http: reqwest::Client,
}

impl Api {
    fn wrong(&self, problem: impl Into<String>) -> FeedError {
        FeedError::Api { api: self.base.clone(), problem: problem.into() }
    }

    async fn bots(&self) -> Result<Vec<SimBot>, FeedError> {
        let response = self.http.get(format!("{}/_sim/bots", self.base)).send().await;
        let response = response.map_err(|_| self.wrong("gives no answer"))?;
        response.json().await.map_err(|_| self.wrong("is no stand-in of ours"))
    }

    async fn post(&self, what: &str, body: &Value) -> Result<(), FeedError> {
        let response = self.http.post(format!("{}/_sim/{what}", self.base)).json(body).send().await;
        let response = response.map_err(|_| self.wrong("gives no answer"))?;
        if response.status().is_success() {
            return Ok(());
        }
        let body: Value = response.json().await.unwrap_or(Value::Null);
        Err(self.wrong(format!("refuses: {}", body["error"].as_str().unwrap_or("no reason given"))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_told_apart_and_bad_ones_named() {
        assert!(matches!(parse(r#"{"update_id":1,"message":{}}"#), Ok(Line::Update(_))));
        assert!(matches!(parse(r#"{"name":"x","update":{"update_id":1}}"#), Ok(Line::Update(_))));
        assert!(matches!(parse(r#"{"id":"a","text":"hi"}"#), Ok(Line::Text(_))));
        for bad in ["nonsense", "{}", r#"{"text":""}"#, "[]", "7"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
