//! What a handler is given to do.

use crate::host::in_flight::InFlight;
use crate::host::job_service::Direct;
use crate::job::trace::Trace;

/// What one handler is to do next.
pub enum Assignment {
    /// Messages of one source, for one event.
    Messages(Vec<InFlight>),
    /// A job whose caller waits for the answer.
    Direct(Direct),
}

impl Assignment {
    /// Jobs in it, those that cannot be read included.
    #[must_use]
    pub fn count(&self) -> usize {
        match self {
            Self::Messages(in_flight) => in_flight.len(),
            Self::Direct(_) => 1,
        }
    }

    /// What the Runtime API says of an invocation's trace: that of its first message. Each record has its own next to.
    #[must_use]
    pub fn trace(&self) -> Option<Trace> {
        match self {
            Self::Messages(in_flight) => {
                let (message, exported) = in_flight.first()?.traced();
                exported.or(message.trace)
            }
            Self::Direct(direct) => direct.trace(),
        }
    }

    /// The ids of the jobs in it, as far as they could be read.
    #[must_use]
    pub fn job_ids(&self) -> Vec<String> {
        match self {
            Self::Messages(in_flight) => in_flight
                .iter()
                .filter(|in_flight| in_flight.job.is_ok())
                .map(|in_flight| in_flight.job_id().to_owned())
                .collect(),
            Self::Direct(direct) => vec![direct.job.id.as_str().to_owned()],
        }
    }
}
