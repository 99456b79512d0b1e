//! Everything that is tested from outside, as one binary.

mod architecture;
mod backend;
mod bucket;
mod config;
mod events;
mod handler;
mod process;
mod requests;
mod stage;
