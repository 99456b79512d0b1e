//! One OS thread owns the engine: queued requests go in over a channel, answers come out through the caller's own closure.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::{mem, slice, thread};

use image::{GrayImage, RgbImage};

use super::classifier::Classifier;
use super::device_errors::classify;
use super::segmenter::Segmenter;
use super::upscaler::Upscaler;
use super::{Engine, EngineError, Generated, QueuedRequest, Request, Watch};

/// A handle to the engine's thread; the thread ends when the last handle, and the last batch slot, is dropped.
#[derive(Clone)]
pub struct EngineThread {
    work: mpsc::Sender<Work>,
}

/// What the thread does next.
enum Work {
    /// Generate all of them, those together that agree.
    Batch(Vec<Command>),
    Classify(Classification),
    Upscale(Upscaling),
    Segment(Segmentation),
}

/// What works next to an engine, on its device and thread.
#[derive(Default)]
pub struct Companions {
    pub classifier: Option<Classifier>,
    /// By the names that jobs know them by.
    pub upscalers: BTreeMap<String, Upscaler>,
    pub segmenter: Option<Segmenter>,
}

struct Upscaling {
    name: String,
    image: RgbImage,
    watch: Watch,
    reply: Box<dyn FnOnce(Upscaled) + Send>,
}

/// An image, enlarged.
pub type Upscaled = Result<RgbImage, EngineError>;

struct Segmentation {
    image: RgbImage,
    reply: Box<dyn FnOnce(Segmented) + Send>,
}

/// For each pixel of an image the place of its label.
pub type Segmented = Result<GrayImage, EngineError>;

struct Classification {
    images: Arc<[RgbImage]>,
    reply: Box<dyn FnOnce(Scores) + Send>,
}

/// What a classifier says of images: a list of scores an image, in the order of its labels.
pub type Scores = Result<Vec<Vec<f32>>, EngineError>;

struct Command {
    queued: QueuedRequest,
    reply: Box<dyn FnOnce(Generated) + Send>,
}

/// A place in a batch: its owner hands in a request, or drops it and is not waited for any more.
pub struct BatchSlot {
    place: usize,
    batch: Arc<Batch>,
}

/// Requests that are generated together, once no one is left who might hand in another.
struct Batch {
    work: mpsc::Sender<Work>,
    handed_in: Mutex<Vec<(usize, Command)>>,
}

impl EngineThread {
    /// Starts the thread and loads the engine on it; returns when it is ready to generate.
    ///
    /// # Errors
    /// What `load` failed with, a panic among it.
    pub fn start<E: Engine>(load: impl FnOnce() -> Result<E, EngineError> + Send + 'static) -> Result<Self, EngineError> {
        Self::start_with_companions(|| Ok((load()?, Companions::default())))
    }

    /// As [`Self::start`], with companions next to the engine, on the same device.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with_companions<E: Engine>(
        load: impl FnOnce() -> Result<(E, Companions), EngineError> + Send + 'static,
    ) -> Result<Self, EngineError> {
        let (work, inbox) = mpsc::channel();
        let (ready, started) = mpsc::channel();
        thread::Builder::new()
            .name("engine".into())
            .spawn(move || match caught(load) {
                Ok((engine, companions)) => {
                    let _ = ready.send(Ok(()));
                    serve(engine, &companions, &inbox);
                }
                Err(error) => {
                    let _ = ready.send(Err(error));
                }
            })
            .map_err(|error| EngineError::Panicked(format!("its thread could not be started: {error}")))?;
        started.recv().map_err(|_| EngineError::Gone)??;
        Ok(Self { work })
    }

    /// A batch slot for a request that is generated alone.
    #[must_use]
    pub fn batch_slot(&self) -> BatchSlot {
        BatchSlot { place: 0, batch: self.batch() }
    }

    /// Batch slots for so many requests that may be generated as one batch. Generation begins when each was used or dropped.
    #[must_use]
    pub fn batch_slots(&self, count: usize) -> Vec<BatchSlot> {
        let batch = self.batch();
        (0..count).map(|place| BatchSlot { place, batch: Arc::clone(&batch) }).collect()
    }

    fn batch(&self) -> Arc<Batch> {
        Arc::new(Batch { work: self.work.clone(), handed_in: Mutex::default() })
    }

    /// Has the classifier look at images and returns at once; `reply` is called on the engine's thread, between two batches.
    pub fn classify(&self, images: Arc<[RgbImage]>, reply: impl FnOnce(Scores) + Send + 'static) {
        let classification = Classification { images, reply: Box::new(reply) };
        if let Err(mpsc::SendError(Work::Classify(Classification { reply, .. }))) =
            self.work.send(Work::Classify(classification))
        {
            reply(Err(EngineError::Gone));
        }
    }

    /// Has the upscaler of this name enlarge an image and returns at once; `reply` is called on the engine's thread, between two batches. `watch` can
    /// cancel it.
    pub fn upscale(&self, name: &str, image: RgbImage, watch: Watch, reply: impl FnOnce(Upscaled) + Send + 'static) {
        let upscaling = Upscaling { name: name.to_owned(), image, watch, reply: Box::new(reply) };
        if let Err(mpsc::SendError(Work::Upscale(Upscaling { reply, .. }))) = self.work.send(Work::Upscale(upscaling)) {
            reply(Err(EngineError::Gone));
        }
    }

    /// Has the segmenter say what each pixel of an image shows and returns at once; `reply` is called on the engine's thread, between two batches.
    pub fn segment(&self, image: RgbImage, reply: impl FnOnce(Segmented) + Send + 'static) {
        let segmentation = Segmentation { image, reply: Box::new(reply) };
        if let Err(mpsc::SendError(Work::Segment(Segmentation { reply, .. }))) = self.work.send(Work::Segment(segmentation)) {
            reply(Err(EngineError::Gone));
        }
    }
}

impl BatchSlot {
    /// Hands in the request and returns at once; `reply` is called on the engine's thread.
    pub fn generate(self, request: Request, watch: Watch, reply: impl FnOnce(Generated) + Send + 'static) {
        let command = Command { queued: QueuedRequest { request, watch }, reply: Box::new(reply) };
        self.batch.handed_in.lock().unwrap_or_else(PoisonError::into_inner).push((self.place, command));
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        let mut handed_in = mem::take(self.handed_in.get_mut().unwrap_or_else(PoisonError::into_inner));
        if handed_in.is_empty() {
            return;
        }
        // What is generated must not depend on who was the first to be ready.
        handed_in.sort_by_key(|(place, _)| *place);
        let commands = handed_in.into_iter().map(|(_, command)| command).collect();
        if let Err(mpsc::SendError(Work::Batch(commands))) = self.work.send(Work::Batch(commands)) {
            for Command { reply, .. } in commands {
                reply(Err(EngineError::Gone));
            }
        }
    }
}

impl Companions {
    fn classify(&self, images: &[RgbImage]) -> Scores {
        caught(|| self.classifier.as_ref().ok_or(EngineError::NoClassifier)?.classify(images)).map_err(classify)
    }

    fn upscale(&self, name: &str, image: &RgbImage, watch: &Watch) -> Upscaled {
        let named = self.upscalers.get(name).ok_or_else(|| EngineError::NoUpscaler { name: name.to_owned() });
        caught(|| named?.upscale(image, || watch.is_cancelled())).map_err(classify)
    }

    fn segment(&self, image: &RgbImage) -> Segmented {
        caught(|| self.segmenter.as_ref().ok_or(EngineError::NoSegmenter)?.segment(image)).map_err(classify)
    }
}

fn serve(mut engine: impl Engine, companions: &Companions, inbox: &mpsc::Receiver<Work>) {
    while let Ok(work) = inbox.recv() {
        let mut waiting = match work {
            Work::Batch(commands) => commands,
            Work::Classify(Classification { images, reply }) => {
                reply(companions.classify(&images));
                continue;
            }
            Work::Upscale(Upscaling { name, image, watch, reply }) => {
                reply(companions.upscale(&name, &image, &watch));
                continue;
            }
            Work::Segment(Segmentation { image, reply }) => {
                reply(companions.segment(&image));
                continue;
            }
        };
        while !waiting.is_empty() {
            let mut batch = vec![waiting.remove(0)];
            let first = batch[0].queued.request.clone();
            batch.extend(waiting.extract_if(.., |command| command.queued.request.agrees_with(&first)));
            let (queued_requests, replies): (Vec<_>, Vec<_>) =
                batch.into_iter().map(|Command { queued, reply }| (queued, reply)).unzip();
            if queued_requests.len() > 1 {
                tracing::info!(jobs = queued_requests.len(), "jobs share a batch");
            }
            for (reply, generated) in replies.into_iter().zip(generate(&mut engine, &queued_requests)) {
                reply(generated.map_err(classify));
            }
        }
    }
}

/// One result per request, in their order. What fails for all together may succeed for each alone, or is one request's fault.
fn generate(engine: &mut impl Engine, queued_requests: &[QueuedRequest]) -> Vec<Generated> {
    match caught(|| engine.generate_together(queued_requests)) {
        Ok(generated) => generated,
        Err(error) if queued_requests.len() == 1 => vec![Err(error)],
        Err(error) => {
            tracing::warn!(%error, jobs = queued_requests.len(), "a shared batch failed: its jobs are generated one by one");
            queued_requests.iter().flat_map(|queued| generate(engine, slice::from_ref(queued))).collect()
        }
    }
}

/// A panic in a numeric library must not take the process with it: the next job may be fine.
fn caught<T>(work: impl FnOnce() -> Result<T, EngineError>) -> Result<T, EngineError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let message = panic.downcast_ref::<&str>().map(ToString::to_string);
        let message = message.or_else(|| panic.downcast_ref::<String>().cloned());
        Err(EngineError::Panicked(message.unwrap_or_else(|| "without a message".into())))
    })
}
