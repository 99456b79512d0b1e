//! The life of a session: fills the set of deliveries, hands back what waits there too long, and says when the connection is over.

use std::time::Duration;

use futures_util::StreamExt as _;
use lapin::message::Delivery;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions};
use lapin::types::FieldTable;
use lapin::{Consumer, Error};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::deliveries::InFlight;
use super::fault::{Fault, within};
use super::record;
use super::session::{Disposition, Session};
use crate::clock::later;

impl Session {
    /// Serves until the connection is over; why it is.
    pub(super) async fn serve(&self, closing: &CancellationToken) -> Fault {
        let fault = match self.run(closing).await {
            Err(fault) => fault,
            Ok(never) => match never {},
        };
        // The broker gives them to someone, perhaps to us, and counts a delivery that no one has tried.
        for in_flight in self.deliveries().remove_until(Instant::now()) {
            self.broker.handed_back.note(&in_flight.delivery);
        }
        self.emptied.cancel();
        fault
    }

    async fn run(&self, closing: &CancellationToken) -> Result<std::convert::Infallible, Fault> {
        let longest_wait = Duration::from_secs(self.broker.settings.consumer_timeout_seconds) / 2;
        let mut consumer = None;
        loop {
            let oldest = self.deliveries().oldest();
            tokio::select! {
                delivery = next(&mut consumer) => self.arrive(delivery).await?,
                () = closing.cancelled(), if !self.emptied.is_cancelled() => {
                    self.while_it_lives(self.empty(consumer.take())).await?;
                    self.emptied.cancel();
                }
                () = self.wanted.notified(), if consumer.is_none() && !closing.is_cancelled() => {
                    consumer = Some(self.while_it_lives(self.consume()).await?);
                }
                () = too_old(oldest, longest_wait), if oldest.is_some() => self.hand_back(longest_wait).await?,
                () = self.doubted.notified() => {}
                fault = self.end() => return Err(fault),
            }
        }
    }

    async fn consume(&self) -> Result<Consumer, Fault> {
        within(self.limit()).await?;
        let queue = self.broker.settings.queue.as_str().into();
        let options = BasicConsumeOptions::default();
        within(self.consuming.basic_consume(queue, "".into(), options, FieldTable::default())).await
    }

    async fn arrive(&self, delivery: Option<Result<Delivery, Error>>) -> Result<(), Fault> {
        let Some(delivery) = delivery else {
            return Err(Fault::unavailable("the broker ended the subscription: the queue was deleted or moved"));
        };
        // Whatever ended the subscription, the next connection may well be served.
        let delivery = delivery.map_err(|error| Fault { refused: false, ..error.into() })?;
        let attempt = self.broker.handed_back.attempt(&delivery);
        let unreadable = record::unreadable(&delivery.properties);
        let in_flight = InFlight { delivery, attempt, since: Instant::now() };
        match unreadable {
            None => self.put(in_flight),
            Some(problem) => {
                tracing::error!(problem, "a message cannot be taken; it is dead-lettered");
                self.while_it_lives(async {
                    self.acknowledge(&in_flight, Disposition::Dead).await.map_err(Fault::unavailable)
                })
                .await?;
            }
        }
        Ok(())
    }

    /// Ends the subscription and puts back what has arrived and was not handed out.
    async fn empty(&self, consumer: Option<Consumer>) -> Result<(), Fault> {
        if let Some(mut consumer) = consumer {
            within(self.consuming.basic_cancel(consumer.tag(), BasicCancelOptions::default())).await?;
            while let Some(delivery) = consumer.next().await {
                self.arrive(Some(delivery)).await?;
            }
        }
        self.hand_back(Duration::ZERO).await
    }

    /// Puts back what has been waiting here for so long, before the broker takes it back and our channel with it.
    async fn hand_back(&self, longest_wait: Duration) -> Result<(), Fault> {
        let old = Instant::now().checked_sub(longest_wait).map(|moment| self.deliveries().remove_until(moment));
        for in_flight in old.unwrap_or_default() {
            self.acknowledge(&in_flight, Disposition::Untried).await.map_err(Fault::unavailable)?;
        }
        Ok(())
    }
}

async fn next(consumer: &mut Option<Consumer>) -> Option<Result<Delivery, Error>> {
    match consumer {
        Some(consumer) => consumer.next().await,
        None => std::future::pending().await,
    }
}

async fn too_old(oldest: Option<Instant>, longest_wait: Duration) {
    match oldest {
        Some(oldest) => sleep_until(later(oldest, longest_wait)).await,
        None => std::future::pending().await,
    }
}
