//! From defaults, file, environment and flags to one [`Config`] that knows where each value is from.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Map, Value};

use super::{Config, Secret};

/// Settings whose value must not stand in a file of settings or on a command line. Each has a twin
/// `<key>_file`.
const SECRETS: &[&str] = &[
    "database.url",
    "database.migrate_url",
    "redis.url",
    "keys.master_key",
    "keys.previous_master_keys",
    "keys.pseudonym_key",
    "auth.jwt_key",
    "audit.signing_key",
    "moderation.openai_key",
    "relay.password",
];
/// Variables of other tools that mean the same, below ours.
const ALIASES: &[(&str, &str)] = &[("DATABASE_URL", "database.url"), ("REDIS_URL", "redis.url")];
const PREFIX: &str = "BOTLEDGER_";
const DEFAULT_FILE: &str = "botledger.toml";

/// Where a value is from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "from", content = "name", rename_all = "snake_case")]
pub enum Origin {
    /// Built in.
    Default,
    /// The settings file.
    File(PathBuf),
    /// An environment variable.
    Environment(String),
    /// `--set`.
    Flag,
    /// The file named by the key's `_file` twin.
    SecretFile(PathBuf),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) | Self::SecretFile(path) => write!(f, "{}", path.display()),
            Self::Environment(name) => f.write_str(name),
            Self::Flag => f.write_str("--set"),
        }
    }
}

/// A configuration that cannot be read. Never holds a value that was given.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigError(pub String);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ConfigError {}

/// What to read.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// `--config`; [`Sources::read`] takes `./botledger.toml` if there is one and none is named.
    pub file: Option<PathBuf>,
    /// All environment variables.
    pub environment: Vec<(String, String)>,
    /// `section.key=value` from the command line.
    pub sets: Vec<String>,
}

/// A configuration and where its values are from.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub config: Config,
    origins: BTreeMap<String, Origin>,
}

/// One setting as it is in force.
#[derive(Clone, Debug, Serialize)]
pub struct Effective {
    /// `section.key`.
    pub key: String,
    /// The value; `[secret]` for a secret that is set, empty or null when not set.
    pub value: Value,
    /// Where it is from.
    pub origin: Origin,
}

impl Sources {
    /// The process's own environment, with a file and flags from its command line.
    pub fn of_process(file: Option<PathBuf>, sets: Vec<String>) -> Self {
        // A variable that is not Unicode cannot be one of ours.
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        Self { file, environment, sets }
    }

    /// Reads everything.
    ///
    /// # Errors
    /// When a file cannot be read, a key is unknown, a value does not fit, or a secret stands where
    /// secrets may not.
    pub fn read(self) -> Result<Loaded, ConfigError> {
        let defaults = serde_json::to_value(Config::default()).expect("plain data always serializes");
        let mut layers = Layers::new(defaults);
        let named = self.file.or_else(|| Path::new(DEFAULT_FILE).is_file().then(|| DEFAULT_FILE.into()));
        if let Some(path) = named {
            layers.add_file(&path)?;
        }
        for (variable, key) in ALIASES {
            if let Some((_, value)) =
                self.environment.iter().find(|(name, value)| name == variable && !value.is_empty())
            {
                layers.set(key, Value::String(value.clone()), Origin::Environment((*variable).to_owned()))?;
            }
        }
        for (name, value) in &self.environment {
            let Some(key) = key_of(name) else { continue };
            layers.set_text(&key, value, Origin::Environment(name.clone()))?;
        }
        for set in &self.sets {
            let Some((key, value)) = set.split_once('=') else {
                return Err(ConfigError(format!("--set {set}: expected section.key=value")));
            };
            if SECRETS.contains(&key) {
                return Err(ConfigError(format!(
                    "--set {key}: a secret on the command line can be read by everyone on the machine; set {} or {key}_file",
                    variable_of(key)
                )));
            }
            layers.set_text(key, value, Origin::Flag)?;
        }
        layers.read_secret_files()?;
        let config = serde_json::from_value(layers.tree).map_err(|error| ConfigError(error.to_string()))?;
        Ok(Loaded { config, origins: layers.origins })
    }
}

impl Loaded {
    /// Every setting in force, ordered by key.
    pub fn effective(&self) -> Vec<Effective> {
        let tree = serde_json::to_value(&self.config).expect("plain data always serializes");
        let mut leaves = BTreeMap::new();
        collect_leaves(&tree, String::new(), &mut leaves);
        leaves
            .into_iter()
            .map(|(key, value)| {
                let origin = self.origins.get(&key).cloned().unwrap_or(Origin::Default);
                Effective { key, value, origin }
            })
            .collect()
    }
}

struct Layers {
    tree: Value,
    known: BTreeMap<String, Value>,
    origins: BTreeMap<String, Origin>,
}

impl Layers {
    fn new(defaults: Value) -> Self {
        let mut known = BTreeMap::new();
        collect_leaves(&defaults, String::new(), &mut known);
        Self { tree: defaults, known, origins: BTreeMap::new() }
    }

    fn add_file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let shown = path.display();
        let text = std::fs::read_to_string(path)
            .map_err(|error| ConfigError(format!("{shown}: cannot be read: {error}")))?;
        // The parser's message quotes the line, which may hold a secret put there by mistake.
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
            let line = error.span().map_or(0, |span| text[..span.start].lines().count().max(1));
            ConfigError(format!("{shown}: line {line}: {}", error.message()))
        })?;
        let table = serde_json::to_value(table).map_err(|error| ConfigError(format!("{shown}: {error}")))?;
        let mut leaves = BTreeMap::new();
        collect_leaves(&table, String::new(), &mut leaves);
        for (key, value) in leaves {
            if SECRETS.contains(&key.as_str()) {
                return Err(ConfigError(format!(
                    "{shown}: {key} is a secret and does not belong into this file; set {} or {key}_file",
                    variable_of(&key)
                )));
            }
            self.set(&key, value, Origin::File(path.to_owned()))?;
        }
        Ok(())
    }

    /// A value that came as text, read as the kind its default is of.
    fn set_text(&mut self, key: &str, text: &str, origin: Origin) -> Result<(), ConfigError> {
        let value = match self.known.get(key) {
            Some(Value::Number(_)) => match text.trim().parse::<u64>() {
                Ok(number) => Value::from(number),
                Err(_) => return Err(ConfigError(format!("{key} ({origin}): expected a whole number"))),
            },
            Some(Value::Bool(_)) => match text.trim() {
                "true" | "1" => Value::Bool(true),
                "false" | "0" => Value::Bool(false),
                _ => return Err(ConfigError(format!("{key} ({origin}): expected true or false"))),
            },
            _ => Value::String(text.to_owned()),
        };
        self.set(key, value, origin)
    }

    fn set(&mut self, key: &str, value: Value, origin: Origin) -> Result<(), ConfigError> {
        let Some(default) = self.known.get(key) else {
            let hint = match nearest(key, self.known.keys()) {
                Some(near) => format!("did you mean {near}?"),
                None => "`botledger config check` lists all of them".to_owned(),
            };
            return Err(ConfigError(format!("{key} ({origin}): there is no such setting; {hint}")));
        };
        let fits = match default {
            Value::Number(_) => value.is_u64(),
            Value::Bool(_) => value.is_boolean(),
            _ => value.is_string(),
        };
        if !fits {
            let kind = match default {
                Value::Number(_) => "a whole number",
                Value::Bool(_) => "true or false",
                _ => "a text in quotes",
            };
            return Err(ConfigError(format!("{key} ({origin}): expected {kind}")));
        }
        let slot = key.split('.').try_fold(&mut self.tree, |node, part| node.get_mut(part));
        *slot.expect("every known key is in the tree") = value;
        self.origins.insert(key.to_owned(), origin);
        Ok(())
    }

    fn read_secret_files(&mut self) -> Result<(), ConfigError> {
        for key in SECRETS {
            let twin = format!("{key}_file");
            let Some(Value::String(path)) = self.known_slot(&twin).cloned() else { continue };
            if path.is_empty() {
                continue;
            }
            if let Some(origin) = self.origins.get(*key) {
                // What someone exported for other tools must not beat a file that was named on purpose.
                if !matches!(origin, Origin::Environment(name) if ALIASES.iter().any(|(alias, _)| alias == name))
                {
                    return Err(ConfigError(format!(
                        "both {key} ({origin}) and {twin} are set: keep one of them"
                    )));
                }
            }
            if *key == "audit.signing_key" {
                super::refuse_open_key(path.as_ref())
                    .map_err(|reason| ConfigError(format!("{twin}: {path} {reason}")))?;
            }
            let text = std::fs::read_to_string(&path)
                .map_err(|error| ConfigError(format!("{twin}: {path} cannot be read: {error}")))?;
            self.set(key, Value::String(text.trim().to_owned()), Origin::SecretFile(path.into()))?;
        }
        Ok(())
    }

    fn known_slot(&self, key: &str) -> Option<&Value> {
        key.split('.').try_fold(&self.tree, |node, part| node.get(part))
    }
}

/// `BOTLEDGER_HTTP__ADMIN_LISTEN` means `http.admin_listen`; names without `__` are not settings.
fn key_of(variable: &str) -> Option<String> {
    let rest = variable.strip_prefix(PREFIX)?;
    rest.contains("__").then(|| rest.to_lowercase().replace("__", "."))
}

fn variable_of(key: &str) -> String {
    format!("{PREFIX}{}", key.to_uppercase().replace('.', "__"))
}

fn collect_leaves(value: &Value, path: String, leaves: &mut BTreeMap<String, Value>) {
    let Value::Object(members) = value else {
        leaves.insert(path, value.clone());
        return;
    };
    collect_members(members, &path, leaves);
}

fn collect_members(members: &Map<String, Value>, path: &str, leaves: &mut BTreeMap<String, Value>) {
    for (name, value) in members {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        collect_leaves(value, path, leaves);
    }
}

/// The known key that takes the fewest changes to get to, if that is not too many.
fn nearest<'a>(key: &str, known: impl Iterator<Item = &'a String>) -> Option<&'a String> {
    known
        .map(|candidate| (distance(key, candidate), candidate))
        .min()
        .filter(|(changes, candidate)| *changes <= 3 + candidate.len() / 4)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein distance in bytes.
fn distance(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in to.bytes().enumerate() {
            let change = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

/// The value of a secret for a test or a generated environment.
impl From<&str> for Secret {
    fn from(value: &str) -> Self {
        Self::new(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_env(variables: &[(&str, &str)]) -> Sources {
        let environment =
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Sources { environment, ..Sources::default() }
    }

    fn file(name: &str, text: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("botledger-config-{}-{name}", std::process::id()));
        std::fs::write(&path, text).unwrap();
        path
    }

    fn origin(loaded: &Loaded, key: &str) -> Origin {
        loaded.effective().into_iter().find(|setting| setting.key == key).unwrap().origin
    }

    #[test]
    fn flags_beat_environment_beats_file_beats_defaults() {
        let path = file(
            "precedence",
            "[http]\nlisten = \"a:1\"\nadmin_listen = \"a:2\"\nmax_body_bytes = 5\n[limits.user]\nburst = 9\n",
        );
        let mut sources = from_env(&[
            ("BOTLEDGER_HTTP__LISTEN", "b:1"),
            ("BOTLEDGER_HTTP__MAX_BODY_BYTES", "6"),
            ("PATH", "/bin"),
        ]);
        sources.file = Some(path.clone());
        sources.sets = vec!["http.listen=c:1".to_owned()];
        let loaded = sources.read().unwrap();
        assert_eq!(loaded.config.http.listen, "c:1");
        assert_eq!(loaded.config.http.max_body_bytes, 6);
        assert_eq!(loaded.config.http.admin_listen, "a:2");
        assert_eq!(loaded.config.limits.user, super::super::Bucket { burst: 9, per_minute: 20 });
        assert_eq!(loaded.config.http.request_timeout_s, 30);
        assert_eq!(origin(&loaded, "http.listen"), Origin::Flag);
        assert_eq!(
            origin(&loaded, "http.max_body_bytes"),
            Origin::Environment("BOTLEDGER_HTTP__MAX_BODY_BYTES".into())
        );
        assert_eq!(origin(&loaded, "http.admin_listen"), Origin::File(path.clone()));
        assert_eq!(origin(&loaded, "http.request_timeout_s"), Origin::Default);
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn an_unknown_key_is_refused_with_the_nearest_one() {
        let message = |sources: Sources| sources.read().unwrap_err().0;
        let wrong = message(from_env(&[("BOTLEDGER_HTTP__LISTNE", "x")]));
        assert!(wrong.contains("http.listne") && wrong.contains("http.listen?"), "{wrong}");
        let path = file("unknown", "[databse]\nmax_connections = 3\n");
        let mut sources = from_env(&[]);
        sources.file = Some(path.clone());
        let wrong = message(sources);
        assert!(
            wrong.contains("databse.max_connections") && wrong.contains("database.max_connections?"),
            "{wrong}"
        );
        std::fs::remove_file(path).unwrap();
        let mut sources = from_env(&[]);
        sources.sets = vec!["nothing.like.that=1".to_owned()];
        assert!(message(sources).contains("config check"));
    }

    #[test]
    fn values_of_the_wrong_kind_name_their_key() {
        for (sources, part) in [
            (from_env(&[("BOTLEDGER_REDIS__TIMEOUT_MS", "soon")]), "redis.timeout_ms"),
            (from_env(&[("BOTLEDGER_REDIS__TIMEOUT_MS", "-1")]), "redis.timeout_ms"),
            (from_env(&[("BOTLEDGER_LOG__FORMAT", "yaml")]), "text"),
        ] {
            let message = sources.read().unwrap_err().0;
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn no_way_of_showing_shows_a_secret() {
        let secret = "postgres://me:hunter2@db/x";
        let loaded = from_env(&[("DATABASE_URL", secret)]).read().unwrap();
        assert_eq!(loaded.config.database.url.expose(), secret);
        let shown = format!(
            "{:?} {:?} {} {}",
            loaded,
            loaded.effective(),
            serde_json::to_string(&loaded.config).unwrap(),
            serde_json::to_string(&loaded.effective()).unwrap()
        );
        assert!(!shown.contains("hunter2"), "{shown}");
        assert!(shown.contains("[secret]"));
    }

    #[test]
    fn secrets_are_refused_in_files_and_flags_and_not_repeated() {
        let path = file("secret", "[redis]\nurl = \"redis://:hunter2@r\"\n");
        let mut sources = from_env(&[]);
        sources.file = Some(path.clone());
        let message = sources.read().unwrap_err().0;
        assert!(message.contains("BOTLEDGER_REDIS__URL") && !message.contains("hunter2"), "{message}");
        std::fs::write(&path, "[redis]\nurl = @hunter2\n").unwrap();
        let mut sources = from_env(&[]);
        sources.file = Some(path.clone());
        let message = sources.read().unwrap_err().0;
        assert!(message.contains("line 2") && !message.contains("hunter2"), "{message}");
        std::fs::remove_file(path).unwrap();
        let mut sources = from_env(&[]);
        sources.sets = vec!["auth.jwt_key=hunter2".to_owned()];
        let message = sources.read().unwrap_err().0;
        assert!(message.contains("auth.jwt_key_file") && !message.contains("hunter2"), "{message}");
    }

    #[test]
    fn a_secret_file_is_read_and_beats_a_variable_of_another_tool_but_not_ours() {
        let path = file("url", "postgres://from-file\n");
        let twin = path.to_str().unwrap();
        let both = [("DATABASE_URL", "postgres://exported"), ("BOTLEDGER_DATABASE__URL_FILE", twin)];
        let loaded = from_env(&both).read().unwrap();
        assert_eq!(loaded.config.database.url.expose(), "postgres://from-file");
        assert_eq!(origin(&loaded, "database.url"), Origin::SecretFile(path.clone()));
        let ours = [("BOTLEDGER_DATABASE__URL", "postgres://ours"), ("BOTLEDGER_DATABASE__URL_FILE", twin)];
        assert!(from_env(&ours).read().unwrap_err().0.contains("keep one"));
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_signing_key_that_others_can_read_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let path = file("signing-key", &"7".repeat(64));
        let twin = [("BOTLEDGER_AUDIT__SIGNING_KEY_FILE", path.to_str().unwrap())];
        for (mode, fits) in [(0o644, false), (0o640, false), (0o600, true), (0o400, true)] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(from_env(&twin).read().is_ok(), fits, "{mode:o}");
        }
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn every_secret_of_the_list_exists_and_has_a_twin_and_every_twin_is_listed() {
        let layers = Layers::new(serde_json::to_value(Config::default()).unwrap());
        for key in SECRETS {
            assert!(layers.known.contains_key(*key), "{key}");
            assert!(layers.known.contains_key(&format!("{key}_file")), "{key}_file");
        }
        for key in layers.known.keys() {
            if let Some(secret) = key.strip_suffix("_file") {
                assert!(SECRETS.contains(&secret), "{secret} has a file but is not listed as a secret");
            }
        }
    }
}
