//! Who looks at the jobs of a model, before anything is generated and after.

use std::sync::Arc;

use crate::config::Config;
use crate::config::manifest::{Checker, Family, Manifest};
use crate::safety::checker;
use crate::safety::gate::Gate;
use crate::safety::settings::{Mode, Settings};
use crate::setting::SettingError;
use atelier_engine::classifier::{self, Labels};

/// The families that are shown images, of people too.
const EDITS: [Family; 2] = [Family::QwenImageEdit, Family::Flux2];

/// Whether there is anyone to look, where someone has to.
///
/// # Errors
/// Says who could, and how it is said that nobody is to.
pub fn check(settings: &Settings, manifest: &Manifest) -> Result<(), SettingError> {
    if settings.mode == Mode::Off {
        if settings.required {
            return Err(SettingError::new("safety.required", "is true, and safety.mode is off; set one of them otherwise"));
        }
        return Ok(());
    }
    if manifest.checker.is_some() || settings.moderator.url.is_some() {
        return Ok(());
    }
    let file = manifest.file.display();
    let who = format!("name an image classifier (`checker` in {file}) or a moderator (safety.moderator.url)");
    if settings.required {
        return Err(SettingError::new("safety.required", format!("is true, and nobody would look at images: {who}")));
    }
    if EDITS.contains(&manifest.family) {
        let problem = format!(
            "is on, and nobody would look at what is made of images of people: {who}; or write `safety.mode: off`, and answer for it"
        );
        return Err(SettingError::new("safety.mode", problem));
    }
    Ok(())
}

/// The classifier that is loaded next to the model; none where nobody looks.
pub(super) fn loaded_checker<'a>(settings: &Settings, manifest: &'a Manifest) -> Option<&'a Checker> {
    manifest.checker.as_ref().filter(|_| settings.mode == Mode::On)
}

/// # Errors
/// Names the setting, or the key of the manifest, that is wrong.
pub fn gate(config: &Config, manifest: &Manifest) -> Result<Arc<Gate>, SettingError> {
    check(&config.safety, manifest)?;
    let checker = loaded_checker(&config.safety, manifest).map(|checker| read(checker, manifest)).transpose()?;
    let gate = Gate::new(&config.safety, checker)?;
    if !gate.is_on() {
        tracing::warn!("safety.mode is off: nobody looks at prompts and images");
    } else if gate.looks_at_images() {
        let classifier = gate.checker.as_ref().map(|checker| checker.name.as_str());
        tracing::info!(
            classifier,
            moderator = gate.moderator.is_some(),
            policy = gate.policy,
            "prompts and images are looked at"
        );
    } else {
        tracing::warn!(
            "nobody looks at images: the model's manifest names no `checker`, and safety.moderator.url is not set; \
             safety.required refuses to start so"
        );
    }
    Ok(Arc::new(gate))
}

fn read(checker: &Checker, manifest: &Manifest) -> Result<checker::Checker, SettingError> {
    let Checker { directory, categories } = checker;
    let key = format!("{}: checker", manifest.file.display());
    if !directory.is_dir() {
        let model = manifest.file.file_stem().unwrap_or_default().to_string_lossy();
        let problem = format!(
            "{} is not there; bring it with `atelier models pull {model}`, or write `safety.mode: off`, and answer for it",
            directory.display()
        );
        return Err(SettingError::new(&format!("{key}.directory"), problem));
    }
    let Labels { labels, scores } = classifier::check(directory).map_err(|error| SettingError::new(&key, error.to_string()))?;
    let name = directory.file_name().unwrap_or_default().to_string_lossy();
    checker::Checker::new(&name, (&labels, scores), categories)
        .map_err(|problem| SettingError::new(&format!("{key}.categories"), problem))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::Environment;

    #[test]
    fn what_is_shown_images_of_people_does_not_start_with_nobody_to_look() {
        let settings = Config::parse("config.yaml", "", &Environment::new()).unwrap().safety;
        for (family, starts) in [("qwen-image-edit", false), ("flux2", false), ("flux", true)] {
            let manifest: Manifest = serde_json::from_value(json!({ "family": family, "checkpoint": "own" })).unwrap();
            assert_eq!(check(&settings, &manifest).is_ok(), starts, "{family}");
            let off = Settings { mode: Mode::Off, ..settings.clone() };
            assert!(check(&off, &manifest).is_ok(), "{family}");
        }
    }
}
