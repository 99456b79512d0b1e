//! Everything of the engine that is tested from outside, as one binary: without a cloud and without an async runtime.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, which is what an unexpected value must do")]

mod engine;
mod parity;
mod world;

use std::sync::OnceLock;

use candle_core::Device;

/// Where the tests run what they test: on the CPU, or with `ATELIER_TEST_DEVICE=gpu` on the GPU of a build with the feature `cuda`, which may be the
/// simulated one (`tests/cuda`). All tests of a process share it.
#[expect(clippy::disallowed_methods, reason = "the environment of the tests, not of the product")]
fn device() -> Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    let opened = DEVICE.get_or_init(|| match std::env::var("ATELIER_TEST_DEVICE") {
        Err(_) => Device::Cpu,
        Ok(wanted) => {
            assert_eq!(wanted, "gpu", "ATELIER_TEST_DEVICE is gpu, or not there");
            let device = atelier_engine::device::open().unwrap();
            assert!(device.is_cuda(), "ATELIER_TEST_DEVICE=gpu needs a build with the feature cuda");
            device
        }
    });
    opened.clone()
}

/// A device like [`device`] whose stream is one test's alone: a capture takes in all that is sent to the stream meanwhile, also by another test.
fn own_device() -> Device {
    if device().is_cuda() { atelier_engine::device::open().unwrap() } else { Device::Cpu }
}
