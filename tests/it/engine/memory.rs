//! Generation within a budget: in pieces where it is small, and not at all where that is not enough.

use atelier::engine::{Engine, EngineError, Image, Watch};
use atelier::job::task::{GuidanceScale, SidePx, Size};

use super::{engine, request};

/// Bytes next to the model in which the request of these tests fits one row at a time, and no better.
const ONE_BY_ONE: u64 = 600_000;

fn generate(budget: Option<u64>) -> Result<Vec<Image>, EngineError> {
    let engine = engine();
    let resident = engine.resident_bytes();
    let mut engine = engine.with_memory_budget(budget.map(|beside| resident + beside));
    engine.generate(&request(vec![]), &Watch::new(|_| ()))
}

#[test]
fn a_image_within_a_budget_is_the_same_image() {
    let (whole, pieces) = (generate(None).expect("generates"), generate(Some(ONE_BY_ONE)).expect("generates"));
    let pairs = whole[0].rgb.iter().zip(&pieces[0].rgb);
    // Matrix products of other sizes are summed in another order.
    assert!(pairs.map(|(one, other)| one.abs_diff(*other)).max().expect("pixels") <= 1);
}

#[test]
fn what_does_not_fit_is_refused_with_what_would() {
    let error = generate(Some(ONE_BY_ONE / 10)).expect_err("too small");
    assert!(matches!(error, EngineError::OutOfMemory { .. }), "{error}");
    let told = error.to_string();
    assert!(told.contains("64x64 needs about 1 MiB next to the model") && told.contains("no size would fit"), "{told}");
}

/// What would fail the first job fails the start: the warm-up asks for what most jobs do, not for what is easy.
#[test]
fn a_warm_up_generates_the_default_value_size_with_guidance() {
    let default_value = |side_px: u64, guidance: f64| {
        let (side, engine) = (SidePx::new(side_px).expect("a side"), engine());
        let budget = Some(engine.resident_bytes() + ONE_BY_ONE);
        let guidance = GuidanceScale::new(guidance).expect("a scale");
        engine.with_memory_budget(budget).with_defaults(Size::new(side, side), guidance).warm_up()
    };
    default_value(64, 7.5).expect("fits, one row at a time");
    let error = default_value(512, 7.5).expect_err("too large");
    assert!(error.to_string().contains("512x512 needs about"), "{error}");
}
