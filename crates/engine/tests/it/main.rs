//! Everything of the engine that is tested from outside, as one binary: without a cloud and without an async runtime.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, which is what an unexpected value must do")]

mod engine;
mod parity;
mod world;
