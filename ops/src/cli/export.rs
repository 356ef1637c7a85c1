//! `botledger export`: the ledger in files.

use std::path::PathBuf;

use anyhow::{Context, Result};
use botledger_domain::Position;
use botledger_journal::transfer::{Encoding, ExportRequest, FileKind, Fingerprints, MANIFEST, Step, export};
use botledger_local::progress::{Progress, say};
use botledger_projections::LogReader;
use chrono::{DateTime, TimeDelta, Utc};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;

use super::Settings;
use super::shell::Told;
use crate::config::Config;
use crate::platform::answering_pool;

#[derive(Clone, Debug, Subcommand)]
pub enum ExportCommand {
    /// Every event of a range with all its columns, in files with a manifest; goes on after a kill
    Log(ExportLog),
}

impl ExportCommand {
    /// # Errors
    /// See `export log`.
    pub async fn run(self, settings: Settings, told: &mut Told) -> Result<u8> {
        let Self::Log(log) = self;
        log.run(settings, told).await
    }
}

#[derive(Clone, Debug, Args)]
pub struct ExportLog {
    /// Folder, made if it is not there; an unfinished export in it goes on
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// How events are written
    #[arg(long, value_enum, default_value_t = Format::Ndjson)]
    format: Format,
    /// From this position on, or from what was recorded at or after this time (RFC 3339) [default: the first]
    #[arg(long, value_name = "POSITION|TIME")]
    from: Option<Bound>,
    /// Up to this position, or what was recorded before this time (RFC 3339) [default: the newest]
    #[arg(long, value_name = "POSITION|TIME")]
    to: Option<Bound>,
    /// A file ends when it is so long, for example 512KiB
    #[arg(long, value_name = "SIZE", default_value = "64MiB")]
    max_file: Size,
    /// Leave out the sealed message texts
    #[arg(long)]
    without_bodies: bool,
    /// For moving house: also the wrapped keys of people and bots, and the logins of operators. Who has these
    /// files and the master key can read everything
    #[arg(long, conflicts_with_all = ["from", "to"])]
    with_keys: bool,
    /// Print JSON: `{"folder", "first", "last", "files", "bodies", "root", "manifest_sha256", "resumed"}`
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// Every column under its own name; what `botledger import` likes best
    Ndjson,
    /// CloudEvents 1.0, structured JSON, one a line
    Cloudevents,
}

/// A place in the ledger.
#[derive(Clone, Copy, Debug)]
enum Bound {
    At(i64),
    Time(DateTime<Utc>),
}

impl std::str::FromStr for Bound {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match (text.parse(), text.parse()) {
            (Ok(position), _) if position > 0 => Ok(Self::At(position)),
            (Err(_), Ok(time)) => Ok(Self::Time(time)),
            _ => Err("neither a position (1 or more) nor a time such as 2026-11-24T12:00:00Z"),
        }
    }
}

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Size(u64);

impl std::str::FromStr for Size {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let end = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        let unit = match unit {
            "" => Some(1),
            "KiB" => Some(1 << 10),
            "MiB" => Some(1 << 20),
            "GiB" => Some(1 << 30),
            _ => None,
        };
        let bytes = number.parse::<u64>().ok().zip(unit).and_then(|(number, unit)| number.checked_mul(unit));
        bytes.filter(|bytes| *bytes > 0).map(Self).ok_or("no size such as 512KiB, 64MiB or 1GiB")
    }
}

impl ExportLog {
    /// What the audit table calls it.
    #[must_use]
    pub fn action(&self) -> &'static str {
        if self.with_keys { "log.export_with_keys" } else { "log.export" }
    }

    /// # Errors
    /// When the database does not answer, the folder holds something else, or the ledger differs from its
    /// own hashes.
    async fn run(self, settings: Settings, noted: &mut Told) -> Result<u8> {
        let config = settings.load_running()?.config;
        let pool = answering_pool(&config).await?;
        let log = LogReader::new(pool.clone());
        let request = ExportRequest {
            folder: self.out.clone(),
            encoding: match self.format {
                Format::Ndjson => Encoding::Ndjson,
                Format::Cloudevents => Encoding::Cloudevents,
            },
            first: match self.from {
                Some(bound) => Some(before(&log, bound).await?.0 + 1),
                None => None,
            },
            last: match self.to {
                Some(Bound::At(position)) => Some(position),
                Some(time) => Some(before(&log, time).await?.0),
                None => None,
            },
            bodies: !self.without_bodies,
            house: self.with_keys,
            max_file_bytes: self.max_file.0,
            instance: config.instance.name.clone(),
            product: env!("CARGO_PKG_VERSION").to_owned(),
            keys: fingerprints(&config),
        };
        let exported = export(&pool, request, telling(self.json)).await.context("nothing is exported yet")?;
        let manifest = &exported.manifest;
        let (root, sha256) = (hex::encode(manifest.after.root), hex::encode(exported.manifest_sha256));
        let bodies = manifest.lines(FileKind::Bodies);
        noted.insert("first".to_owned(), manifest.first.into());
        noted.insert("last".to_owned(), manifest.last.into());
        noted.insert("bodies".to_owned(), bodies.into());
        noted.insert("bodies_absent".to_owned(), manifest.bodies_absent.into());
        noted.insert("keys".to_owned(), self.with_keys.into());
        noted.insert("manifest_sha256".to_owned(), sha256.clone().into());
        if self.json {
            let told = json!({
                "folder": self.out, "first": manifest.first, "last": manifest.last, "files": manifest.files.len(),
                "bodies": bodies, "root": root, "manifest_sha256": sha256, "resumed": exported.resumed,
            });
            say(told.to_string());
            return Ok(0);
        }
        say(format!(
            "events {} to {} and {bodies} sealed bodies, {} files and {MANIFEST} in {}",
            manifest.first,
            manifest.last,
            manifest.files.len(),
            self.out.display()
        ));
        if manifest.bodies_absent > 0 {
            say(format!("{} sealed bodies that events name are not there any more", manifest.bodies_absent));
        }
        say(format!("tree head over {} events: {root}", manifest.last));
        say(format!("SHA-256 of {MANIFEST}: {sha256}"));
        if self.with_keys {
            say("house.ndjson holds wrapped keys and password hashes: keep it apart from the master key");
        }
        Ok(0)
    }
}

/// The position before a bound.
async fn before(log: &LogReader, bound: Bound) -> Result<Position> {
    match bound {
        Bound::At(position) => Ok(Position(position - 1)),
        Bound::Time(time) => {
            // A microsecond is the ledger's resolution.
            let just_before = time.checked_sub_signed(TimeDelta::microseconds(1)).unwrap_or(time);
            log.position_at(just_before).await.context("the ledger cannot be read")
        }
    }
}

/// Of this installation's keys, as far as they are set.
pub(super) fn fingerprints(config: &Config) -> Fingerprints {
    let keys = &config.keys;
    let mut fingerprints = Fingerprints {
        pseudonym: keys.pseudonym_key.key().ok().map(|key| Fingerprints::of("pseudonym", &key)),
        ..Fingerprints::default()
    };
    let present = keys.master_key.key().ok().map(|key| (keys.master_key_version, key));
    for (version, key) in keys.previous().unwrap_or_default().into_iter().chain(present) {
        if let Ok(version) = i32::try_from(version) {
            fingerprints.master.insert(version, Fingerprints::of("master", &key));
        }
    }
    fingerprints
}

/// Tells about every tenth of a large transfer.
pub(super) fn telling(silent: bool) -> impl FnMut(Step) {
    let progress = if silent { Progress::silent() } else { Progress::begin() };
    let mut told = std::time::Instant::now();
    move |step| {
        if told.elapsed().as_secs() >= 2 {
            told = std::time::Instant::now();
            progress.step(match step {
                Step::Compared(done, all) => format!("{done} of {all} events compared"),
                Step::Events(done, all) => format!("{done} of {all} events"),
                Step::Bodies(done) => format!("{done} sealed bodies"),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_bounds_are_read_or_refused() {
        assert_eq!("64MiB".parse(), Ok(Size(64 << 20)));
        assert_eq!("100".parse(), Ok(Size(100)));
        for wrong in ["", "0", "MiB", "1MB", "-1KiB", "99999999999GiB"] {
            assert!(wrong.parse::<Size>().is_err(), "{wrong}");
        }
        assert!(matches!("12".parse(), Ok(Bound::At(12))));
        assert!(matches!("2026-11-24T12:00:00Z".parse(), Ok(Bound::Time(_))));
        for wrong in ["0", "-3", "yesterday", "2026-11-24"] {
            assert!(wrong.parse::<Bound>().is_err(), "{wrong}");
        }
    }
}
