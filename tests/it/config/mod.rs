//! The configuration: what is in force, where it comes from, and what a wrong one gets for an error.

mod renamed;
mod segmenter;

use atelier::config::{Config, Dtype, Environment, runtime_api};
use atelier::job::task::prompt::PromptSyntax;
use atelier::job::task::tryon::{Mode, Resolution};
use atelier::setting::Secret;
use atelier::workflow::StepName;

fn environment(pairs: &[(&str, &str)]) -> Environment {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn parse(yaml: &str, pairs: &[(&str, &str)]) -> Result<Config, String> {
    Config::parse("config.yaml", yaml, &environment(pairs)).map_err(|error| error.to_string())
}

#[test]
fn the_contracts_defaults_are_in_force() {
    let config = parse("", &[]).expect("the built-in configuration");
    assert_eq!(config.server.port, 8080);
    assert!(config.security.require_auth && config.security.internal_auth_token.is_none());
    assert_eq!((config.model.default_mode, config.model.default_steps.get()), (Mode::Fp8, 4));
    assert_eq!(config.model.default_resolution, Resolution::P720);
    assert!(config.workflow.preprocess.resize_to_resolution && config.workflow.preprocess.maintain_aspect_ratio);
    assert!(!config.workflow.postprocess.create_comparison);
    assert!(config.workflow.advanced.warmup_on_startup && config.workflow.advanced.clear_cache_between_jobs);
    assert_eq!(config.workflow.steps.first(), Some(&StepName::Fetch));
    assert_eq!((config.engine.dtype, config.engine.memory_budget_mib), (Dtype::Auto, None));
    assert!(config.engine.cuda_graphs);
}

/// Who reaches the port may look at the page: by itself it is there where nobody but this machine does.
#[test]
fn the_page_is_there_by_itself_on_this_machine_alone() {
    for (yaml, pairs, page) in [
        ("", &[][..], false),
        ("server: {address: 127.0.0.1}", &[], true),
        ("server: {address: '::1'}", &[], true),
        ("server: {address: '::'}", &[], false),
        ("server: {address: 192.0.2.1, page: true}", &[], true),
        ("server: {address: 127.0.0.1, page: false}", &[], false),
        ("", &[("ATELIER__SERVER__ADDRESS", "127.0.0.1")], true),
        ("", &[("ATELIER__SERVER__PAGE", "true")], true),
    ] {
        let config = parse(yaml, pairs).expect(yaml);
        assert_eq!(config.server.has_page(), page, "{yaml} {pairs:?}");
    }
    let error = parse("server: {page: perhaps}", &[]).expect_err("neither true nor false");
    assert!(error.contains("server.page"), "{error}");
}

/// Callers of the service have brackets and long texts in their prompts, and must get what they always got.
#[test]
fn prompts_are_read_as_they_stand_unless_the_manifest_says_otherwise() {
    let directory = tempfile::tempdir().expect("a directory");
    let manifest = include_str!("../../../models/sd15.yaml");
    let read = |line: &str| {
        std::fs::write(directory.path().join("sd15.yaml"), format!("{manifest}{line}")).expect("writes");
        let yaml = format!("model: {{name: sd15, directory: {}}}", directory.path().display());
        let config = parse(&yaml, &[]).expect("a configuration");
        config.manifest(&environment(&[])).map(|manifest| manifest.prompt).map_err(|error| error.to_string())
    };
    assert_eq!(read(""), Ok(PromptSyntax::Plain));
    assert_eq!(read("prompt: weighted\n"), Ok(PromptSyntax::Weighted));
    assert_eq!(read("prompt: lpw\n"), Ok(PromptSyntax::Lpw));
    let error = read("prompt: loud\n").expect_err("no such syntax");
    assert!(error.contains("prompt") && error.contains("weighted"), "{error}");
}

/// A job that names no model asks for the one that is served.
#[test]
fn a_manifest_that_was_copied_is_a_model_of_its_new_name() {
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::write(directory.path().join("mine.yaml"), include_str!("../../../models/sd15.yaml")).expect("writes");
    let config = parse(&format!("model: {{name: mine, directory: {}}}", directory.path().display()), &[]).expect("reads");
    assert_eq!(config.manifest(&environment(&[])).expect("a manifest").defaults.model.as_str(), "mine");
}

/// What a function is to load must be in its manifest, and what the manifest says must make sense for its family.
#[test]
fn upscalers_of_a_manifest_have_names_and_factors_that_are_known() {
    let directory = tempfile::tempdir().expect("a directory");
    let read = |upscalers: &str| {
        let manifest = format!("family: stable-diffusion-1\ncheckpoint: sd15\nupscalers: [{upscalers}]\n");
        std::fs::write(directory.path().join("sd15.yaml"), manifest).expect("writes");
        let yaml = format!("model: {{name: sd15, directory: {}}}", directory.path().display());
        let config = parse(&yaml, &[]).expect("a configuration");
        config.manifest(&environment(&[])).map(|manifest| manifest.upscalers).map_err(|error| error.to_string())
    };
    let good = "{name: x4plus, factor: 4, weights: up/x4.safetensors, licence: BSD-3-Clause}";
    let upscalers = read(good).expect("a manifest");
    assert_eq!(upscalers[0].weights, directory.path().join("up/x4.safetensors"));
    assert_eq!((upscalers[0].factor.get(), upscalers[0].licence.as_deref()), (4, Some("BSD-3-Clause")));
    for (wrong, words) in [
        (format!("{good}, {good}"), "upscalers: has two of the name x4plus"),
        (good.replace("factor: 4", "factor: 3"), "must be 2 or 4, got 3"),
        (good.replace("factor: 4, ", ""), "factor"),
        (good.replace("up/", "/up/"), "must be relative to the manifest"),
        (good.replace("x4plus", "X4Plus"), "must be 1 to 64 of the characters a-z"),
        (good.replace("BSD-3-Clause", "' '"), "x4plus: licence must name the licence of the weights, or be left out"),
    ] {
        let error = read(&wrong).expect_err("refused");
        assert!(error.contains("sd15.yaml") && error.contains(words), "{error}");
    }
}

#[test]
fn a_manifest_that_lacks_what_is_asked_for_is_refused_by_its_key() {
    let directory = tempfile::tempdir().expect("a directory");
    let read = |manifest: &str, modes: &str| {
        std::fs::write(directory.path().join("edit.yaml"), manifest).expect("writes");
        let yaml =
            format!("model: {{name: edit, directory: {}, default_mode: lora, modes: [{modes}]}}", directory.path().display());
        let config = parse(&yaml, &[]).expect("a configuration");
        config.manifest(&environment(&[])).map(|_| config.model.modes().len()).map_err(|error| error.to_string())
    };
    let bundled = include_str!("../../../models/tiny-edit.yaml");
    assert_eq!(read(bundled, ""), Ok(1));
    assert_eq!(read(bundled, "lora, base, base, fp8"), Ok(3));
    let edit = "family: qwen-image-edit\ncheckpoint: edit\n";
    let text = "family: stable-diffusion-1\ncheckpoint: sd15\n";
    let net = "{name: canny, weights: edges, image: canny}";
    assert!(read(&format!("{text}controlnets: [{net}]\n"), "").is_ok());
    let refused = [
        (
            format!("{edit}modes: {{base: {{}}}}\n"),
            "modes: has no lora, which model.default_mode or model.modes asks for; has base",
        ),
        (edit.to_owned(), "has none"),
        (bundled.replace("condition_px: 6912", "condition_px: 69"), "condition_px: must be 1024 or more"),
        (format!("{bundled}weights: one.safetensors\n"), "weights: is for family stable-diffusion-1"),
        (bundled.replace("qwen-image-edit", "stable-diffusion-1"), "segmenter: is for family qwen-image-edit"),
        (format!("{text}modes: {{base: {{}}}}\n"), "modes: is for families qwen-image and qwen-image-edit"),
        (format!("{bundled}controlnets: [{net}]\n"), "controlnets: is for family stable-diffusion-1 or stable-diffusion-xl"),
        (format!("{text}text_encoder: one.gguf\n"), "text_encoder: is for families z-image, flux and flux2; leave it out"),
        ("family: flux\ncheckpoint: flux\ntext_encoder: t5.safetensors\n".to_owned(), "text_encoder: must be a .gguf file"),
        (format!("{text}weights: one.gguf\n"), "weights: is GGUF, which is read for families z-image, flux and flux2 alone"),
        (format!("{text}controlnets: [{net}, {net}]\n"), "controlnets: has two of the name canny"),
        (format!("{text}controlnets: [{}]\n", net.replace("edges", "/edges")), "must be relative to the manifest"),
        (format!("{text}controlnets: [{}]\n", net.replace("name: canny", "name: A")), "must be 1 to 64 of the characters a-z"),
        (bundled.replace("{file: tiny-edit/", "{file: /tmp/"), "must be relative to the manifest"),
        (
            bundled.replacen("licence: Apache-2.0", "licence: ' '", 1),
            "licence: must name the licence of the weights, or be left out",
        ),
    ];
    for (manifest, words) in refused {
        let error = read(&manifest, "").expect_err("refused");
        assert!(error.contains("edit.yaml") && error.contains(words), "{words:?} is not in {error:?}");
    }
}

#[test]
fn the_nets_of_a_manifest_are_checked() {
    let directory = tempfile::tempdir().expect("a directory");
    let read = |manifest: &str| {
        std::fs::write(directory.path().join("sd.yaml"), manifest).expect("writes");
        let config = parse(&format!("model: {{name: sd, directory: {}}}", directory.path().display()), &[]).expect("reads");
        config.manifest(&environment(&[])).map_err(|error| error.to_string())
    };
    let text = "family: stable-diffusion-1\ncheckpoint: sd15\n";
    let adapter = "{name: plus, weights: ip/plus.safetensors, image_encoder: ip/image_encoder}";
    let [only] = read(&format!("{text}ip_adapters: [{adapter}]\n")).expect("a manifest").ip_adapters.try_into().expect("one");
    assert_eq!(only.weights, directory.path().join("ip/plus.safetensors"));
    assert_eq!(only.image_encoder, directory.path().join("ip/image_encoder"));
    let flow = include_str!("../../../models/tiny-edit.yaml");
    for (manifest, words) in [
        (format!("{flow}ip_adapters: [{adapter}]\n"), "ip_adapters: is for family stable-diffusion-1 or stable-diffusion-xl"),
        (
            format!("{text}ip_adapters: [{adapter}, {adapter}]\n"),
            "ip_adapters: has two of the name plus; a job could not say which",
        ),
        (
            format!("{text}ip_adapters: [{}]\n", adapter.replace("plus.safetensors", "ip-adapter_sd15.bin")),
            "ip_adapters: weights must be one .safetensors file, got ip-adapter_sd15.bin; pickles (.bin) can run code",
        ),
        (format!("{text}ip_adapters: [{}]\n", adapter.replace("ip/image", "/ip/image")), "must be relative to the manifest"),
        (format!("{text}ip_adapters: [{}]\n", adapter.replace(", image_encoder: ip/image_encoder", "")), "image_encoder"),
        (
            format!("{text}ip_adapters: [{}]\n", adapter.replace("name: plus", "name: A")),
            "must be 1 to 64 of the characters a-z",
        ),
    ] {
        let error = read(&manifest).expect_err("refused");
        assert!(error.contains("sd.yaml") && error.contains(words), "{words:?} is not in {error:?}");
    }
}

#[test]
fn a_format_that_the_model_cannot_be_generated_in_is_refused() {
    let manifest = |dtype: &str| {
        let config = parse("model: {name: tiny-edit}", &[("ATELIER__ENGINE__DTYPE", dtype)])?;
        config.manifest(&environment(&[])).map_err(|error| error.to_string())
    };
    assert!(["auto", "f32", "bf16"].iter().all(|dtype| manifest(dtype).is_ok()));
    let error = manifest("f16").expect_err("its numbers are too large");
    assert!(
        error.contains("tiny-edit.yaml: family") && error.contains("set engine.dtype to auto, to f32, or on a GPU to bf16"),
        "{error}"
    );
    let error = manifest("int8").expect_err("no such format");
    assert!(error.contains("engine.dtype") && error.contains("`auto`, `f32`, `f16`, `bf16`"), "{error}");
}

#[test]
fn a_flow_without_guidance_has_none_in_its_manifest() {
    let directory = tempfile::tempdir().expect("a directory");
    let read = |manifest: &str, dtype: &str| {
        std::fs::write(directory.path().join("flow.yaml"), manifest).expect("writes");
        let yaml = format!("model: {{name: flow, directory: {}}}", directory.path().display());
        let config = parse(&yaml, &[("ATELIER__ENGINE__DTYPE", dtype)]).expect("a configuration");
        config.manifest(&environment(&[])).map(|_| ()).map_err(|error| error.to_string())
    };
    let turbo = include_str!("../../../models/z-image-turbo.yaml");
    assert_eq!(read(turbo, "auto"), Ok(()));
    let refused = [
        (turbo.to_owned(), "f16", "family: z-image's numbers grow larger than f16"),
        (
            turbo.replace("guidance_scale: 1.0", "guidance_scale: 3.5"),
            "bf16",
            "defaults: must have a guidance_scale of at most 1",
        ),
        (turbo.replace("scheduler: euler", "scheduler: ddim"), "f32", "the one that family z-image has"),
        (format!("{turbo}modes: {{base: {{}}}}\n"), "f32", "modes: is for families qwen-image and qwen-image-edit"),
        (format!("{turbo}prompt: weighted\n"), "f32", "prompt: means nothing to family z-image"),
        (format!("{turbo}edit_px: 4096\n"), "f32", "edit_px: means nothing to family z-image"),
        (format!("{turbo}timestep_spacing: trailing\n"), "f32", "timestep_spacing: is for family stable-diffusion-1"),
    ];
    let klein = include_str!("../../../models/flux2-klein.yaml");
    assert_eq!(read(&format!("{klein}edit_px: 4096\n"), "auto"), Ok(()));
    for (manifest, dtype, words) in refused {
        let error = read(&manifest, dtype).expect_err(words);
        assert!(error.contains("flow.yaml") && error.contains(words), "{words:?} is not in {error:?}");
    }
}

#[test]
fn the_old_services_environment_still_counts() {
    let token = "0123456789012345678901234567890123456789";
    let config = parse(
        "",
        &[
            ("AWS_STORAGE_BUCKET_NAME", "images"),
            ("AWS_S3_REGION_NAME", "eu-central-1"),
            ("BACKEND_API_URL", "https://backend.example"),
            ("INTERNAL_API_TOKEN", token),
        ],
    )
    .expect("the old environment");
    assert_eq!(config.store.bucket, "images");
    assert_eq!(config.store.region.as_deref(), Some("eu-central-1"));
    assert_eq!(config.notify.backend_api_url.as_deref(), Some("https://backend.example"));
    assert_eq!(config.notify.internal_api_token.as_ref().map(Secret::reveal), Some(token), "digits stay a text");
}

#[test]
fn a_file_and_then_the_environment_override() {
    let yaml = "server:\n  port: ${PORT:-9000}\n  node_id: ${NODE}\nruntime: {max_attempts: 5}";
    let config = parse(yaml, &[("NODE", "gpu-1")]).expect("a partial file");
    assert_eq!((config.server.port, config.server.node_id.as_str(), config.runtime.max_attempts), (9000, "gpu-1", 5));
    assert_eq!(config.model.default_resolution, Resolution::P720, "what the file leaves out is unchanged");
    let overrides = [
        ("NODE", "gpu-1"),
        ("ATELIER__SERVER__PORT", "7000"),
        ("ATELIER__SECURITY__REQUIRE_AUTH", "false"),
        ("ATELIER__WORKFLOW__STEPS", "[fetch, preprocess, infer, encode, store]"),
        ("ATELIER__SAFETY__MODE", "off"),
    ];
    let config = parse(yaml, &overrides).expect("overridden");
    assert_eq!((config.server.port, config.security.require_auth), (7000, false));
    assert_eq!(
        config.workflow.steps,
        [StepName::Fetch, StepName::Preprocess, StepName::Infer, StepName::Encode, StepName::Store]
    );
}

#[test]
fn every_mistake_names_file_key_and_problem() {
    type Row = (&'static str, &'static [(&'static str, &'static str)], &'static [&'static str]);
    let table: [Row; 23] = [
        ("server: {port: abc}", &[], &["config.yaml", "server.port", "abc"]),
        ("server: {prot: 1}", &[], &["config.yaml", "server", "prot", "node_id"]),
        ("servers: {}", &[], &["config.yaml", "servers"]),
        ("server: {node_id: '${NO_SUCH}'}", &[], &["config.yaml", "server.node_id", "NO_SUCH is not set"]),
        ("server: {node_id: '${OPEN'}", &[], &["server.node_id", "without `}`"]),
        ("server: [", &[], &["config.yaml", "not YAML"]),
        ("", &[("ATELIER__SERVER__PORT", "many")], &["server.port", "ATELIER__SERVER__PORT"]),
        ("", &[("ATELIER__SERVER__PROT", "1")], &["server", "prot", "(from the environment: ATELIER__SERVER__PROT)"]),
        ("server: {port: -1}", &[], &["server.port: must be a whole number, not below 0, got -1"]),
        ("server: 1", &[], &["server: must be an object, got 1"]),
        (
            "",
            &[("ATELIER__SECURITY__INTERNAL_AUTH_TOKEN", "short")],
            &["at least 16 characters", "(from the environment: ATELIER__SECURITY__INTERNAL_AUTH_TOKEN)"],
        ),
        ("", &[("INTERNAL_API_TOKEN", "short")], &["at least 16 characters", "(from the environment: INTERNAL_API_TOKEN)"]),
        ("security: {internal_auth_token: short}", &[("INTERNAL_API_TOKEN", "")], &["must have at least 16 characters"]),
        (
            "workflow: {steps: [fetch, preprocess, infer, store]}",
            &[],
            &[
                "workflow.steps",
                "`encode` is missing before `store`; the right order is [fetch, preprocess, infer, encode, store]",
            ],
        ),
        ("workflow: {steps: [infer, encode, store]}", &[], &["workflow.steps", "`preprocess` is missing before `infer`"]),
        ("workflow: {steps: []}", &[], &["workflow.steps", "`fetch` is missing; the right order is [fetch, "]),
        (
            "workflow: {steps: [fetch, preprocess, infer, encode, watermark, store]}",
            &[],
            &[
                "workflow.steps",
                "`watermark` must come before `encode`",
                "[fetch, preprocess, infer, watermark, encode, store]",
            ],
        ),
        ("workflow: {steps: [infer, encode, encode, store]}", &[], &["workflow.steps", "`encode` is listed twice"]),
        (
            "workflow: {steps: [fetch, preprocess, screen, infer, check, encode, store]}\ncontent_credentials: {certificate_file: a.pem}",
            &[],
            &["workflow.steps", "lacks `credentials`, and content_credentials names a signer"],
        ),
        (
            "workflow: {steps: [fetch, preprocess, infer, check, encode, store]}",
            &[],
            &["workflow.steps", "lacks `screen`, and safety.mode is on: add the step, or write `safety.mode: off`"],
        ),
        ("safety: {mode: perhaps}", &[], &["safety.mode", "must be on or off, got \"perhaps\""]),
        ("safety: {tryon: {allow_underwear: 1}}", &[], &["safety.tryon.allow_underwear"]),
        ("workflow: {steps: [dream]}", &[], &["workflow.steps[0]", "dream", "command:NAME or http:NAME"]),
    ];
    for (yaml, pairs, words) in table {
        let error = parse(yaml, pairs).expect_err(yaml);
        for word in words {
            assert!(error.contains(word), "{error:?} does not say {word:?}");
        }
    }
}

#[test]
fn every_mistake_with_a_step_of_ones_own_is_named() {
    let table: [(&str, &[&str]); 4] = [
        ("workflow: {steps: [command:A]}", &["workflow.steps[0]", "behind `command:`, got \"A\""]),
        (
            "workflow: {steps: [fetch, preprocess, screen, infer, command:border, check, encode, store]}",
            &["workflow.steps", "lists `command:border`, and there is no workflow.user_steps.command.border that says"],
        ),
        (
            "workflow: {steps: [fetch, preprocess, screen, infer, check, http:rules, encode, store], user_steps: {http: {rules: {}}}}",
            &[
                "`http:rules` must come before `check`; the right order is [fetch, preprocess, screen, infer, http:rules, check, encode, store]",
            ],
        ),
        ("workflow: {user_steps: {command: {a: {program: sh}}}}", &["workflow.user_steps.command.a.program", "must be a list"]),
    ];
    for (yaml, words) in table {
        let error = parse(yaml, &[]).expect_err(yaml);
        for word in words {
            assert!(error.contains(word), "{error:?} does not say {word:?}");
        }
    }
}

#[test]
fn a_runtime_api_without_its_companions_is_named_not_panicked_over() {
    assert_eq!(runtime_api(&environment(&[])).expect("no Runtime API is fine"), None);
    let mut pairs = vec![("AWS_LAMBDA_RUNTIME_API", "127.0.0.1:9001")];
    for (name, value) in [
        ("AWS_LAMBDA_FUNCTION_NAME", "atelier"),
        ("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST"),
        ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "4096"),
    ] {
        let error = runtime_api(&environment(&pairs)).expect_err("incomplete").to_string();
        assert!(error.contains(name), "{error}");
        pairs.push((name, value));
    }
    assert_eq!(runtime_api(&environment(&pairs)).expect("complete").as_deref(), Some("127.0.0.1:9001"));
    pairs.push(("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "4 GB"));
    assert!(runtime_api(&environment(&pairs)).is_err(), "lambda_runtime would panic over a memory size that is no number");
}
