//! What may be done with bytes that strangers send: every function here takes any bytes, and panics where a promise is broken.
#![allow(dead_code, reason = "each target of libFuzzer uses one of them")]

use std::io::Write as _;

use atelier::host::http;
use atelier::job::Job;
use atelier::job::outcome::JobError;
use atelier::job::request::Defaults;
use atelier_engine::sd::foreign_syntax::refuse_foreign_syntax;
use atelier_engine::sd::weighting::{self, Emphasis};
use atelier_engine::{lora, tensor_file};
use safetensors::SafeTensors;

/// A job's body is a job, or it is refused with the field at fault.
pub(crate) fn job_body(bytes: &[u8]) {
    let defaults = Defaults::default();
    match Job::from_json(bytes, &defaults) {
        Ok(job) => {
            let again = Job::from_json(bytes, &defaults).expect("the same bytes are the same job");
            assert_eq!(job.fingerprint, again.fingerprint, "a fingerprint depends on the request alone");
            let id = job.id.as_str();
            assert!(!id.is_empty() && !id.contains('/'), "an id never leaves its prefix: {id:?}");
        }
        Err(refusal) => {
            let JobError::Invalid { field, problem } = refusal.error else {
                panic!("not the caller's fault: {}", refusal.error)
            };
            assert!(!field.is_empty() && !problem.is_empty(), "a refusal names the field and what is allowed");
        }
    }
}

/// The boundary of the forms that [`multipart_form`] is given.
pub(crate) const BOUNDARY: &str = "boundary";

/// A body of `/tryon` is a form, or it is refused as the caller's fault.
pub(crate) fn multipart_form(bytes: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let content_type = format!("multipart/form-data; boundary={BOUNDARY}");
    let body = bytes::Bytes::copy_from_slice(bytes);
    let refused = runtime.block_on(http::check_form(&content_type, body, &http::Settings::default()));
    if let Err(answer) = refused {
        assert!((400..500).contains(&answer.status), "{answer:?}");
        let error = &answer.body["error"];
        assert!(error["code"].is_string() && error["message"].is_string(), "{answer:?}");
    }
}

/// A file is taken where the reference reader of safetensors takes it, and nowhere else.
pub(crate) fn safetensors_header(bytes: &[u8]) {
    let file = file_of(bytes);
    let ours = tensor_file::check(file.path());
    let theirs = SafeTensors::deserialize(bytes);
    assert_eq!(ours.is_ok(), theirs.is_ok(), "{ours:?} here, {:?} there", theirs.err());
}

pub(crate) fn file_of(bytes: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(bytes).expect("written");
    file
}

/// The shapes of a small model, for the files that [`lora_keys`] is given.
pub(crate) fn shapes() -> [(String, Vec<usize>); 3] {
    [
        ("unet.conv_in.weight", vec![4, 4, 3, 3]),
        ("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight", vec![4, 4]),
        ("text_encoder.text_model.encoder.layers.0.mlp.fc1.weight", vec![4, 4]),
    ]
    .map(|(name, shape)| (name.to_owned(), shape))
}

/// A file of an adapter is applied as a whole, or it is refused with words that say why.
pub(crate) fn lora_keys(bytes: &[u8]) {
    if let Err(error) = lora::check(file_of(bytes).path(), shapes()) {
        assert!(!error.to_string().is_empty());
    }
}

/// A prompt falls into runs of text with sensible weights, or it is refused; by the rules of either program.
pub(crate) fn weighted_prompt(bytes: &[u8]) {
    let Ok(prompt) = std::str::from_utf8(bytes) else { return };
    for negative in [false, true] {
        if let Err(error) = refuse_foreign_syntax(prompt, negative) {
            assert!(!error.to_string().is_empty());
        }
    }
    for emphasis in [Emphasis::Automatic, Emphasis::Lpw] {
        let Ok(segments) = weighting::segments(prompt, emphasis) else { continue };
        let taken: usize = segments.iter().map(|segment| segment.text.len()).sum();
        assert!(taken <= prompt.len(), "text was made up");
        assert!(segments.iter().all(|segment| (-10.0..=10.0).contains(&segment.weight)), "{segments:?}");
        let breaks = emphasis == Emphasis::Automatic && prompt.contains("BREAK");
        if !breaks && !prompt.contains(['(', ')', '[', ']', ':', '\\']) {
            let text: String = segments.iter().map(|segment| segment.text.as_str()).collect();
            assert_eq!(text, prompt, "plain text stays as it is");
            assert!(segments.iter().all(|segment| segment.weight.to_bits() == 1.0_f64.to_bits()), "{segments:?}");
        }
    }
}
