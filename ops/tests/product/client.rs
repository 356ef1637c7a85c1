//! GraphQL as an owner asks it.

use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::house::House;

/// A logged-in owner.
pub(crate) struct Client {
    http: reqwest::Client,
    url: String,
    token: String,
}

impl Client {
    pub(crate) async fn enter(house: &House) -> Self {
        let link: Value = serde_json::from_str(&house.told(&["link", "--json"]).await).unwrap();
        let secret = link["link"].as_str().unwrap().split('#').nth(1).unwrap();
        let url = format!("http://{}/graphql", house.listen);
        // The product closes idle connections, and a test is idle for as long as it takes.
        let http = reqwest::Client::builder().pool_max_idle_per_host(0).build().unwrap();
        let mut client = Self { http, url, token: String::new() };
        let entered = client
            .ask(
                "mutation($i: SessionActivateInput!) { sessionActivate(input: $i) { session { accessToken } } }",
                json!({"i": {"secret": secret, "password": "correct horse battery"}}),
            )
            .await;
        client.token =
            entered["sessionActivate"]["session"]["accessToken"].as_str().expect("a session").to_owned();
        client
    }

    fn post(&self, query: &str, variables: &Value) -> reqwest::RequestBuilder {
        let request = self.http.post(&self.url).json(&json!({"query": query, "variables": variables}));
        if self.token.is_empty() { request } else { request.bearer_auth(&self.token) }
    }

    pub(crate) async fn ask(&self, query: &str, variables: Value) -> Value {
        let answer: Value = self.post(query, &variables).send().await.unwrap().json().await.unwrap();
        assert!(answer["errors"].is_null(), "{answer}");
        answer["data"].clone()
    }

    /// Collects what a subscription gives, for as long as the product runs.
    pub(crate) async fn follow(&self, query: &str) -> Arc<Mutex<Vec<Value>>> {
        let request = self.post(query, &Value::Null).header("accept", "text/event-stream");
        let mut answer = request.send().await.unwrap();
        assert!(answer.status().is_success(), "{}", answer.status());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&seen);
        tokio::spawn(async move {
            let mut text = String::new();
            while let Ok(Some(piece)) = answer.chunk().await {
                text.push_str(&String::from_utf8_lossy(&piece));
                while let Some((event, rest)) = text.split_once("\n\n") {
                    if let Some(data) = event.lines().find_map(|line| line.strip_prefix("data: ")) {
                        told.lock().unwrap().push(serde_json::from_str(data).unwrap());
                    }
                    text = rest.to_owned();
                }
            }
        });
        seen
    }
}
