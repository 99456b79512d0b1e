//! Where a model's manifest is looked for: in the directory that `model.directory` names, else in the default places, one after the other.

use std::path::{Path, PathBuf};

use super::{ConfigError, Environment, Model};
use crate::job::task::ModelName;

/// The places, in their order.
pub(super) struct Places {
    directories: Vec<PathBuf>,
    /// Whether the models inside the program come last.
    has_bundled: bool,
    /// What was not looked at, and why, for the message.
    unset: Option<&'static str>,
}

impl Places {
    /// A directory that is named is the only place: where its path is misspelt, another model of that name must not be served in silence.
    pub(super) fn of(model: &Model, environment: &Environment) -> Self {
        if let Some(directory) = model.directory.as_ref().filter(|directory| !directory.as_os_str().is_empty()) {
            return Self { directories: vec![directory.clone()], has_bundled: false, unset: None };
        }
        let home = environment.get("ATELIER_HOME").filter(|home| !home.is_empty());
        let unset = home.is_none().then_some("$ATELIER_HOME/models (not set)");
        let directories = [Some(PathBuf::from("models")), home.map(|home| Path::new(home).join("models"))];
        Self { directories: directories.into_iter().flatten().collect(), has_bundled: true, unset }
    }

    /// The manifest of a model in the first place that has it. Models that are only in the program are unpacked.
    ///
    /// # Errors
    /// Names all places where there is none.
    pub(super) fn find(&self, name: &ModelName) -> Result<PathBuf, ConfigError> {
        let file = format!("{}.yaml", name.as_str());
        if let Some(found) = self.directories.iter().map(|directory| directory.join(&file)).find(|path| path.exists()) {
            return Ok(found);
        }
        if self.has_bundled && atelier_bundled::models().contains(&name.as_str()) {
            let directory = atelier_bundled::directory();
            return directory.map(|directory| directory.join(&file)).map_err(|problem| ConfigError::NoModel {
                name: name.as_str().to_owned(),
                places: format!("{}; in the program, but {problem}", self.looked_at(&file)),
            });
        }
        let bundled = format!("the bundled models ({})", atelier_bundled::models().join(", "));
        let places = [self.looked_at(&file)].into_iter().chain(self.has_bundled.then_some(bundled));
        Err(ConfigError::NoModel { name: name.as_str().to_owned(), places: places.collect::<Vec<_>>().join(", ") })
    }

    fn looked_at(&self, file: &str) -> String {
        let paths = self.directories.iter().map(|directory| directory.join(file).display().to_string());
        paths.chain(self.unset.map(str::to_owned)).collect::<Vec<_>>().join(", ")
    }

    /// The names of all models that there are manifests of, each once, in their order.
    ///
    /// # Errors
    /// When a directory is there that cannot be read, or the named one is not there.
    pub(super) fn names(&self) -> Result<Vec<ModelName>, ConfigError> {
        let mut names: Vec<String> = Vec::new();
        for directory in &self.directories {
            if self.has_bundled && !directory.exists() {
                continue;
            }
            let unreadable =
                |error| ConfigError::Unreadable { file: format!("{} (model.directory)", directory.display()), error };
            for entry in std::fs::read_dir(directory).map_err(unreadable)? {
                let path = entry.map_err(unreadable)?.path();
                if path.extension().is_some_and(|extension| extension == "yaml") {
                    names.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
                }
            }
        }
        if self.has_bundled {
            names.extend(atelier_bundled::models().iter().map(|name| (*name).to_owned()));
        }
        names.sort();
        names.dedup();
        Ok(names.iter().filter_map(|name| ModelName::new(name).ok()).collect())
    }
}
