//! Work that one process does at a time, and how the processes share it (`ops/decisions/0019`).
//!
//! Every process says what it is able to do and that it lives; from what all of them said each works
//! out the same shares. The database decides who holds what: a lease has an epoch, and what is written
//! under it looks at that epoch in its own transaction.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use botledger_domain::InstanceId;
use sqlx::{Connection, PgConnection, PgPool, postgres::types::PgInterval};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// How leases are kept.
#[derive(Clone, Copy, Debug)]
pub struct LeaseConfig {
    /// How long work stays with a process that is no longer heard of.
    pub ttl: Duration,
    /// Pause between heartbeats; several have to fit into `ttl`.
    pub beat: Duration,
}

impl Default for LeaseConfig {
    fn default() -> Self {
        Self { ttl: Duration::from_secs(5), beat: Duration::from_secs(1) }
    }
}

impl LeaseConfig {
    fn interval(self) -> PgInterval {
        // Fractions of a microsecond are nothing that anybody sets.
        PgInterval {
            months: 0,
            days: 0,
            microseconds: i64::try_from(self.ttl.as_micros()).unwrap_or(i64::MAX),
        }
    }
}

/// The right to do some work, good until somebody else has taken it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fence {
    name: String,
    holder: Uuid,
    epoch: i64,
}

impl Fence {
    /// Whether the work is still ours. Asked in the transaction that writes, last thing before its
    /// commit: when true, nobody can take the work until that transaction has ended; when false, roll back.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn holds(&self, tx: &mut PgConnection) -> Result<bool, sqlx::Error> {
        // The epoch alone would do, if a crash of the server could not take an epoch back.
        let held = sqlx::query_scalar!(
            r#"SELECT true AS "held!" FROM work_leases WHERE name = $1 AND holder = $2 AND epoch = $3 FOR SHARE"#,
            self.name,
            self.holder,
            self.epoch,
        )
        .fetch_optional(tx)
        .await?;
        Ok(held.is_some())
    }

    /// Rises with every change of hands.
    #[must_use]
    pub fn epoch(&self) -> i64 {
        self.epoch
    }
}

/// One process's part in a kind of work.
pub struct Leases {
    pool: PgPool,
    kind: &'static str,
    instance: InstanceId,
    config: LeaseConfig,
    work: BTreeMap<String, watch::Sender<Option<Fence>>>,
}

/// A lease as the database has it.
struct Held {
    name: String,
    holder: Uuid,
    epoch: i64,
    /// Anybody may take it.
    free: bool,
    /// It was given back: not even its holder has it.
    released: bool,
}

impl Leases {
    /// Takes part in nothing yet. `kind` tells apart groups of processes that share different work.
    #[must_use]
    pub fn new(pool: PgPool, kind: &'static str, instance: InstanceId, config: LeaseConfig) -> Self {
        Self { pool, kind, instance, config, work: BTreeMap::new() }
    }

    /// Says that this process is able to do some work. What comes back tells when it is to do it and
    /// under which fence.
    pub fn offer(&mut self, name: String) -> watch::Receiver<Option<Fence>> {
        self.work.entry(name).or_insert_with(|| watch::channel(None).0).subscribe()
    }

    /// Keeps this process's share until cancelled, then gives everything back.
    pub async fn keep(self, cancel: CancellationToken) {
        // Of its own: a heartbeat must not wait until somebody gives a connection back.
        let mut connection = None;
        let mut failing = false;
        loop {
            match self.beat(&mut connection).await {
                Ok(()) => failing = false,
                Err(error) => {
                    connection = None;
                    if !failing {
                        tracing::warn!(kind = self.kind, error = %error, "leases cannot be kept; trying again");
                    }
                    failing = true;
                }
            }
            tokio::select! {
                () = cancel.cancelled() => break,
                () = tokio::time::sleep(self.config.beat) => {}
            }
        }
        if let Err(error) = self.give_back(&mut connection).await {
            tracing::warn!(
                kind = self.kind,
                error = %error,
                "leases could not be given back; others take over when they have run out"
            );
        }
    }

    async fn connected<'a>(
        &self,
        connection: &'a mut Option<PgConnection>,
    ) -> Result<&'a mut PgConnection, sqlx::Error> {
        if connection.is_none() {
            // A row that somebody else has locked is left for the next heartbeat.
            let patience = format!("{}ms", self.config.beat.as_millis().max(1));
            let options = (*self.pool.connect_options()).clone().options([("lock_timeout", patience)]);
            *connection = Some(PgConnection::connect_with(&options).await?);
        }
        Ok(connection.as_mut().expect("it is there, or was just made"))
    }

    async fn beat(&self, connection: &mut Option<PgConnection>) -> Result<(), sqlx::Error> {
        let connection = self.connected(connection).await?;
        let me = self.instance.uuid();
        // What nobody listens for is not done any more, for example after a panic: others are to have it.
        let names: Vec<String> = self
            .work
            .iter()
            .filter(|(_, told)| told.receiver_count() > 0)
            .map(|(name, _)| name.clone())
            .collect();
        // Statement by statement: a process that is paused between two of them holds no lock. A heartbeat that
        // a crash of the server takes back is a missed one, so none waits for the disk.
        sqlx::query!(
            "INSERT INTO work_processes (instance, kind, label, able, started_at, seen_at)
             SELECT $1, $2, current_setting('application_name'), $3, clock_timestamp(), clock_timestamp()
             FROM (SELECT set_config('synchronous_commit', 'off', true)) AS quick
             ON CONFLICT (instance, kind) DO UPDATE SET seen_at = clock_timestamp(), able = $3",
            me,
            self.kind,
            &names,
        )
        .execute(&mut *connection)
        .await?;
        // One that has run out is prolonged too, unless somebody else has taken it; one that was given
        // back is not.
        sqlx::query!(
            "UPDATE work_leases SET expires_at = clock_timestamp() + $2
             FROM (SELECT set_config('synchronous_commit', 'off', true)) AS quick
             WHERE holder = $1 AND name = ANY($3) AND expires_at > '-infinity'",
            me,
            self.config.interval(),
            &names,
        )
        .execute(&mut *connection)
        .await?;
        let processes = sqlx::query!(
            "SELECT instance, able FROM work_processes
             WHERE kind = $1 AND seen_at > clock_timestamp() - $2::interval",
            self.kind,
            self.config.interval(),
        )
        .fetch_all(&mut *connection)
        .await?;
        let mut processes: BTreeMap<Uuid, BTreeSet<String>> =
            processes.into_iter().map(|row| (row.instance, row.able.into_iter().collect())).collect();
        // This one lives, however long ago it said so.
        processes.insert(me, names.iter().cloned().collect());
        let able: Vec<String> =
            processes.values().flatten().cloned().collect::<BTreeSet<_>>().into_iter().collect();
        let looked_at: Vec<String> =
            able.into_iter().chain(self.work.keys().cloned()).collect::<BTreeSet<_>>().into_iter().collect();
        let leases = sqlx::query_as!(
            Held,
            r#"SELECT name, holder, epoch, expires_at <= clock_timestamp() AS "free!",
                      expires_at = '-infinity' AS "released!"
               FROM work_leases WHERE name = ANY($1)"#,
            &looked_at,
        )
        .fetch_all(&mut *connection)
        .await?;

        let held: BTreeMap<&str, Uuid> = leases
            .iter()
            .filter(|lease| !lease.free)
            .map(|lease| (lease.name.as_str(), lease.holder))
            .collect();
        let shares = shares(&held, &processes);
        // One that has run out is ours all the same until somebody else has taken it: a process that is slow
        // must not take its work from itself.
        let ours = |name: &String| {
            leases.iter().find(|lease| lease.name == *name && lease.holder == me && !lease.released)
        };
        let wanted =
            |name: &String| names.contains(name) && shares.get(name).is_none_or(|process| *process == me);
        let free: Vec<String> = names
            .iter()
            .filter(|name| wanted(name) && ours(name).is_none() && !held.contains_key(name.as_str()))
            .cloned()
            .collect();
        let taken = if free.is_empty() { BTreeMap::new() } else { self.take(connection, &free).await? };
        for (name, told) in &self.work {
            let epoch = match ours(name) {
                Some(lease) if wanted(name) => Some(lease.epoch),
                Some(lease) => {
                    self.release(connection, name, lease.epoch).await?;
                    None
                }
                None => taken.get(name).copied(),
            };
            let fence = epoch.map(|epoch| Fence { name: name.clone(), holder: me, epoch });
            told.send_if_modified(|known| {
                let changed = *known != fence;
                if changed {
                    match &fence {
                        Some(fence) => tracing::info!(lease = name, epoch = fence.epoch, "took {name}"),
                        None => tracing::info!(lease = name, "{name} is another process's now"),
                    }
                    known.clone_from(&fence);
                }
                changed
            });
        }
        Ok(())
    }

    /// Takes what nobody holds; what somebody was faster with is not among the answers. Names in order: two
    /// that take the same do not wait for each other.
    async fn take(
        &self,
        connection: &mut PgConnection,
        names: &[String],
    ) -> Result<BTreeMap<String, i64>, sqlx::Error> {
        let taken = sqlx::query!(
            "INSERT INTO work_leases AS l (name, holder, epoch, taken_at, expires_at)
             SELECT name, $2, 1, clock_timestamp(), clock_timestamp() + $3::interval
             FROM unnest($1::text[]) WITH ORDINALITY AS wanted (name, n) ORDER BY n
             ON CONFLICT (name) DO UPDATE
                 SET holder = $2, epoch = l.epoch + 1, taken_at = clock_timestamp(),
                     expires_at = clock_timestamp() + $3::interval
                 WHERE l.expires_at <= clock_timestamp()
             RETURNING name, epoch",
            names,
            self.instance.uuid(),
            self.config.interval(),
        )
        .fetch_all(connection)
        .await?;
        Ok(taken.into_iter().map(|row| (row.name, row.epoch)).collect())
    }

    async fn release(
        &self,
        connection: &mut PgConnection,
        name: &str,
        epoch: i64,
    ) -> Result<(), sqlx::Error> {
        sqlx::query!(
            "UPDATE work_leases SET expires_at = '-infinity' WHERE name = $1 AND holder = $2 AND epoch = $3",
            name,
            self.instance.uuid(),
            epoch,
        )
        .execute(&mut *connection)
        .await?;
        Ok(())
    }

    async fn give_back(&self, connection: &mut Option<PgConnection>) -> Result<(), sqlx::Error> {
        let connection = self.connected(connection).await?;
        let me = self.instance.uuid();
        for told in self.work.values() {
            told.send_replace(None);
        }
        let names: Vec<String> = self.work.keys().cloned().collect();
        sqlx::query!(
            "UPDATE work_leases SET expires_at = '-infinity' WHERE holder = $1 AND name = ANY($2)",
            me,
            &names,
        )
        .execute(&mut *connection)
        .await?;
        // With those who went without a word, long enough ago to be of no interest.
        sqlx::query!(
            "DELETE FROM work_processes
             WHERE instance = $1 AND kind = $2 OR seen_at < clock_timestamp() - interval '1 day'",
            me,
            self.kind,
        )
        .execute(&mut *connection)
        .await?;
        Ok(())
    }
}

/// Who should do what: everybody who looks at the same leases and processes gives the same answer. Work
/// stays where it is as long as nobody has two pieces more than somebody else who could do one of them.
fn shares(
    held: &BTreeMap<&str, Uuid>,
    processes: &BTreeMap<Uuid, BTreeSet<String>>,
) -> BTreeMap<String, Uuid> {
    let mut load: BTreeMap<Uuid, usize> = processes.keys().map(|process| (*process, 0)).collect();
    let able = |process: &Uuid, name: &String| processes.get(process).is_some_and(|able| able.contains(name));
    let mut shares: BTreeMap<String, Uuid> = BTreeMap::new();
    let mut open = Vec::new();
    for name in processes.values().flatten().collect::<BTreeSet<_>>() {
        match held.get(name.as_str()).filter(|holder| able(holder, name)) {
            Some(holder) => {
                shares.insert(name.clone(), *holder);
                *load.entry(*holder).or_default() += 1;
            }
            None => open.push(name),
        }
    }
    let idlest = |load: &BTreeMap<Uuid, usize>, name: &String| {
        load.iter()
            .filter(|(process, _)| able(process, name))
            .min_by_key(|(_, load)| **load)
            .map(|(p, l)| (*p, *l))
    };
    for name in open {
        if let Some((process, _)) = idlest(&load, name) {
            shares.insert(name.clone(), process);
            *load.entry(process).or_default() += 1;
        }
    }
    loop {
        // Every move makes loads more alike, so this ends.
        let better = shares.iter().find_map(|(name, process)| {
            let (idle, least) = idlest(&load, name)?;
            (least + 1 < load.get(process).copied().unwrap_or_default())
                .then(|| (name.clone(), *process, idle))
        });
        let Some((name, busy, idle)) = better else { return shares };
        *load.entry(busy).or_default() -= 1;
        *load.entry(idle).or_default() += 1;
        shares.insert(name, idle);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn process(n: u8) -> Uuid {
        Uuid::from_u128(n.into())
    }

    fn group(size: u8, names: &[&str]) -> BTreeMap<Uuid, BTreeSet<String>> {
        (1..=size).map(|n| (process(n), names.iter().map(|&name| name.to_owned()).collect())).collect()
    }

    fn loads(shares: &BTreeMap<String, Uuid>) -> BTreeMap<Uuid, usize> {
        shares.values().fold(BTreeMap::new(), |mut loads, process| {
            *loads.entry(*process).or_default() += 1;
            loads
        })
    }

    #[test]
    fn one_process_does_everything_and_a_second_gets_half() {
        let names = ["a", "b", "c", "d"];
        let alone = shares(&BTreeMap::new(), &group(1, &names));
        assert!(alone.len() == 4 && alone.values().all(|holder| *holder == process(1)));
        let held = names.into_iter().map(|name| (name, process(1))).collect();
        let two = shares(&held, &group(2, &names));
        assert_eq!(loads(&two), [(process(1), 2), (process(2), 2)].into());
    }

    #[test]
    fn what_only_one_is_able_to_do_stays_with_it() {
        let mut group = group(2, &["a", "b"]);
        group.insert(process(3), ["new".to_owned()].into());
        let shares = shares(&[("new", process(3))].into(), &group);
        assert_eq!(shares["new"], process(3));
        assert_eq!(loads(&shares).len(), 3);
    }

    #[test]
    fn work_of_a_process_that_is_gone_goes_to_the_others() {
        let shares = shares(&[("a", process(9)), ("b", process(1))].into(), &group(2, &["a", "b"]));
        assert_eq!(shares, [("a".to_owned(), process(2)), ("b".to_owned(), process(1))].into());
    }

    proptest! {
        /// Whoever holds what before: all work is given out, evenly, and once everybody has moved,
        /// nobody moves again.
        #[test]
        fn shares_are_whole_even_and_settle(holders in prop::collection::vec(0..9_u8, 0..20), size in 1..7_u8) {
            let names: Vec<String> = (0..holders.len()).map(|n| format!("work {n:02}")).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let held = names.iter().copied().zip(holders.iter().map(|n| process(*n))).collect();
            let group = group(size, &names);
            let planned = shares(&held, &group);
            prop_assert_eq!(planned.len(), names.len());
            let loads: Vec<usize> =
                group.keys().map(|one| planned.values().filter(|holder| *holder == one).count()).collect();
            prop_assert!(loads.iter().max().unwrap() - loads.iter().min().unwrap() <= 1, "{:?}", loads);
            let settled = planned.iter().map(|(name, holder)| (name.as_str(), *holder)).collect();
            prop_assert_eq!(shares(&settled, &group), planned);
        }
    }
}
