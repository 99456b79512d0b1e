//! libFuzzer's way into `targets::multipart_form`.
#![no_main]

#[path = "../targets/mod.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| targets::multipart_form(bytes));
