//! One OS thread owns the engine: orders go in over a channel, answers come out through the caller's own closure.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::{mem, slice, thread};

use super::fault::told_apart;
use super::{Engine, EngineError, Order, Painted, Request, Watch};

/// A handle to the engine's thread; the thread ends when the last handle, and the last seat, is dropped.
#[derive(Clone)]
pub struct EngineThread {
    parties: mpsc::Sender<Vec<Command>>,
}

struct Command {
    order: Order,
    reply: Box<dyn FnOnce(Painted) + Send>,
}

/// A place in a party: whoever has one hands in a request, or drops it and is not waited for any more.
pub struct Seat {
    place: usize,
    party: Arc<Party>,
}

/// Requests that are painted together, once nobody is left who might hand in another.
struct Party {
    parties: mpsc::Sender<Vec<Command>>,
    handed_in: Mutex<Vec<(usize, Command)>>,
}

impl EngineThread {
    /// Starts the thread and loads the engine on it; returns when it is ready to paint.
    ///
    /// # Errors
    /// What `load` failed with, a panic among it.
    pub fn start<E: Engine>(load: impl FnOnce() -> Result<E, EngineError> + Send + 'static) -> Result<Self, EngineError> {
        let (parties, inbox) = mpsc::channel::<Vec<Command>>();
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
        Ok(Self { parties })
    }

    /// A seat for a request that is painted alone.
    #[must_use]
    pub fn seat(&self) -> Seat {
        Seat { place: 0, party: self.party() }
    }

    /// Seats for so many requests that may be painted as one batch. Painting begins when each was used or dropped.
    #[must_use]
    pub fn seats(&self, count: usize) -> Vec<Seat> {
        let party = self.party();
        (0..count).map(|place| Seat { place, party: Arc::clone(&party) }).collect()
    }

    fn party(&self) -> Arc<Party> {
        Arc::new(Party { parties: self.parties.clone(), handed_in: Mutex::default() })
    }
}

impl Seat {
    /// Hands in the request and returns at once; `reply` is called on the engine's thread.
    pub fn paint(self, request: Request, watch: Watch, reply: impl FnOnce(Painted) + Send + 'static) {
        let command = Command { order: Order { request, watch }, reply: Box::new(reply) };
        self.party.handed_in.lock().unwrap_or_else(PoisonError::into_inner).push((self.place, command));
    }
}

impl Drop for Party {
    fn drop(&mut self) {
        let mut handed_in = mem::take(self.handed_in.get_mut().unwrap_or_else(PoisonError::into_inner));
        if handed_in.is_empty() {
            return;
        }
        // What is painted must not depend on who was the first to be ready.
        handed_in.sort_by_key(|(place, _)| *place);
        let commands = handed_in.into_iter().map(|(_, command)| command).collect();
        if let Err(mpsc::SendError(commands)) = self.parties.send(commands) {
            for Command { reply, .. } in commands {
                reply(Err(EngineError::Gone));
            }
        }
    }
}

fn serve(mut engine: impl Engine, inbox: &mpsc::Receiver<Vec<Command>>) {
    while let Ok(mut waiting) = inbox.recv() {
        while !waiting.is_empty() {
            let mut party = vec![waiting.remove(0)];
            let first = party[0].order.request.clone();
            party.extend(waiting.extract_if(.., |command| command.order.request.agrees_with(&first)));
            let (orders, replies): (Vec<_>, Vec<_>) = party.into_iter().map(|Command { order, reply }| (order, reply)).unzip();
            if orders.len() > 1 {
                tracing::info!(jobs = orders.len(), "jobs share a batch");
            }
            for (reply, painted) in replies.into_iter().zip(paint(&mut engine, &orders)) {
                reply(painted.map_err(told_apart));
            }
        }
    }
}

/// One result an order, in their order. What fails for all together may succeed for each alone, or is one order's fault.
fn paint(engine: &mut impl Engine, orders: &[Order]) -> Vec<Painted> {
    match caught(|| engine.paint_together(orders)) {
        Ok(painted) => painted,
        Err(error) if orders.len() == 1 => vec![Err(error)],
        Err(error) => {
            tracing::warn!(%error, jobs = orders.len(), "a shared batch failed: its jobs are painted one by one");
            orders.iter().flat_map(|order| paint(engine, slice::from_ref(order))).collect()
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
