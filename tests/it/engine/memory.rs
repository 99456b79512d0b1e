//! Painting within a budget: in pieces where it is small, and not at all where that is not enough.

use atelier::engine::{Engine, EngineError, Picture, Watch};

use super::{engine, request};

/// Bytes beside the model in which the request of these tests fits one row at a time, and no better.
const ONE_BY_ONE: u64 = 600_000;

fn paint(budget: Option<u64>) -> Result<Vec<Picture>, EngineError> {
    let engine = engine();
    let resident = engine.resident_bytes();
    let mut engine = engine.with_memory_budget(budget.map(|beside| resident + beside));
    engine.paint(&request(vec![]), &Watch::new(|_| ()))
}

#[test]
fn a_picture_within_a_budget_is_the_same_picture() {
    let (whole, pieces) = (paint(None).expect("paints"), paint(Some(ONE_BY_ONE)).expect("paints"));
    let pairs = whole[0].rgb.iter().zip(&pieces[0].rgb);
    // Matrix products of other sizes are summed in another order.
    assert!(pairs.map(|(one, other)| one.abs_diff(*other)).max().expect("pixels") <= 1);
}

#[test]
fn what_does_not_fit_is_refused_with_what_would() {
    let error = paint(Some(ONE_BY_ONE / 10)).expect_err("too small");
    assert!(matches!(error, EngineError::OutOfMemory { .. }), "{error}");
    let told = error.to_string();
    assert!(told.contains("64x64 needs about 1 MiB beside the model") && told.contains("no size would fit"), "{told}");
}
