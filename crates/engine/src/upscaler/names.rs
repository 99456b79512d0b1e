//! What the files of upscalers call their tensors, and what we call them: as basicsr's `RRDBNet` and `SRVGGNetCompact`.
//!
//! The correspondence is that of spandrel's `architectures/ESRGAN` and of ESRGAN's own `transer_RRDB_models.py`.

/// What names begin with where a training's state was saved whole; of the first that is there the tensors are read.
const PREFIXES: [&str; 3] = ["params_ema.", "params.", "state_dict."];
/// Of the first release's list: it has three places a doubling, and four more behind the last.
const PLACES_OF_A_DOUBLING: usize = 3;
const PLACES_BEHIND: usize = 4;

/// How the tensors of a file are called.
pub(super) struct Spelling {
    prefix: &'static str,
    /// The last place of the first release's list; none: names of a later release.
    last: Option<usize>,
}

impl Spelling {
    /// `names`: those of all tensors of a file.
    pub(super) fn of(names: &[String]) -> Self {
        let prefix = PREFIXES.into_iter().find(|prefix| names.iter().any(|name| name.starts_with(prefix))).unwrap_or("");
        let bare = names.iter().filter_map(|name| name.strip_prefix(prefix));
        let places = bare.filter_map(|name| name.strip_prefix("model.")?.split('.').next()?.parse().ok());
        Self { prefix, last: places.max() }
    }

    /// Our name of a tensor of the file; none: another copy of the weights has it.
    pub(super) fn name(&self, name: &str) -> Option<String> {
        let name = name.strip_prefix(self.prefix)?;
        let parts: Vec<&str> = name.split('.').collect();
        let ours = match (parts.as_slice(), self.last) {
            (["model", rest @ ..], Some(last)) => of_first_release(rest, last),
            // BSRGAN and Real-SR.
            (["RRDB_trunk", block, dense, conv, kind], _) => {
                Some(format!("body.{block}.{}.{conv}.{kind}", dense.to_lowercase()))
            }
            ([module, kind], _) => of_real_sr(module).map(|module| format!("{module}.{kind}")),
            _ => None,
        };
        Some(ours.unwrap_or_else(|| name.to_owned()))
    }
}

/// `parts`: of a name behind `model.`; `last`: the last place of the list.
fn of_first_release(parts: &[&str], last: usize) -> Option<String> {
    match parts {
        ["0", kind] => Some(format!("conv_first.{kind}")),
        ["1", "sub", _, kind] => Some(format!("conv_body.{kind}")),
        ["1", "sub", block, dense, conv, "0", kind] => Some(format!("body.{block}.{}.{conv}.{kind}", dense.to_lowercase())),
        [place, kind] => {
            let place: usize = place.parse().ok()?;
            let doublings = last.checked_sub(PLACES_BEHIND)? / PLACES_OF_A_DOUBLING;
            let module = match last - place.min(last) {
                0 => "conv_last".to_owned(),
                2 => "conv_hr".to_owned(),
                _ if place.is_multiple_of(PLACES_OF_A_DOUBLING) && place / PLACES_OF_A_DOUBLING <= doublings => {
                    format!("conv_up{}", place / PLACES_OF_A_DOUBLING)
                }
                _ => return None,
            };
            Some(format!("{module}.{kind}"))
        }
        _ => None,
    }
}

fn of_real_sr(module: &str) -> Option<String> {
    match module {
        "trunk_conv" => Some("conv_body".to_owned()),
        "HRconv" => Some("conv_hr".to_owned()),
        _ => module.strip_prefix("upconv").map(|number| format!("conv_up{number}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn renamed(names: &[&str]) -> Vec<String> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let spelling = Spelling::of(&names);
        names.iter().filter_map(|name| spelling.name(name)).collect()
    }

    #[test]
    fn every_release_means_the_same_tensors() {
        let ours = [
            "conv_first.weight",
            "body.7.rdb2.conv3.bias",
            "conv_body.weight",
            "conv_up1.bias",
            "conv_up2.weight",
            "conv_hr.weight",
            "conv_last.bias",
        ];
        let first = [
            "model.0.weight",
            "model.1.sub.7.RDB2.conv3.0.bias",
            "model.1.sub.23.weight",
            "model.3.bias",
            "model.6.weight",
            "model.8.weight",
            "model.10.bias",
        ];
        let real_sr = [
            "conv_first.weight",
            "RRDB_trunk.7.RDB2.conv3.bias",
            "trunk_conv.weight",
            "upconv1.bias",
            "upconv2.weight",
            "HRconv.weight",
            "conv_last.bias",
        ];
        for names in [ours, first, real_sr] {
            assert_eq!(renamed(&names), ours);
            let prefixed = names.map(|name| format!("params_ema.{name}"));
            let mut both: Vec<&str> = prefixed.iter().map(String::as_str).collect();
            both.push("params.conv_first.weight");
            assert_eq!(renamed(&both), ours, "the other copy is left alone");
        }
    }

    #[test]
    fn one_doubling_has_its_places_three_earlier() {
        let names = ["model.0.weight", "model.3.weight", "model.5.weight", "model.7.weight"];
        assert_eq!(renamed(&names), ["conv_first.weight", "conv_up1.weight", "conv_hr.weight", "conv_last.weight"]);
    }

    #[test]
    fn a_name_that_means_nothing_stays_what_it_is() {
        let names = ["model.0.weight", "model.4.weight", "model.10.weight", "model.1.sub.0.RDB1.conv1x1.weight"];
        assert_eq!(
            renamed(&names),
            ["conv_first.weight", "model.4.weight", "conv_last.weight", "model.1.sub.0.RDB1.conv1x1.weight"]
        );
    }
}
