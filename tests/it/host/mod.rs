//! The host: queues, handlers, and what may happen to them.

mod rabbitmq;
