//! Everything that is tested from outside, as one binary.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, which is what an unexpected value must do")]

mod architecture;
mod backend;
mod bucket;
mod config;
mod deploy;
mod doctor;
mod engine;
mod events;
mod faults;
mod handler;
mod host;
mod models;
mod outbound;
pub(crate) mod parity;
mod process;
mod requests;
mod sampling;
mod servers;
mod stage;
mod store;
mod webhooks;
mod world;
