//! Values that can be read but make no sense.

use std::net::ToSocketAddrs;

use super::{Bucket, Config};

/// What is wrong with a configuration, one sentence each that begins with the key; empty when it is
/// fine. `serving` also asks for what only a running product needs: databases and keys.
pub fn problems(config: &Config, serving: bool) -> Vec<String> {
    let mut found = Findings(Vec::new());
    let f = &mut found;
    f.length("instance.name", &config.instance.name, 64);
    f.range("database.max_connections", u64::from(config.database.max_connections), 4, 1_000);
    f.range("database.acquire_timeout_s", config.database.acquire_timeout_s, 1, 60);
    f.range("redis.timeout_ms", config.redis.timeout_ms, 10, 60_000);
    f.address("http.listen", &config.http.listen);
    f.address("http.admin_listen", &config.http.admin_listen);
    if config.http.listen == config.http.admin_listen {
        f.add("http.admin_listen", "is the same as http.listen, but must not be public");
    }
    f.optional_url("http.public_url", &config.http.public_url, &["http", "https"]);
    if let Err(part) = config.trusted_proxies() {
        f.add("http.trusted_proxies", &format!("holds {part}, which is no IP address"));
    }
    f.range("http.max_body_bytes", config.http.max_body_bytes as u64, 1_024, 16 * 1024 * 1024);
    f.range("http.request_timeout_s", config.http.request_timeout_s, 1, 600);
    f.range("http.max_in_flight", config.http.max_in_flight as u64, 1, 100_000);
    f.range("http.past_copies", config.http.past_copies as u64, 1, 1_000);
    f.range("http.past_megabytes", config.http.past_megabytes, 1, 1 << 24);
    f.url("telegram.api_url", &config.telegram.api_url, &["http", "https"]);
    f.range("telegram.poll_timeout_s", config.telegram.poll_timeout_s, 0, 50);
    f.optional_url("telegram.webhook_base_url", &config.telegram.webhook_base_url, &["http", "https"]);
    f.range("telegram.call_timeout_s", config.telegram.call_timeout_s, 1, 300);
    // Nothing below these is published as allowed; a simulator may be asked for less.
    f.range("telegram.edit_interval_private_ms", config.telegram.edit_interval_private_ms, 10, 60_000);
    f.range("telegram.edit_interval_group_ms", config.telegram.edit_interval_group_ms, 10, 60_000);
    f.range("telegram.typing_interval_ms", config.telegram.typing_interval_ms, 100, 5_000);
    f.url("ollama.url", &config.ollama.url, &["http", "https"]);
    f.length("ollama.default_model", &config.ollama.default_model, 200);
    f.range("ollama.connect_timeout_s", config.ollama.connect_timeout_s, 1, 60);
    f.range("ollama.first_token_timeout_s", config.ollama.first_token_timeout_s, 1, 3_600);
    f.range("ollama.idle_timeout_s", config.ollama.idle_timeout_s, 1, 3_600);
    f.range(
        "ollama.total_timeout_s",
        config.ollama.total_timeout_s,
        config.ollama.first_token_timeout_s,
        86_400,
    );
    f.range("ollama.retries", u64::from(config.ollama.retries), 0, 10);
    f.range("ollama.max_answer_bytes", config.ollama.max_answer_bytes as u64, 4_096, 64 * 1024 * 1024);
    f.optional_url("moderation.openai_url", &config.moderation.openai_url, &["http", "https"]);
    f.length("moderation.openai_model", &config.moderation.openai_model, 200);
    if config.moderation.guard_model.chars().count() > 200 {
        f.add("moderation.guard_model", "must have at most 200 characters");
    }
    f.bucket("limits.user", config.limits.user);
    f.bucket("limits.chat", config.limits.chat);
    f.bucket("limits.bot", config.limits.bot);
    f.bucket("limits.workspace", config.limits.workspace);
    f.bucket("rate_limits.ip", config.rate_limits.ip);
    f.bucket("rate_limits.operator", config.rate_limits.operator);
    f.bucket("rate_limits.workspace", config.rate_limits.workspace);
    f.range("rate_limits.processes", u64::from(config.rate_limits.processes), 1, 1_000);
    f.length("quota.default_plan", &config.quota.default_plan, 64);
    f.range("quota.tokens", config.quota.tokens, 1, i64::MAX as u64);
    if !["minute", "hour", "day", "week", "month"].contains(&config.quota.period.as_str()) {
        f.add("quota.period", "must be minute, hour, day, week or month");
    }
    if let Err(part) = config.quota.warnings() {
        f.add("quota.warn_at_percent", &format!("holds {part}, which is no percentage from 1 to 99"));
    }
    f.length("prices.currency", &config.prices.currency, 16);
    f.length("prices.version", &config.prices.version, 64);
    if let Err(part) = config.prices.list() {
        f.add(
            "prices.models",
            &format!("holds {part}, which does not read provider/model=prompt:completion"),
        );
    }
    f.range("keys.master_key_version", u64::from(config.keys.master_key_version), 1, 1_000_000);
    if let Err(reason) = config.keys.previous() {
        f.add("keys.previous_master_keys", &reason);
    }
    f.range("auth.access_ttl_s", config.auth.access_ttl_s, 60, 3_600);
    f.length("audit.origin", &config.audit.origin, 200);
    if config.audit.origin.contains(|c: char| c.is_whitespace() || c.is_control() || c == '+') {
        f.add("audit.origin", "must hold no spaces and no +");
    }
    if let Err(reason) = config.audit.previous_keys() {
        f.add("audit.previous_keys", &reason);
    }
    if let Err(reason) = config.audit.witnesses() {
        f.add("audit.witnesses", &reason);
    }
    f.range("audit.checkpoint_interval_s", config.audit.checkpoint_interval_s, 1, 3_600);
    f.range("bots.max_concurrent_turns", config.bots.max_concurrent_turns as u64, 1, 100_000);
    f.range("bots.max_bots", config.bots.max_bots as u64, 1, 100_000);
    f.range("bots.lease_ttl_s", config.bots.lease_ttl_s, 2, 600);
    f.range("read_models.lease_ttl_s", config.read_models.lease_ttl_s, 2, 600);
    f.range("bots.retry_max_s", config.bots.retry_max_s, 1, 86_400);
    f.range("bots.context_turns", u64::from(config.bots.context_turns), 0, 1_000);
    f.length("relay.stream", &config.relay.stream, 200);
    if config.relay.stream.starts_with('$') {
        f.add("relay.stream", "begins with $, which is the servers' own");
    }
    f.range("relay.batch_events", config.relay.batch_events as u64, 1, 10_000);
    f.range("relay.batch_bytes", config.relay.batch_bytes as u64, 4_096, 64 * 1024 * 1024);
    f.range("relay.timeout_s", config.relay.timeout_s, 1, 600);
    f.range("relay.retry_max_s", config.relay.retry_max_s, 1, 86_400);
    f.range("relay.lease_ttl_s", config.relay.lease_ttl_s, 1, 600);
    if let Some(Err(problem)) = config.relay.plan().map(|plan| plan.target.check()) {
        f.add("relay.url", &problem.to_string());
    }
    f.range("instance.drain_timeout_s", config.instance.drain_timeout_s, 1, 600);
    if let Err(error) = tracing_subscriber::EnvFilter::builder().parse(&config.log.level) {
        f.add("log.level", &format!("is no filter: {error}"));
    }
    secrets(config, serving, f);
    found.0
}

fn secrets(config: &Config, serving: bool, f: &mut Findings) {
    let urls = [
        ("database.url", &config.database.url, &["postgres", "postgresql"][..], serving),
        ("database.migrate_url", &config.database.migrate_url, &["postgres", "postgresql"], false),
        ("redis.url", &config.redis.url, &["redis", "rediss", "redis+unix", "unix"], serving),
    ];
    for (key, url, schemes, needed) in urls {
        if url.is_empty() {
            if needed {
                f.add(key, "is not set; `ops/up` sets it for a local run");
            }
        } else if !schemes.iter().any(|scheme| url.expose().starts_with(&format!("{scheme}://"))) {
            f.add(key, &format!("must begin with {}", schemes.join(":// or ") + "://"));
        }
    }
    let keys = [
        ("keys.master_key", &config.keys.master_key),
        ("keys.pseudonym_key", &config.keys.pseudonym_key),
        ("auth.jwt_key", &config.auth.jwt_key),
        ("audit.signing_key", &config.audit.signing_key),
    ];
    for (index, (key, secret)) in keys.iter().enumerate() {
        let needed = serving && *key != "audit.signing_key";
        if secret.is_empty() && !needed {
            continue;
        }
        if let Err(reason) = secret.key() {
            f.add(key, reason);
        }
        if let Some((other, _)) =
            keys[..index].iter().find(|(_, earlier)| !secret.is_empty() && earlier == secret)
        {
            f.add(key, &format!("is the same as {other}: every key needs its own"));
        }
    }
}

struct Findings(Vec<String>);

impl Findings {
    fn add(&mut self, key: &str, what: &str) {
        self.0.push(format!("{key} {what}"));
    }

    fn range(&mut self, key: &str, value: u64, least: u64, most: u64) {
        if value < least || value > most {
            self.add(key, &format!("is {value}, must be {least} to {most}"));
        }
    }

    fn length(&mut self, key: &str, value: &str, most: usize) {
        let length = value.chars().count();
        if length == 0 || length > most {
            self.add(key, &format!("must have 1 to {most} characters"));
        }
    }

    fn bucket(&mut self, key: &str, bucket: Bucket) {
        self.range(&format!("{key}.burst"), u64::from(bucket.burst), 1, 1_000_000);
        self.range(&format!("{key}.per_minute"), u64::from(bucket.per_minute), 1, 10_000_000);
    }

    fn address(&mut self, key: &str, value: &str) {
        if !value.to_socket_addrs().is_ok_and(|mut addresses| addresses.next().is_some()) {
            self.add(key, "is no host:port to listen on");
        }
    }

    fn optional_url(&mut self, key: &str, value: &str, schemes: &[&str]) {
        if !value.is_empty() {
            self.url(key, value, schemes);
        }
    }

    fn url(&mut self, key: &str, value: &str, schemes: &[&str]) {
        let fits = reqwest::Url::parse(value)
            .is_ok_and(|url| schemes.contains(&url.scheme()) && url.has_host() && url.query().is_none());
        if !fits {
            self.add(key, &format!("is no URL of {} without a query", schemes.join(" or ")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Secret;
    use super::*;

    #[test]
    fn the_defaults_are_fine_and_serving_asks_for_its_secrets() {
        assert_eq!(problems(&Config::default(), false), Vec::<String>::new());
        let missing = problems(&Config::default(), true);
        for key in ["database.url", "redis.url", "keys.master_key", "keys.pseudonym_key", "auth.jwt_key"] {
            assert!(
                missing.iter().any(|problem| problem.starts_with(&format!("{key} is not set"))),
                "{key}: {missing:?}"
            );
        }
    }

    #[test]
    fn earlier_master_keys_are_read_line_by_line_and_never_shown() {
        let key = "ab".repeat(32);
        let with = |text: &str| {
            let mut config = Config::default();
            config.keys.master_key_version = 3;
            config.keys.previous_master_keys = Secret::new(text);
            config
        };
        let fine = with(&format!("1 {key}\n\n  2\t{key}\n"));
        assert_eq!(fine.keys.previous().unwrap().into_keys().collect::<Vec<_>>(), [1, 2]);
        assert_eq!(problems(&fine, false), Vec::<String>::new());
        for (text, line) in [
            (key.clone(), "line 1 is not a version"),
            (format!("0 {key}"), "line 1 is not a version"),
            (format!("1 {key}\n3 {key}"), "line 2 is not earlier"),
            (format!("1 {key}\n1 {key}"), "line 2 repeats version 1"),
            ("1 abc".to_owned(), "line 1: the key is not hexadecimal"),
        ] {
            let found = problems(&with(&text), false);
            assert!(
                found.len() == 1 && found[0].starts_with(&format!("keys.previous_master_keys {line}")),
                "{found:?}"
            );
            assert!(!found[0].contains("abab"), "{found:?}");
        }
    }

    #[test]
    fn each_senseless_value_is_named_once() {
        let mut config = Config::default();
        config.http.listen = "nowhere".to_owned();
        config.http.trusted_proxies = "127.0.0.1, proxy".to_owned();
        config.telegram.api_url = "ftp://x".to_owned();
        config.telegram.poll_timeout_s = 51;
        config.moderation.openai_url = "api.openai.com".to_owned();
        config.limits.user.burst = 0;
        config.rate_limits.processes = 0;
        config.quota.period = "fortnight".to_owned();
        config.quota.warn_at_percent = "80, 100".to_owned();
        config.prices.models = "ollama/*=0:0, ollama/llama3.2=cheap".to_owned();
        config.relay.stream = "$all".to_owned();
        config.relay.url = "esdb://admin:hunter2@db:2113".to_owned();
        config.log.level = "info,=,".to_owned();
        config.database.url = Secret::new("mysql://root:hunter2@x");
        config.keys.master_key = Secret::new("abc");
        let key = "11".repeat(32);
        config.keys.pseudonym_key = Secret::new(key.clone());
        config.auth.jwt_key = Secret::new(key);
        let found = problems(&config, false);
        let keys: Vec<&str> = found.iter().filter_map(|problem| problem.split(' ').next()).collect();
        assert_eq!(
            keys,
            [
                "http.listen",
                "http.trusted_proxies",
                "telegram.api_url",
                "telegram.poll_timeout_s",
                "moderation.openai_url",
                "limits.user.burst",
                "rate_limits.processes",
                "quota.period",
                "quota.warn_at_percent",
                "prices.models",
                "relay.stream",
                "relay.url",
                "log.level",
                "database.url",
                "keys.master_key",
                "auth.jwt_key"
            ],
            "{found:?}"
        );
        assert!(!format!("{found:?}").contains("hunter2"));
    }
}
