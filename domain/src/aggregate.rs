use chrono::{DateTime, Utc};
use cqrs_es::Aggregate;

/// A pure decision: what a command makes of a state at a moment.
pub trait Decide: Aggregate {
    /// Same state, command and time: same answer. An empty list means "already so".
    ///
    /// # Errors
    /// The refusal, in business words, when the command is not allowed in this state.
    fn decide(&self, command: Self::Command, now: DateTime<Utc>) -> Result<Vec<Self::Event>, Self::Error>;
}

/// A refusal with a stable, upper-case code such as `BOT_NOT_REGISTERED`.
pub trait DomainError: std::error::Error + Send + Sync + 'static {
    /// The wire code: never changes once published.
    fn code(&self) -> &'static str;
}

/// Wires `decide` and `apply` of a state into cqrs-es's `Aggregate`, and an event enum into its
/// `DomainEvent`. Every event of the enum has version 1.0 unless listed with another, which
/// [`crate::upcast`] then has to know too.
macro_rules! aggregate {
    ($state:ty, $type:literal, $command:ty, $event:ty, $error:ty $(, $name:literal => $version:literal)* $(,)?) => {
        impl cqrs_es::DomainEvent for $event {
            fn event_type(&self) -> String {
                <&'static str>::from(self).to_owned()
            }
            fn event_version(&self) -> String {
                match <&'static str>::from(self) {
                    $($name => $version,)*
                    _ => "1.0",
                }
                .to_owned()
            }
        }

        impl cqrs_es::Aggregate for $state {
            const TYPE: &'static str = $type;
            type Command = $command;
            type Event = $event;
            type Error = $error;
            type Services = $crate::SharedClock;

            async fn handle(
                &mut self,
                command: Self::Command,
                clock: &Self::Services,
                sink: &cqrs_es::event_sink::EventSink<Self>,
            ) -> Result<(), Self::Error> {
                // `write` also applies, so every decision is made before the first write.
                for event in <Self as $crate::Decide>::decide(self, command, clock.now())? {
                    sink.write(event, self).await;
                }
                Ok(())
            }

            fn apply(&mut self, event: Self::Event) {
                self.record(event);
            }
        }
    };
}
pub(crate) use aggregate;
