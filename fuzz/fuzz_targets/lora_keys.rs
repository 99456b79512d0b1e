//! libFuzzer's way into `targets::lora_keys`.
#![no_main]

#[path = "../targets/mod.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| targets::lora_keys(bytes));
