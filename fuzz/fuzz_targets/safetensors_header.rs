//! libFuzzer's way into `targets::safetensors_header`.
#![no_main]

#[path = "../targets/mod.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| targets::safetensors_header(bytes));
