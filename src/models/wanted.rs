//! Which of a repository's files the engine reads.

use super::file::FilePath;

/// Directories whose weights are read, with the word for them where none is there. One of a pair is enough.
const WEIGHTS: [&[&str]; 3] = [&["text_encoder"], &["unet", "transformer"], &["vae"]];
/// A directory whose weights are read where a repository has it: Stable Diffusion XL's second text encoder.
const SECOND: &[&str] = &["text_encoder_2"];
/// Directories whose small files are read.
const DIRECTORIES: [&str; 9] =
    ["text_encoder", "text_encoder_2", "unet", "transformer", "vae", "scheduler", "tokenizer", "tokenizer_2", "processor"];
/// Directories that may have weights: where they all lie elsewhere, none of these is read.
pub(crate) const WITH_WEIGHTS: [&str; 5] = ["text_encoder", "text_encoder_2", "unet", "transformer", "vae"];
const STEMS: [&str; 2] = ["diffusion_pytorch_model", "model"];
const INDEX: &str = "model_index.json";
/// All weights of a packed checkpoint.
const PACKED: &str = "atelier.safetensors";

/// Chooses among `there`. `weights`: the one file that holds all weights, else that of a packed checkpoint; `unread`: directories whose weights
/// no one needs; `variant`: of the weight files in the others.
///
/// # Errors
/// What a model must have and this place has not.
pub(super) fn wanted(
    there: &[FilePath],
    variant: Option<&str>,
    (weights, unread): (Option<&FilePath>, &[&str]),
) -> Result<Vec<FilePath>, Vec<String>> {
    let small = there.iter().filter(|file| {
        let (directory, name) = file.split();
        file.as_str() == INDEX || DIRECTORIES.contains(&directory) && is_small(name)
    });
    let mut chosen: Vec<FilePath> = small.cloned().collect();
    let mut missing = Vec::new();
    if !there.iter().any(|file| file.as_str() == INDEX) {
        missing.push(INDEX.to_owned());
    }
    let packed = there.iter().find(|file| file.as_str() == PACKED && variant.is_none());
    match weights.or(packed) {
        Some(file) if there.contains(file) => chosen.push(file.clone()),
        Some(file) => missing.push(file.to_string()),
        None => {
            let second = there.iter().any(|file| SECOND.contains(&file.split().0)).then_some(SECOND);
            let read = WEIGHTS.into_iter().chain(second);
            for directories in read.filter(|directories| !directories.iter().any(|directory| unread.contains(directory))) {
                let found: Vec<FilePath> =
                    directories.iter().flat_map(|directory| weights_in(there, directory, variant)).collect();
                if found.is_empty() {
                    let spelled = variant.map(|variant| format!("{variant}.")).unwrap_or_default();
                    missing.push(
                        directories
                            .iter()
                            .map(|directory| format!("{directory}/*.{spelled}safetensors"))
                            .collect::<Vec<_>>()
                            .join(" or "),
                    );
                }
                chosen.extend(found);
            }
        }
    }
    if missing.is_empty() { Ok(chosen) } else { Err(missing) }
}

fn is_small(name: &str) -> bool {
    let shards = name.contains(".safetensors.index");
    !shards && (has_extension(name, "json") || has_extension(name, "txt"))
}

fn has_extension(name: &str, extension: &str) -> bool {
    name.rsplit_once('.').is_some_and(|(_, found)| found == extension)
}

/// The weight files in `directory`, shards and their index among them: of `variant`, or the plain ones, or of the only variant that is there.
fn weights_in(there: &[FilePath], directory: &str, variant: Option<&str>) -> Vec<FilePath> {
    let found: Vec<(&FilePath, String)> = there
        .iter()
        .filter(|file| file.split().0 == directory)
        .filter_map(|file| Some((file, variant_of(file.split().1)?)))
        .collect();
    let mut variants: Vec<&str> = found.iter().map(|(_, variant)| variant.as_str()).collect();
    variants.sort_unstable();
    variants.dedup();
    let chosen = match (variant, variants.as_slice()) {
        (Some(variant), _) => variant,
        (None, [only]) => only,
        (None, _) => "",
    };
    found.iter().filter(|(_, variant)| variant == chosen).map(|(file, _)| (*file).clone()).collect()
}

/// The variant of a weight file, empty for a plain one: `model.fp16-00001-of-00002.safetensors`, `model.safetensors.index.fp16.json`.
fn variant_of(name: &str) -> Option<String> {
    let rest = STEMS.iter().find_map(|stem| name.strip_prefix(stem))?;
    if let Some(index) = rest.strip_prefix(".safetensors.index") {
        return Some(index.strip_suffix(".json")?.trim_start_matches('.').to_owned());
    }
    let rest = rest.strip_suffix(".safetensors")?;
    let plain = rest.split_once("-0").map_or(rest, |(before, _)| before);
    Some(plain.trim_start_matches('.').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(names: &[&str], variant: Option<&str>, weights: Option<&str>) -> Result<Vec<String>, Vec<String>> {
        let path = |name: &&str| FilePath::new(name).expect("a path");
        let there: Vec<FilePath> = names.iter().map(path).collect();
        let weights = weights.map(|name| path(&name));
        wanted(&there, variant, (weights.as_ref(), &[])).map(|files| files.iter().map(ToString::to_string).collect())
    }

    const ALL: [&str; 11] = [
        "README.md",
        "model_index.json",
        "text_encoder/model.safetensors",
        "text_encoder/model.fp16.safetensors",
        "unet/config.json",
        "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
        "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
        "unet/diffusion_pytorch_model.safetensors.index.json",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.bin",
        "v1-5.safetensors",
    ];

    #[test]
    fn plain_weights_come_before_variants_and_an_only_variant_before_none() {
        let files = chosen(&ALL, None, None).expect("all there");
        assert!(files.contains(&"text_encoder/model.safetensors".to_owned()), "{files:?}");
        assert!(files.contains(&"unet/diffusion_pytorch_model.safetensors.index.json".to_owned()), "{files:?}");
        assert!(files.contains(&"vae/diffusion_pytorch_model.fp16.safetensors".to_owned()), "{files:?}");
        assert_eq!(files.len(), 7, "{files:?}");
    }

    #[test]
    fn a_variant_that_is_not_there_is_missing() {
        let missing = chosen(&ALL, Some("fp16"), None).expect_err("no fp16 unet");
        assert_eq!(missing, ["unet/*.fp16.safetensors or transformer/*.fp16.safetensors"]);
    }

    #[test]
    fn a_second_text_encoder_is_read_where_there_is_one() {
        let second = ["text_encoder_2/config.json", "tokenizer_2/vocab.json", "text_encoder_2/model.fp16.safetensors"];
        let files = chosen(&[ALL.as_slice(), &second].concat(), None, None).expect("all there");
        assert!(second.iter().all(|file| files.iter().any(|chosen| chosen == file)), "{files:?}");
        let missing = chosen(&[ALL.as_slice(), &second[..1]].concat(), None, None).expect_err("its weights");
        assert_eq!(missing, ["text_encoder_2/*.safetensors"]);
    }

    #[test]
    fn one_file_of_all_weights_is_enough() {
        let files = chosen(&ALL, None, Some("v1-5.safetensors")).expect("there");
        assert_eq!(files, ["model_index.json", "unet/config.json", "v1-5.safetensors"]);
        assert_eq!(chosen(&ALL, None, Some("v2.safetensors")), Err(vec!["v2.safetensors".into()]));
        let packed = chosen(&["model_index.json", "unet/config.json", "atelier.safetensors"], None, None).expect("there");
        assert_eq!(packed, ["model_index.json", "unet/config.json", "atelier.safetensors"]);
    }
}
