//! Load, decide, append; on a conflict load and decide again.

use botledger_domain::{Decide, DomainError};
use botledger_journal::{AppendError, AppendSet, Loaded, Receipt};

use crate::{Caller, CommandError, Core};

/// Times a command is decided before the caller hears of a conflict.
pub(crate) const ATTEMPTS: u32 = 4;

/// An executed command: the aggregate after it and the proof.
#[derive(Clone, Debug)]
pub struct Executed<A> {
    /// State and version after the command.
    pub after: Loaded<A>,
    /// Where its events stand; empty when it was "already so".
    pub receipt: Receipt,
}

/// Runs one command on one aggregate. `check` looks at the loaded state first, for example whether
/// the caller may see it.
///
/// # Errors
/// See [`CommandError`].
pub async fn execute<A>(
    core: &Core,
    caller: &Caller,
    id: &str,
    command: A::Command,
    check: impl Fn(&A) -> Result<(), CommandError<A::Error>>,
) -> Result<Executed<A>, CommandError<A::Error>>
where
    A: Decide + Clone + 'static,
    A::Command: Clone,
    A::Event: Clone,
    A::Error: DomainError,
{
    let mut attempt = 1;
    loop {
        let mut loaded = core.journal.load::<A>(id).await?;
        check(&loaded.state)?;
        if caller.expected_version.is_some_and(|expected| expected != loaded.version) {
            // A repeated request finds its own earlier effect before it finds the conflict.
            if let Some(receipt) = known_receipt(core, caller).await? {
                return Ok(Executed { after: loaded, receipt });
            }
            return Err(CommandError::Conflict);
        }
        let mut set = AppendSet::new(caller.metadata(core.instance));
        if let Err(refusal) = set.decide(&mut loaded, command.clone(), core.clock.now()) {
            // Likewise: what was done once may be refused the second time.
            if let Some(receipt) = known_receipt(core, caller).await? {
                return Ok(Executed { after: core.journal.load::<A>(id).await?, receipt });
            }
            return Err(CommandError::Refused(refusal));
        }
        if set.is_empty()
            && let Some(receipt) = known_receipt(core, caller).await?
        {
            // Already so because of this very request: its answer is the one it got then.
            return Ok(Executed { after: loaded, receipt });
        }
        match core.journal.append(set).await {
            Ok(receipt) if receipt.duplicate => {
                return Ok(Executed { after: core.journal.load::<A>(id).await?, receipt });
            }
            Ok(receipt) => return Ok(Executed { after: loaded, receipt }),
            Err(AppendError::Conflict { .. }) if attempt < ATTEMPTS => {
                tracing::debug!(aggregate = A::TYPE, id, attempt, "version conflict, deciding again");
                attempt += 1;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

pub(crate) async fn known_receipt<E: DomainError>(
    core: &Core,
    caller: &Caller,
) -> Result<Option<Receipt>, CommandError<E>> {
    match caller.metadata(core.instance).idempotency_key {
        Some(key) => Ok(core.journal.find_receipt(&key).await?),
        None => Ok(None),
    }
}
