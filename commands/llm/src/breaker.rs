use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::LlmError;

/// Failures in a row after which a model is left alone.
const THRESHOLD: u32 = 5;
/// For how long.
const PAUSE: Duration = Duration::from_secs(15);

/// A circuit breaker per model: closed, open for a while, then one trial at a time.
#[derive(Debug, Default)]
pub(crate) struct Breaker {
    models: Mutex<HashMap<String, Circuit>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Circuit {
    failures: u32,
    open_until: Option<Instant>,
}

impl Breaker {
    /// Lets a call through, or says how long to wait. After the pause the first caller is the trial
    /// and the others wait on.
    pub(crate) fn admit(&self, model: &str) -> Result<(), LlmError> {
        let mut models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(circuit) = models.get_mut(model) else { return Ok(()) };
        let Some(until) = circuit.open_until else { return Ok(()) };
        let now = Instant::now();
        if now < until {
            return Err(LlmError::CircuitOpen { retry_after: until - now });
        }
        circuit.open_until = Some(now + PAUSE);
        Ok(())
    }

    pub(crate) fn succeeded(&self, model: &str) {
        self.models.lock().unwrap_or_else(PoisonError::into_inner).remove(model);
    }

    pub(crate) fn failed(&self, model: &str) {
        let mut models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        let circuit = models.entry(model.to_owned()).or_default();
        circuit.failures += 1;
        if circuit.failures >= THRESHOLD {
            circuit.open_until = Some(Instant::now() + PAUSE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn five_failures_open_the_circuit_and_one_trial_closes_it() {
        let breaker = Breaker::default();
        for _ in 0..THRESHOLD {
            assert!(breaker.admit("m").is_ok());
            breaker.failed("m");
        }
        assert!(matches!(breaker.admit("m"), Err(LlmError::CircuitOpen { .. })));
        assert!(breaker.admit("other").is_ok());
        tokio::time::advance(PAUSE).await;
        assert!(breaker.admit("m").is_ok(), "the trial");
        assert!(breaker.admit("m").is_err(), "only one trial");
        breaker.succeeded("m");
        assert!(breaker.admit("m").is_ok());
    }
}
