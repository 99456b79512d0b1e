//! Model files that are damaged, addresses that no one answers, a clock that is off.

use std::fs;
use std::path::Path;

use atelier_engine::sd::StableDiffusion;
use atelier_engine::sd::settings::Settings;
use atelier_engine::tensor_file::PACKED;
use candle_core::{DType, Device};

use super::{BUCKET, examined};
use crate::servers::http::{Answer, HttpServer};
use crate::servers::packages;
use crate::servers::s3::S3;

const UNET: &str = "unet/diffusion_pytorch_model.safetensors";

/// A directory of models with a copy of the small checkpoint, its files pinned.
fn models(directory: &Path) -> String {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/sd/sd15");
    copy(&from, &directory.join("sd15"));
    let pinned = atelier::models::file::Checksum::of_file(&directory.join("sd15").join(UNET)).unwrap();
    let manifest = include_str!("../../../models/tiny-sd.yaml").replace("checkpoint: tiny-sd", "checkpoint: sd15");
    let source = format!("source:\n  directory: sd15\n  files:\n    {UNET}: {pinned}\n    model_index.json:\n");
    fs::write(directory.join("tiny-sd.yaml"), format!("{manifest}\n{source}")).unwrap();
    directory.display().to_string()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

#[tokio::test]
async fn a_damaged_model_file_is_found() {
    let s3 = S3::start(&[BUCKET]).await;
    let directory = tempfile::tempdir().unwrap();
    let models = models(directory.path());
    let of = async |arguments: &[&str]| examined(&s3, &[("ATELIER__MODEL__DIRECTORY", &models)], arguments).await;
    of(&[]).await.expect("model", "ok", "1 files hashed, 1 without a checksum");

    let unet = directory.path().join("sd15").join(UNET);
    let whole = fs::read(&unet).unwrap();
    let mut changed = whole.clone();
    *changed.last_mut().unwrap() ^= 1;
    fs::write(&unet, &changed).unwrap();
    let report = of(&[]).await;
    assert_eq!(report.code, Some(1));
    report.expect("model", "fail", "differs: it has the SHA-256");
    // Of the right length: that is all that is looked at.
    of(&["--quick"]).await.expect("model", "ok", "as long as they must be");

    fs::write(&unet, &whole[..whole.len() - 1]).unwrap();
    of(&["--quick"]).await.expect("model", "fail", "is not a whole safetensors file");
    fs::remove_file(&unet).unwrap();
    of(&["--quick"]).await.expect("model", "fail", "unet: has none of diffusion_pytorch_model.safetensors");
    fs::remove_dir_all(directory.path().join("sd15")).unwrap();
    of(&["--quick"]).await.expect("model", "fail", "atelier models pull tiny-sd");
}

#[tokio::test]
async fn a_controlnet_that_is_absent_damaged_or_of_another_family_is_found() {
    let s3 = S3::start(&[BUCKET]).await;
    let directory = tempfile::tempdir().unwrap();
    let models = models(directory.path());
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/controlnets");
    let manifest = directory.path().join("tiny-sd.yaml");
    let plain = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, format!("{plain}\ncontrolnets:\n  - {{name: edges, weights: canny, image: canny}}\n")).unwrap();
    let of = async || examined(&s3, &[("ATELIER__MODEL__DIRECTORY", &models)], &["--quick"]).await;
    of().await.expect("model", "fail", "ControlNet edges: ");
    let net = directory.path().join("canny");
    copy(&fixtures.join("sd15/canny"), &net);
    of().await.expect("model", "ok", "4 files as long as they must be");
    let weights = net.join("diffusion_pytorch_model.safetensors");
    let whole = fs::read(&weights).unwrap();
    fs::write(&weights, &whole[..whole.len() - 1]).unwrap();
    of().await.expect("model", "fail", "is not a whole safetensors file");
    fs::remove_dir_all(&net).unwrap();
    copy(&fixtures.join("sdxl/canny"), &net);
    let report = of().await;
    report.expect("model", "fail", "is a ControlNet of Stable Diffusion XL, and the model is of Stable Diffusion 1 or 2");
    report.expect("model", "fail", "-> correct controlnets in ");
}

#[tokio::test]
async fn an_ip_adapter_that_is_absent_damaged_or_of_another_family_is_found() {
    let s3 = S3::start(&[BUCKET]).await;
    let directory = tempfile::tempdir().unwrap();
    let models = models(directory.path());
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ip_adapters");
    let manifest = directory.path().join("tiny-sd.yaml");
    let plain = fs::read_to_string(&manifest).unwrap();
    let adapter = "  - {name: plus, weights: plus.safetensors, image_encoder: encoder}";
    fs::write(&manifest, format!("{plain}\nip_adapters:\n{adapter}\n")).unwrap();
    let of = async || examined(&s3, &[("ATELIER__MODEL__DIRECTORY", &models)], &["--quick"]).await;
    let weights = directory.path().join("plus.safetensors");
    of().await.expect("model", "fail", "IP-Adapter plus: ");
    fs::copy(fixtures.join("sd15/plus.safetensors"), &weights).unwrap();
    of().await.expect("model", "fail", "encoder: No such file");
    let encoder = directory.path().join("encoder");
    copy(&fixtures.join("image_encoder"), &encoder);
    of().await.expect("model", "ok", "5 files as long as they must be");
    let image_encoder = encoder.join("model.safetensors");
    let whole = fs::read(&image_encoder).unwrap();
    fs::write(&image_encoder, &whole[..whole.len() - 1]).unwrap();
    of().await.expect("model", "fail", "is not a whole safetensors file");
    fs::write(&image_encoder, whole).unwrap();
    fs::copy(fixtures.join("sdxl/plus.safetensors"), &weights).unwrap();
    let report = of().await;
    report.expect(
        "model",
        "fail",
        "is for a UNet with 18 attentions to texts of 32 numbers, and the model's has 7 to texts of 24",
    );
    report.expect("model", "fail", "-> correct ip_adapters in ");
}

#[tokio::test]
async fn an_upscaler_that_is_absent_or_of_another_factor_is_found() {
    let s3 = S3::start(&[BUCKET]).await;
    let directory = tempfile::tempdir().unwrap();
    let models = models(directory.path());
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/upscalers");
    let manifest = directory.path().join("tiny-sd.yaml");
    let plain = fs::read_to_string(&manifest).unwrap();
    let write = |factor: u32| {
        let upscaler = format!("{{name: large, factor: {factor}, weights: x4.safetensors}}");
        fs::write(&manifest, format!("{plain}\nupscalers: [{upscaler}]\n")).unwrap();
    };
    write(4);
    let of = async || examined(&s3, &[("ATELIER__MODEL__DIRECTORY", &models)], &["--quick"]).await;
    of().await.expect("model", "fail", "upscaler large: ");
    fs::copy(fixtures.join("x4.safetensors"), directory.path().join("x4.safetensors")).unwrap();
    of().await.expect("model", "ok", "4 files as long as they must be");
    write(2);
    let report = of().await;
    report.expect("model", "fail", "enlarges 4 times, and upscalers says 2 of large");
    report.expect("model", "fail", "-> correct upscalers in ");
    fs::copy(directory.path().join("sd15/vae/diffusion_pytorch_model.safetensors"), directory.path().join("x4.safetensors"))
        .unwrap();
    of().await.expect("model", "fail", "holds no upscaler of the ESRGAN family");
}

#[tokio::test]
async fn a_segmenter_that_is_absent_or_no_segmenter_is_found() {
    let s3 = S3::start(&[BUCKET]).await;
    let directory = tempfile::tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    copy(&root.join("models/tiny-edit"), &directory.path().join("tiny-edit"));
    let manifest = include_str!("../../../models/tiny-edit.yaml").replace("directory: tiny-segmenter", "directory: clothes");
    fs::write(directory.path().join("tiny-edit.yaml"), manifest).unwrap();
    let models = directory.path().display().to_string();
    let settings =
        [("ATELIER__MODEL__DIRECTORY", models.as_str()), ("ATELIER_MODEL", "tiny-edit"), ("ATELIER__SAFETY__MODE", "off")];
    let of = async || examined(&s3, &settings, &["--quick"]).await;
    of().await.expect("model", "fail", "segmenter: ");
    copy(&root.join("tests/fixtures/segmenter/clothes"), &directory.path().join("clothes"));
    of().await.expect("model", "ok", "files as long as they must be");
    fs::copy(root.join("tests/fixtures/classifiers/vit/config.json"), directory.path().join("clothes/config.json")).unwrap();
    let report = of().await;
    report.expect("model", "fail", "a segmenter is [\"SegformerForSemanticSegmentation\"]");
    report.expect("model", "fail", "-> correct segmenter in ");
}

const DEFAULTS: &str = "defaults: {model: wrong, steps: 4, guidance_scale: 1.0, scheduler: euler, width: 64, height: 64, \
                        seed: 1, prefix: generations/}\n";

#[tokio::test]
async fn a_family_that_is_not_the_checkpoints_is_found() {
    let s3 = S3::start(&[BUCKET]).await;
    let directory = tempfile::tempdir().unwrap();
    let bundled = concat!(env!("CARGO_MANIFEST_DIR"), "/models");
    for model in ["tiny-sd", "tiny-edit"] {
        std::os::unix::fs::symlink(format!("{bundled}/{model}"), directory.path().join(model)).unwrap();
    }
    for (model, family, checkpoint, says) in [
        ("tiny-sd", "stable-diffusion-xl", "tiny-sd", "is of stable-diffusion-1; write that"),
        ("tiny-sd", "stable-diffusion-1", "tiny-edit", "StableDiffusionPipeline"),
        ("tiny-edit", "qwen-image", "tiny-edit", "is of family qwen-image-edit"),
        ("tiny-edit", "qwen-image-edit", "tiny-sd", "QwenImageEditPlusPipeline"),
    ] {
        let manifest = fs::read_to_string(format!("{bundled}/{model}.yaml")).unwrap();
        let (_, rest) = manifest.split_once(&format!("checkpoint: {model}\n")).unwrap();
        let rest: String = rest.split_inclusive('\n').filter(|line| !line.starts_with("segmenter:")).collect();
        // Which a model from text has, and one for try-ons has not.
        let defaults = if family == "qwen-image" { DEFAULTS } else { "" };
        let wrong = format!("family: {family}\ncheckpoint: {checkpoint}\n{rest}{defaults}");
        fs::write(directory.path().join("wrong.yaml"), wrong).unwrap();
        let models = directory.path().display().to_string();
        let report = examined(&s3, &[("ATELIER__MODEL__DIRECTORY", &models), ("ATELIER_MODEL", "wrong")], &["--quick"]).await;
        report.expect("model", "fail", says);
        report.expect("model", "fail", "-> correct the manifest");
    }
}

#[tokio::test]
async fn a_packed_model_is_its_one_file() {
    let s3 = S3::start(&[BUCKET]).await;
    let directory = tempfile::tempdir().unwrap();
    let models = models(directory.path());
    let checkpoint = directory.path().join("sd15");
    let engine = StableDiffusion::load(&Settings::new(&checkpoint, DType::F32, Device::Cpu)).unwrap();
    engine.pack(&directory.path().join("packed")).unwrap();
    let manifest = include_str!("../../../models/tiny-sd.yaml").replace("checkpoint: tiny-sd", "checkpoint: packed");
    fs::write(directory.path().join("tiny-sd.yaml"), manifest).unwrap();
    // What does not belong to it is not loaded, and not looked at.
    fs::write(directory.path().join("packed/unet/other.safetensors"), "no weights").unwrap();
    let of = async || examined(&s3, &[("ATELIER__MODEL__DIRECTORY", &models)], &["--quick"]).await;
    of().await.expect("model", "ok", "1 files as long as they must be");
    fs::write(directory.path().join("packed").join(PACKED), "no weights").unwrap();
    of().await.expect("model", "fail", "is not a whole safetensors file");
}

#[tokio::test]
async fn addresses_are_asked_as_notifications_would_go() {
    let s3 = S3::start(&[BUCKET]).await;
    let backend = HttpServer::start(&[Answer::status(404)]).await;
    let backend_url = backend.url("/").to_string();
    let good = examined(&s3, &[("BACKEND_API_URL", &backend_url)], &[]).await;
    assert_eq!(good.code, Some(0), "{}", good.said);
    good.expect("webhook", "ok", "notify.backend_api_url");
    assert_eq!(backend.requests()[0].method, "HEAD");
    assert!(backend.requests()[0].header("authorization").is_none(), "no token goes out for a check");

    let short = examined(&s3, &[("BACKEND_API_URL", &backend_url), ("INTERNAL_API_TOKEN", "16-characters-ok")], &[]).await;
    short.expect("webhook", "fail", "at least 32 characters");
    examined(&s3, &[("BACKEND_API_URL", "http://127.0.0.1:9")], &[]).await.expect("webhook", "fail", "could not be reached");
    let unknown = [("BACKEND_API_URL", "https://nobody.invalid")];
    examined(&s3, &unknown, &[]).await.expect("webhook", "fail", "could not be reached");
}

#[tokio::test]
async fn a_callers_address_passes_the_guard_or_not() {
    let s3 = S3::start(&[BUCKET]).await;
    let server = HttpServer::start(&[Answer::status(405)]).await;
    let plain = server.url("/hook").to_string();
    let secure = server.url("/hook").to_string().replace("http:", "https:");
    examined(&s3, &[], &["--webhook", &plain]).await.expect("webhook", "fail", "must be an https:// address");
    examined(&s3, &[], &["--webhook", &secure]).await.expect("webhook", "fail", "must lead to a public address");
    assert!(server.requests().is_empty(), "what may not be reached is not asked");
    let allowed = ("ATELIER__OUTBOUND__ALLOW", "[127.0.0.1]");
    let open = examined(&s3, &[allowed, ("ATELIER__OUTBOUND__ALLOW_HTTP", "true")], &["--webhook", &plain]).await;
    open.expect("webhook", "ok", "without TLS");
    // There is no TLS behind this port.
    examined(&s3, &[allowed], &["--webhook", &secure]).await.expect("webhook", "fail", "certificate");
}

#[tokio::test]
async fn a_clock_that_is_off_is_reported() {
    let faketime = packages::faketime();
    if !packages::are_there("clocks that are off", std::slice::from_ref(&faketime)) {
        return;
    }
    let s3 = S3::start(&[BUCKET]).await;
    for (offset, state, words) in
        [("+2m", "warn", "ahead of that of S3"), ("-10m", "fail", "behind that of S3"), ("+20s", "ok", "20 s")]
    {
        let changes = [("LD_PRELOAD", faketime.to_str().unwrap()), ("FAKETIME", offset), ("FAKETIME_DONT_FAKE_MONOTONIC", "1")];
        let report = examined(&s3, &changes, &[]).await;
        report.expect("clock", state, words);
    }
}
