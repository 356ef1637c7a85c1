//! The session with the target, through the `eventstore` crate and around what that crate does badly
//! (`ops/decisions/0021`): its client is dead for ever once it could not connect, never looks for another
//! node after one went away, panics in a task of its own over certificates, and its tasks outlive it. So
//! every session has a client and a runtime of its own; ending the runtime ends all of it.

use std::{path::PathBuf, time::Duration};

use eventstore::{
    AppendToStreamOptions, Client, ClientSettings, Credentials, EventData, ExpectedRevision,
    ReadStreamOptions, StreamPosition,
};
use tokio::runtime::Runtime;
use uuid::Uuid;

use crate::outgoing::Mark;

/// Beyond the deadline that the server was told, before the client itself is given up.
const GRACE: Duration = Duration::from_secs(5);
/// Without a file of roots the crate reads the system's, even where nothing is encrypted, and panics on a
/// machine that has none. An empty file is none.
const NO_ROOTS: &str = "/dev/null";

/// Where to relay to.
#[derive(Clone)]
pub struct TargetConfig {
    /// `esdb://host:2113,…` or `esdb+discover://…` with its parameters, without user and password.
    pub url: String,
    /// Who writes; anonymous when empty.
    pub user: String,
    /// Their password.
    pub password: String,
    /// PEM file of the authorities that the target's certificate may be of; the system's when none.
    pub ca_file: Option<PathBuf>,
    /// Longest wait for an answer.
    pub timeout: Duration,
}

/// Settings that cannot work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TargetProblem(String);

impl TargetConfig {
    /// The hosts, for people.
    ///
    /// # Errors
    /// As [`TargetConfig::check`].
    pub fn hosts(&self) -> Result<String, TargetProblem> {
        let settings = self.settings()?;
        let hosts: Vec<String> =
            settings.hosts().iter().map(|host| format!("{}:{}", host.host, host.port)).collect();
        Ok(hosts.join(","))
    }

    /// Looks at everything that can be looked at without asking the target.
    ///
    /// # Errors
    /// Says what is wrong.
    pub fn check(&self) -> Result<(), TargetProblem> {
        self.settings().map(drop)
    }

    fn settings(&self) -> Result<ClientSettings, TargetProblem> {
        let wrong = |what: String| TargetProblem(what);
        let given: ClientSettings =
            self.url.parse().map_err(|_| wrong("is no connection string esdb://host:port".to_owned()))?;
        if given.default_authenticated_user().is_some() {
            return Err(wrong("must not hold a user: there are settings of their own for that".to_owned()));
        }
        if self.user.is_empty() != self.password.is_empty() {
            return Err(wrong("needs user and password, or neither".to_owned()));
        }
        if !self.user.is_empty() && !given.is_secure_mode_enabled() {
            let local =
                given.hosts().iter().all(|host| matches!(host.host.as_str(), "127.0.0.1" | "localhost"));
            if !local {
                return Err(wrong("would send a password without TLS".to_owned()));
            }
        }
        let mut url = self.url.clone();
        let mut add = |key: &str, value: &str| {
            let join = if url.contains('?') { '&' } else { '?' };
            url.push_str(&format!("{join}{key}={value}"));
        };
        // Only the leader's last event is the last one, and only the leader appends.
        add("nodePreference", "leader");
        add("connectionName", "botledger-relay");
        let mut files = Vec::new();
        if given.is_secure_mode_enabled() {
            if let Some(file) = &self.ca_file {
                let path =
                    file.to_str().ok_or_else(|| wrong("has a CA file whose name is no text".to_owned()))?;
                add("tlsCaFile", &encoded(path));
                files.push(path.to_owned());
            }
            files.extend(given.tls_ca_file().cloned());
            files.extend(
                given.user_certificate().into_iter().flat_map(|(cert, key)| [cert.clone(), key.clone()]),
            );
        } else {
            add("tlsCaFile", NO_ROOTS);
        }
        // Where the crate cannot read these it panics.
        for file in files {
            let text = std::fs::read_to_string(&file)
                .map_err(|error| wrong(format!("names {file}, which cannot be read: {error}")))?;
            if !text.contains("-----BEGIN ") {
                return Err(wrong(format!("names {file}, which is no PEM file")));
            }
        }
        // The second reading says what the first has said, or speaks of the file that is none.
        let silent = tracing::subscriber::NoSubscriber::default();
        tracing::subscriber::with_default(silent, || url.parse())
            .map_err(|_| wrong("is no connection string esdb://host:port".to_owned()))
    }
}

fn encoded(path: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte);
    path.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

/// Why something did not work. What an append has done is then not known, except where said otherwise.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TargetError {
    /// Nothing was stored: the stream does not end where expected.
    #[error("the stream does not end where it was expected to")]
    Moved,
    /// Nothing was stored.
    #[error("the target accepts no append of this size ({0})")]
    TooLarge(String),
    /// Nothing was stored. The client goes to the leader by itself.
    #[error("another node is the leader now")]
    NotLeader,
    /// Nobody can write to the stream again.
    #[error("the stream was deleted for good (tombstoned)")]
    Tombstoned,
    #[error("the target refuses who asks: check user, password and rights on the stream")]
    AccessDenied,
    #[error("the target does not answer: {0}")]
    Unavailable(String),
}

impl TargetError {
    /// Whether the session can go on.
    pub(crate) fn spares_session(&self) -> bool {
        matches!(self, Self::Moved | Self::TooLarge(_) | Self::NotLeader | Self::Tombstoned)
    }

    /// Label for metrics.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Moved => "moved",
            Self::TooLarge(_) => "too_large",
            Self::NotLeader => "not_leader",
            Self::Tombstoned => "tombstoned",
            Self::AccessDenied => "access_denied",
            Self::Unavailable(_) => "unavailable",
        }
    }
}

impl From<eventstore::Error> for TargetError {
    fn from(error: eventstore::Error) -> Self {
        use eventstore::Error;
        match error {
            Error::WrongExpectedVersion { .. } => Self::Moved,
            Error::NotLeaderException(_) => Self::NotLeader,
            Error::ResourceDeleted => Self::Tombstoned,
            Error::AccessDenied => Self::AccessDenied,
            Error::Grpc { message, .. } if message.to_lowercase().contains("maximum append") => {
                Self::TooLarge(message)
            }
            Error::ConnectionClosed => Self::Unavailable(
                "no connection could be made; if it persists, look at certificates and addresses".to_owned(),
            ),
            other => Self::Unavailable(other.to_string()),
        }
    }
}

/// The last event of the stream.
#[derive(Debug)]
pub(crate) struct Last {
    pub(crate) revision: u64,
    pub(crate) id: Uuid,
    pub(crate) event_type: String,
    pub(crate) mark: Option<Mark>,
}

pub(crate) struct Target {
    client: Client,
    stream: String,
    credentials: Option<Credentials>,
    timeout: Duration,
    /// Always there until dropped.
    runtime: Option<Runtime>,
}

impl Target {
    pub(crate) fn open(config: &TargetConfig, stream: &str) -> Result<Self, TargetError> {
        let unavailable = |error: &dyn std::fmt::Display| TargetError::Unavailable(error.to_string());
        let settings = config.settings().map_err(|problem| unavailable(&problem))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("relay-target")
            .enable_all()
            .build()
            .map_err(|error| unavailable(&error))?;
        let client = Client::with_runtime_handle(runtime.handle().clone(), settings)?;
        let credentials =
            (!config.user.is_empty()).then(|| Credentials::new(config.user.clone(), config.password.clone()));
        Ok(Self {
            client,
            stream: stream.to_owned(),
            credentials,
            timeout: config.timeout,
            runtime: Some(runtime),
        })
    }

    /// The end of the stream; nothing where it is not there or was deleted.
    pub(crate) async fn last(&self) -> Result<Option<Last>, TargetError> {
        let mut options = ReadStreamOptions::default()
            .position(StreamPosition::End)
            .max_count(1)
            .requires_leader(true)
            .deadline(self.timeout);
        if let Some(credentials) = &self.credentials {
            options = options.authenticated(credentials.clone());
        }
        let (client, stream) = (self.client.clone(), self.stream.clone());
        self.within(async move {
            let found = match client.read_stream(stream, &options).await {
                Ok(mut events) => events.next().await,
                Err(error) => Err(error),
            };
            match found {
                Ok(found) => Ok(found.map(|found| {
                    let event = found.get_original_event();
                    Last {
                        revision: event.revision,
                        id: event.id,
                        event_type: event.event_type.clone(),
                        mark: Mark::read(&event.custom_metadata),
                    }
                })),
                Err(eventstore::Error::ResourceNotFound) => Ok(None),
                Err(error) => Err(error),
            }
        })
        .await
    }

    /// Appends all of these or none, directly after so many events; gives the last one's revision.
    pub(crate) async fn append(&self, after: u64, events: Vec<EventData>) -> Result<u64, TargetError> {
        let expected = after.checked_sub(1).map_or(ExpectedRevision::NoStream, ExpectedRevision::Exact);
        let mut options = AppendToStreamOptions::default()
            .expected_revision(expected)
            .requires_leader(true)
            .deadline(self.timeout);
        if let Some(credentials) = &self.credentials {
            options = options.authenticated(credentials.clone());
        }
        let (client, stream) = (self.client.clone(), self.stream.clone());
        self.within(async move {
            client
                .append_to_stream(stream, &options, events)
                .await
                .map(|written| written.next_expected_version)
        })
        .await
    }

    /// Runs a call where the client lives: a panic of the crate is an answer that did not come.
    async fn within<T: Send + 'static>(
        &self,
        call: impl Future<Output = eventstore::Result<T>> + Send + 'static,
    ) -> Result<T, TargetError> {
        let runtime = self.runtime.as_ref().expect("the runtime is there until the session is dropped");
        let call = runtime.spawn(call);
        let stop = call.abort_handle();
        match tokio::time::timeout(self.timeout + GRACE, call).await {
            Ok(Ok(answer)) => answer.map_err(TargetError::from),
            Ok(Err(_)) => Err(TargetError::Unavailable("its answer could not be understood".to_owned())),
            Err(_) => {
                stop.abort();
                let waited = (self.timeout + GRACE).as_secs();
                Err(TargetError::Unavailable(format!("nothing came for {waited} s")))
            }
        }
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // To wait for it is not allowed here; its tasks end at their next await.
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(url: &str) -> TargetConfig {
        TargetConfig {
            url: url.to_owned(),
            user: String::new(),
            password: String::new(),
            ca_file: None,
            timeout: Duration::from_secs(1),
        }
    }

    #[test]
    fn connection_strings_name_their_hosts() {
        let hosts = |url: &str| config(url).hosts();
        assert_eq!(hosts("esdb://one:2113?tls=false").unwrap(), "one:2113");
        assert_eq!(
            hosts("esdb://one:1,two:2,three?keepAliveInterval=20000").unwrap(),
            "one:1,two:2,three:2113"
        );
    }

    #[test]
    fn what_cannot_work_or_would_leak_is_refused_with_what_it_is() {
        let why = |config: &TargetConfig| config.check().unwrap_err().0;
        assert!(why(&config("http://one:2113")).contains("no connection string"));
        let why_user = why(&config("esdb://admin:hunter2@one:2113"));
        assert!(why_user.contains("must not hold a user") && !why_user.contains("hunter2"));
        let mut insecure = config("esdb://one:2113?tls=false");
        (insecure.user, insecure.password) = ("relay".to_owned(), "hunter2".to_owned());
        assert!(why(&insecure).contains("without TLS"));
        insecure.url = "esdb://127.0.0.1:2113?tls=false".to_owned();
        assert_eq!(insecure.check(), Ok(()));
        insecure.password.clear();
        assert!(why(&insecure).contains("user and password"));
        let mut secure = config("esdb://one:2113");
        secure.ca_file = Some("/nowhere/ca.pem".into());
        assert!(why(&secure).contains("/nowhere/ca.pem"));
        secure.ca_file = Some("/dev/null".into());
        assert!(why(&secure).contains("no PEM file"));
    }

    #[test]
    fn a_files_name_survives_the_connection_string() {
        assert_eq!(encoded("/etc/a b&c/ü.pem"), "/etc/a%20b%26c/%C3%BC.pem");
    }
}
