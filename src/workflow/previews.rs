//! Previews of running jobs, for the host whose callers look on.
//!
//! - The host names the jobs that someone looks at; of no other job anything is made.
//! - A preview carries the machine-readable mark that every image carries. It is too small for the invisible one, and it is not signed.
//! - What a check or a step of the user's own may still hold back or change is not shown before it has been through them: then there are none.

use std::collections::BTreeSet;
use std::io;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::encode::encode;
use super::mark::{self, DigitalSource};
use super::step_name::StepName;
use crate::job::{ImageFormat, Job, JobId};
use crate::safety::gate::Gate;
use atelier_engine::preview::Preview;
use atelier_engine::{Image, Watch};

/// Previews that wait to be encoded, at most: another one that comes meanwhile is dropped.
const WAITING_MAX: usize = 2;

/// Who wants to see which job, and the way there.
pub struct Previews {
    wanted: Mutex<BTreeSet<String>>,
    encoding: SyncSender<Shown>,
}

/// A preview as a file: a JPEG with the machine-readable mark.
pub struct PreviewFile {
    pub job_id: JobId,
    pub preview: Preview<Bytes>,
}

struct Shown {
    job_id: JobId,
    source: DigitalSource,
    preview: Preview,
}

impl Previews {
    /// Starts the thread that makes files of previews and gives them to `send`: the engine's own has no time for that.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(send: impl Fn(PreviewFile) + Send + 'static) -> io::Result<Self> {
        let (encoding, shown) = sync_channel::<Shown>(WAITING_MAX);
        std::thread::Builder::new().name("previews".into()).spawn(move || {
            for shown in shown {
                shown.file().into_iter().for_each(&send);
            }
        })?;
        Ok(Self { wanted: Mutex::default(), encoding })
    }

    /// Someone looks at the job of this id from now on, or no one any more.
    pub fn want(&self, job_id: &str, is_wanted: bool) {
        let mut wanted = self.wanted();
        if is_wanted {
            wanted.insert(job_id.to_owned());
        } else {
            wanted.remove(job_id);
        }
    }

    /// Forgets all: what was meant for one invocation must not reach the next, which may bring the same job again.
    pub fn forget(&self) {
        self.wanted().clear();
    }

    /// `watch` with an eye for the previews of `job`.
    pub(super) fn follow(self: &Arc<Self>, job: &Job, watch: Watch) -> Watch {
        let previews = Arc::clone(self);
        let id = job.id.clone();
        let encoding = self.encoding.clone();
        let job_id = job.id.clone();
        let source = DigitalSource::of(&job.task);
        watch.with_previews(
            move || previews.wanted().contains(id.as_str()),
            move |preview| {
                // One that does not fit is late already.
                let _ = encoding.try_send(Shown { job_id: job_id.clone(), source, preview });
            },
        )
    }

    /// A panic under the lock leaves the set as it was.
    fn wanted(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a workflow of these steps may show images before they have been through it.
pub(super) fn may_be_shown(steps: &[StepName], gate: &Gate) -> bool {
    let is_checked = steps.contains(&StepName::Check) && gate.looks_at_images();
    !is_checked && steps.iter().all(|step| step.as_user_step().is_none())
}

impl Shown {
    /// None where it could not be encoded, which is no fault of the job's.
    fn file(self) -> Option<PreviewFile> {
        let Self { job_id, source, preview: Preview { step, steps, width_px, height_px, image: rgb } } = self;
        let image = Image { width_px, height_px, rgb, seed: 0 };
        match encode(&image, ImageFormat::Jpeg, &[], &mark::xmp(source, None)) {
            Ok(jpeg) => {
                let preview = Preview { step, steps, width_px, height_px, image: jpeg.into() };
                Some(PreviewFile { job_id, preview })
            }
            Err(error) => {
                tracing::warn!(%error, "a preview could not be encoded");
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::safety::settings::Settings;

    #[test]
    fn where_a_step_of_the_users_own_may_change_or_refuse_images_none_is_shown_before() {
        let nobody_looks = json!({
            "mode": "on", "required": false, "prompt_lists": [], "delete_inputs": false,
            "moderator": { "url": null, "token": null, "timeout_ms": 1_000, "max_wait_ms": 1_000 },
            "tryon": { "allow_underwear": false, "require_consent": false },
        });
        let gate = Gate::new(&serde_json::from_value::<Settings>(nobody_looks).unwrap(), None).unwrap();
        let is_shown = |names: &[&str]| {
            let steps: Vec<StepName> = names.iter().map(|name| serde_json::from_value((*name).into()).unwrap()).collect();
            may_be_shown(&steps, &gate)
        };
        assert!(is_shown(&["fetch", "infer", "check", "encode", "store", "notify"]));
        for own in ["command:border", "http:rules"] {
            assert!(!is_shown(&["fetch", "infer", own, "check", "encode", "store", "notify"]), "{own}");
        }
    }
}
