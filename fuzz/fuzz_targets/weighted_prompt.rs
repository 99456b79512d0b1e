//! libFuzzer's way into `targets::weighted_prompt`.
#![no_main]

#[path = "../targets/mod.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| targets::weighted_prompt(bytes));
