//! Whether anybody looks at prompts and images, and whether those could be asked.

use super::finding::Finding;
use crate::config::{Config, Environment};
use crate::safety::settings::Mode;
use crate::start::safety;

const CHECK: &str = "safety";
const HOW: &str = "docs/safety.md says who can look at prompts and images, and what it means to leave that to nobody";

pub(super) fn check(config: &Config, environment: &Environment) -> Finding {
    // What is wrong with the manifest stands with the model.
    let Ok(manifest) = config.manifest(environment) else { return Finding::skip(CHECK, "the model's manifest cannot be read") };
    let model = config.model.name.as_str();
    match safety::gate(config, &manifest) {
        Err(error) => Finding::fail(CHECK, error.to_string(), HOW),
        Ok(_) if config.safety.mode == Mode::Off => {
            Finding::warn(CHECK, format!("{model}: safety.mode is off, so nobody looks at prompts and images"), HOW)
        }
        Ok(gate) if !gate.looks_at_images() => Finding::warn(CHECK, format!("{model}: nobody looks at images"), HOW),
        Ok(gate) => {
            let classifier = gate.checker.as_ref().map(|checker| format!("the classifier {}", checker.name));
            let moderator = gate.moderator.as_ref().map(|_| "the moderator".to_owned());
            let who: Vec<String> = classifier.into_iter().chain(moderator).collect();
            Finding::ok(CHECK, format!("{model}: {} looks at images, policy {}", who.join(", then "), gate.policy))
        }
    }
}
