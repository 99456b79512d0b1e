//! Which tensors of a file are those of a flow's transformer, and what in it is of another model.

use std::collections::{HashMap, HashSet};

use super::{Places, bare};
use crate::gguf_file::{shown, without_leading_ones};
use crate::weights::Shapes;

/// Tensors of a file by their bare names, each with the file's own name for it and its shape there, or the one that it has to have.
type ByPlace<'a> = HashMap<&'a str, (&'a str, &'a [usize])>;

/// Z-Image's first release has it, and no code reads it: diffusers drops it too (`convert_z_image_transformer_checkpoint_to_diffusers`).
const UNREAD: &str = "norm_final.weight";
/// What the names of the model's tensors begin with here.
const COMPONENT: &str = "transformer.";

/// What is to be read of a file.
#[derive(Default)]
pub(crate) struct Fitting<'a> {
    /// By the name of its place: the file's own name for a tensor, and the shape that it has to have.
    pub(crate) wanted: ByPlace<'a>,
    /// What is missing, has another shape, is there twice, or is none of this model's, in words.
    pub(crate) problems: Vec<String>,
}

impl<'a> Fitting<'a> {
    /// Looks for what `places` name among the `tensors` of a file, by their names and shapes; `shapes`: of the model's tensors, and of its layers of the first
    /// release. None: there is nothing of them.
    pub(crate) fn of(
        tensors: &[(&'a str, &'a [usize])],
        places: &'a Places<'_>,
        shapes: (&'a Shapes, &'a Shapes),
    ) -> Option<Self> {
        let (found, others) = sorted(tensors, places);
        if found.is_empty() {
            return None;
        }
        let mut fitting = Self::default();
        fitting.match_shapes(&found, places, shapes);
        let mut surplus: Vec<&str> = found.keys().copied().filter(|name| !fitting.wanted.contains_key(name)).collect();
        surplus.sort_unstable();
        fitting.problems.extend(surplus.into_iter().map(none_of_this_model).chain(others));
        Some(fitting)
    }

    fn match_shapes(&mut self, found: &ByPlace<'a>, places: &'a Places<'_>, (expected, joint): (&'a Shapes, &'a Shapes)) {
        let mut ordered: Vec<_> = places.iter().filter(|(_, places)| !places.is_empty()).collect();
        ordered.sort_unstable_by_key(|(name, _)| *name);
        for (name, places) in ordered {
            let Some((place, rows, (own, shape))) =
                places.iter().find_map(|(place, rows)| Some((place.as_str(), rows, *found.get(place.as_str())?)))
            else {
                self.problems.push(format!("{name} {:?} is missing", expected[*name]));
                continue;
            };
            let wanted = match rows {
                None => expected.get(*name),
                Some(_) => joint.get(&format!("{COMPONENT}{place}")),
            };
            let wanted = wanted.map(Vec::as_slice).unwrap_or_default();
            let is_known = self.wanted.insert(place, (own, wanted)).is_some();
            if !is_known && without_leading_ones(shape) != without_leading_ones(wanted) {
                self.problems.push(format!("{} has the shape {shape:?}, config.json says {wanted:?}", shown(place)));
            }
        }
    }
}

/// The file's tensors that the model may have, by their bare names, each with its own name and its shape; and what is wrong with others among them.
fn sorted<'a>(tensors: &[(&'a str, &'a [usize])], places: &Places<'_>) -> (ByPlace<'a>, Vec<String>) {
    let known: HashSet<&str> = places.iter().flat_map(|(_, places)| places).map(|(name, _)| name.as_str()).collect();
    // Next to other models the transformer's names have a prefix.
    let has_prefix = tensors.iter().any(|(name, _)| bare(name).is_some_and(|name| known.contains(name)));
    let mut found = HashMap::new();
    let mut problems = Vec::new();
    for (name, shape) in tensors {
        let of_transformer = if has_prefix { bare(name) } else { Some(*name) };
        let place = of_transformer.unwrap_or(name);
        if known.contains(place) {
            if let Some((other, _)) = found.insert(place, (*name, *shape)) {
                problems.push(format!("{} and {} are one tensor of the model", shown(other), shown(name)));
            }
        } else if of_transformer.is_some_and(|name| name != UNREAD) {
            problems.push(none_of_this_model(place));
        }
    }
    problems.sort_unstable();
    (found, problems)
}

fn none_of_this_model(name: &str) -> String {
    format!("{} is none of this model's", shown(name))
}
