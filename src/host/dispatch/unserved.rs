//! Messages whose job no model of this host does: their callers hear so from the host, whichever handlers it has ready.

use super::acknowledge::Acknowledger;
use crate::host::ended::{End, EndedJob};
use crate::host::in_flight::InFlight;
use crate::job::outcome::Problem;
use crate::protocol::reply::JobOutcome;

impl Acknowledger {
    /// Ends a job that no model of this host does, as a handler ends what it refuses.
    pub fn refuse(&self, in_flight: InFlight) {
        let Err(error) = &in_flight.model else { return };
        let problem = Problem::from(error);
        in_flight
            .span
            .in_scope(|| tracing::warn!(code = error.code(), %error, "a job was refused: no model of this host does it"));
        let ended = EndedJob::failed(End::Failed, in_flight.message.attempt, problem);
        // What cannot be written now is tried again.
        let has_receiver = self.outbox.failed(&in_flight, &ended).map_or(true, |notifications| !notifications.is_empty());
        let is_kept = in_flight.is_kept_if_refused(has_receiver);
        let outcome = if is_kept { JobOutcome::DeadLetter } else { JobOutcome::Failed };
        self.metrics.refused(in_flight.source.name(), outcome.as_str());
        self.count(&in_flight, outcome.as_str(), None);
        let end = if is_kept { End::DeadLetter } else { End::Failed };
        self.notify(in_flight, EndedJob { end, ..ended }, None);
    }
}
