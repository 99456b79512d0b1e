//! libFuzzer's way into `targets::job_body`.
#![no_main]

#[path = "../targets/mod.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| targets::job_body(bytes));
