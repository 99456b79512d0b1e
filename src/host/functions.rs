//! What each model can be asked for: what its handlers say of themselves, until then what the configuration says.

use tokio::sync::watch;

use super::Function;

/// Of another function than this binary's own nothing is known that it does not say.
#[derive(Debug, Clone)]
pub struct Functions {
    /// What the configuration says, of each model; none: the function is another one.
    own: Vec<Function>,
    said: watch::Receiver<Vec<Function>>,
}

impl Functions {
    #[must_use]
    pub fn new(own: Vec<Function>, said: watch::Receiver<Vec<Function>>) -> Self {
        Self { own, said }
    }

    /// Of the model at a place of the catalogue.
    #[must_use]
    pub fn at(&self, place: usize) -> Option<Function> {
        let own = self.own.get(place);
        let said = self.said.borrow();
        said.iter().find(|function| own.is_none_or(|own| own.model == function.model)).or(own).cloned()
    }
}
