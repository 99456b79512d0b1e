//! One OS thread owns the engine: commands go in over a channel, answers come out through the caller's own closure.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::thread;

use super::fault::told_apart;
use super::{Engine, EngineError, PaintRequest, Picture, Watch};

type Painted = Result<Vec<Picture>, EngineError>;

/// A handle to the engine's thread; the thread ends when the last handle is dropped.
#[derive(Clone)]
pub struct EngineThread {
    commands: mpsc::Sender<Command>,
}

struct Command {
    request: PaintRequest,
    watch: Watch,
    reply: Box<dyn FnOnce(Painted) + Send>,
}

impl EngineThread {
    /// Starts the thread and loads the engine on it; returns when it is ready to paint.
    ///
    /// # Errors
    /// What `load` failed with, a panic among it.
    pub fn start<E: Engine>(load: impl FnOnce() -> Result<E, EngineError> + Send + 'static) -> Result<Self, EngineError> {
        let (commands, inbox) = mpsc::channel::<Command>();
        let (ready, started) = mpsc::channel();
        thread::Builder::new()
            .name("engine".into())
            .spawn(move || match caught(load) {
                Ok(engine) => {
                    let _ = ready.send(Ok(()));
                    serve(engine, &inbox);
                }
                Err(error) => {
                    let _ = ready.send(Err(error));
                }
            })
            .map_err(|error| EngineError::Panicked(format!("its thread could not be started: {error}")))?;
        started.recv().map_err(|_| EngineError::Gone)??;
        Ok(Self { commands })
    }

    /// Hands a request to the engine and returns at once; `reply` is called on the engine's thread.
    pub fn paint(&self, request: PaintRequest, watch: Watch, reply: impl FnOnce(Painted) + Send + 'static) {
        let command = Command { request, watch, reply: Box::new(reply) };
        if let Err(mpsc::SendError(command)) = self.commands.send(command) {
            (command.reply)(Err(EngineError::Gone));
        }
    }
}

fn serve(mut engine: impl Engine, inbox: &mpsc::Receiver<Command>) {
    while let Ok(Command { request, watch, reply }) = inbox.recv() {
        reply(caught(|| engine.paint(&request, &watch)).map_err(told_apart));
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
