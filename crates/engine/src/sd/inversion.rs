//! Textual inversions (Gal et al. 2022, arXiv 2208.01618): words of a prompt that stand for vectors out of a file.

use candle_core::{DType, Device, Tensor};

use crate::learned_word::{Bundled, MAX_VECTORS};
use crate::stored::is_read;
use crate::tensor_file::TensorFile;
use crate::{EmbeddingFile, EngineError};

/// The key under which AUTOMATIC1111 keeps the vectors; diffusers' key is the word itself, and the only one.
const A1111_KEY: &str = "emb_params";
/// The keys of files for SDXL: of its first text encoder, and of its second.
const XL_KEYS: [&str; 2] = ["clip_l", "clip_g"];

/// Keys that an error names.
const SHOWN: usize = 3;

/// The words of one request, and their vectors.
#[derive(Debug, Default)]
pub struct Inversions {
    /// For each text encoder; none where there are no words.
    encoders: Vec<EncoderWords>,
}

/// The words that one text encoder learns.
#[derive(Debug)]
pub(super) struct EncoderWords {
    pub(super) learned_words: Vec<LearnedWord>,
    /// (vectors, hidden), f32: those of the first word, of the second, and so on.
    pub(super) vectors: Tensor,
}

#[derive(Debug)]
pub(super) struct LearnedWord {
    pub(super) text: String,
    /// How many it stands for.
    pub(super) vectors: usize,
    from: Origin,
}

/// Which of the request's files a word is from.
#[derive(Debug, Clone, Copy)]
enum Origin {
    Embedding(usize),
    Lora(usize),
}

impl LearnedWord {
    /// An error of the file that the word is from.
    pub(super) fn error(&self, problem: String) -> EngineError {
        match self.from {
            Origin::Embedding(index) => EngineError::Embedding { index, problem },
            Origin::Lora(index) => EngineError::Lora { index, problem: format!("its bundled embedding: {problem}") },
        }
    }
}

impl Inversions {
    /// Reads the files, which are untrusted, for text encoders of the widths `hidden`; the words `bundled` with LoRAs are those of a prompt
    /// as well.
    ///
    /// # Errors
    /// [`EngineError::Embedding`] says which one is at fault and why.
    pub(super) fn read(
        files: &[EmbeddingFile],
        bundled: &[Bundled],
        hidden: &[usize],
        device: &Device,
    ) -> Result<Self, EngineError> {
        let mut words = Vec::new();
        for (index, file) in files.iter().enumerate() {
            let vectors = read(file, hidden, device).map_err(|problem| EngineError::Embedding { index, problem })?;
            words.push((file.token.clone(), vectors, Origin::Embedding(index)));
        }
        for word in bundled {
            words.push((word.text.clone(), word.vectors.clone(), Origin::Lora(word.lora)));
        }
        if words.is_empty() {
            return Ok(Self::default());
        }
        let encoders = (0..hidden.len()).map(|encoder| EncoderWords::of(&words, encoder));
        Ok(Self { encoders: encoders.collect::<candle_core::Result<_>>()? })
    }

    /// What text encoder `encoder` learns.
    pub(super) fn of(&self, encoder: usize) -> Option<&EncoderWords> {
        self.encoders.get(encoder)
    }
}

impl EncoderWords {
    /// `words`: text, the vectors of each text encoder, and where they are from.
    fn of(words: &[(String, Vec<Tensor>, Origin)], encoder: usize) -> candle_core::Result<Self> {
        let mut learned_words = Vec::new();
        for (text, vectors, from) in words {
            learned_words.push(LearnedWord { text: text.clone(), vectors: vectors[encoder].dim(0)?, from: *from });
        }
        let vectors: Vec<&Tensor> = words.iter().map(|(_, vectors, _)| &vectors[encoder]).collect();
        Ok(Self { learned_words, vectors: Tensor::cat(&vectors, 0)? })
    }
}

/// (vectors, hidden), f32, for each text encoder.
fn read(file: &EmbeddingFile, hidden: &[usize], device: &Device) -> Result<Vec<Tensor>, String> {
    let content = TensorFile::open(&file.path).map_err(|error| problem(&error))?;
    let is_for_two = XL_KEYS.iter().all(|key| content.info(key).is_some());
    match hidden {
        [hidden] if is_for_two => Err(format!(
            "belongs to another model: it has words for the two text encoders of Stable Diffusion XL (clip_l, clip_g), this model has one \
             text encoder, whose words are vectors of {hidden} floats"
        )),
        [hidden] => Ok(vec![read_vectors(&content, &only_key(&content)?, *hidden, device)?]),
        _ if is_for_two && content.tensors().count() == XL_KEYS.len() => {
            XL_KEYS.iter().zip(hidden).map(|(key, hidden)| read_vectors(&content, key, *hidden, device)).collect()
        }
        _ => {
            let keys: Vec<String> = content.tensors().map(|(key, _)| key).take(SHOWN).collect();
            Err(format!(
                "belongs to another model: this one, Stable Diffusion XL, has two text encoders, so the file must hold clip_l and clip_g \
                 and nothing else; it holds {}",
                if keys.is_empty() { "no tensors".to_owned() } else { keys.join(", ") }
            ))
        }
    }
}

/// (vectors, hidden), f32.
fn read_vectors(content: &TensorFile, key: &str, hidden: usize, device: &Device) -> Result<Tensor, String> {
    let stored = content.stored(key).ok_or_else(|| format!("{key} is missing"))?;
    let shape = &stored.info.shape;
    let count = match shape[..] {
        [width] if width == hidden => 1,
        [vectors, width] if width == hidden => vectors,
        _ => 0,
    };
    if count == 0 || !is_read(stored.info.dtype) {
        let found = format!("{key} has the shape {shape:?} of {:?}", stored.info.dtype);
        return Err(format!("belongs to another model: {found}, this model's words are vectors of {hidden} floats"));
    }
    if count > MAX_VECTORS {
        return Err(format!("{key} has {count} vectors; a word may stand for {MAX_VECTORS} at most"));
    }
    if !stored.is_finite().map_err(|error| problem(&error))? {
        return Err(format!("{key} holds NaN or infinity; train it again"));
    }
    let vectors = stored.read(DType::F32).map_err(|error| problem(&error))?;
    let on_device = vectors.reshape(((), hidden)).and_then(|vectors| vectors.to_device(device));
    on_device.map_err(|error| error.to_string())
}

/// What is wrong with the file, without its path: callers know it by its place in the job.
fn problem(error: &EngineError) -> String {
    match error {
        EngineError::Checkpoint { problem, .. } => problem.clone(),
        other => other.to_string(),
    }
}

/// The key of the tensor that is meant, in a file for one text encoder.
fn only_key(content: &TensorFile) -> Result<String, String> {
    let mut keys = content.tensors().map(|(key, _)| key);
    if content.info(A1111_KEY).is_some() {
        return Ok(A1111_KEY.to_owned());
    }
    match (keys.next(), keys.count()) {
        (Some(only), 0) => Ok(only),
        (None, _) => Err("holds no tensors; is it the right file?".into()),
        (Some(key), more) => Err(format!(
            "holds {} tensors ({key} among them); one is expected, or {A1111_KEY}: is it a textual inversion?",
            more + 1
        )),
    }
}
