//! Everything that is tested from outside, as one binary.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, which is what an unexpected value must do")]

mod architecture;
mod auto_mask;
mod backend;
mod bodies;
mod bucket;
mod collector;
mod companions;
mod config;
mod conformance;
mod controls;
mod credentials;
mod deploy;
mod doctor;
mod edits;
mod events;
mod examples;
mod faults;
mod fuzz;
mod handler;
mod host;
mod images;
mod ip_adapters;
mod model;
mod models;
mod openai;
mod outbound;
mod page;
mod process;
mod requests;
mod safety;
mod sampling;
mod scripts;
mod servers;
mod stage;
mod store;
mod upscaling;
mod user_steps;
mod webhooks;
