//! What a segmenter's `config.json` says: its labels, and the sizes of its network.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use crate::EngineError;
use crate::json_config::{Fixed, read};
use crate::labels::labels;

const SEGFORMER: &str = "SegformerForSemanticSegmentation";
/// What the network's code stands for.
const FIXED: Fixed = &[("hidden_act", &["\"gelu\""]), ("num_channels", &["3"]), ("reshape_last_stage", &["true"])];
/// The place of a label has 8 bits.
const MAX_LABELS: usize = 256;

#[derive(Debug, Clone)]
pub(super) struct SegmenterConfig {
    /// In the order of the network's scores.
    pub(super) labels: Vec<String>,
    /// From the image on, each with fewer places than the one before.
    pub(super) stages: Vec<StageConfig>,
    /// Channels of the decode head.
    pub(super) decoder_hidden_size: usize,
}

/// Sizes of one stage of the encoder.
#[derive(Debug, Clone)]
pub(super) struct StageConfig {
    pub(super) in_channels: usize,
    pub(super) hidden_size: usize,
    pub(super) layers: usize,
    pub(super) heads: usize,
    /// Side of the patches in places of the stage before, which overlap where it is larger than `stride`.
    pub(super) patch: usize,
    pub(super) stride: usize,
    /// Keys and values have one place for a square of so many of the queries' a side.
    pub(super) reduction: usize,
    pub(super) mlp_ratio: usize,
}

impl StageConfig {
    /// Places of a side that has `side` in the stage before.
    pub(super) fn side(&self, side: usize) -> usize {
        (side + 2 * (self.patch / 2)).saturating_sub(self.patch) / self.stride + 1
    }
}

#[derive(Debug, Deserialize)]
struct Named {
    #[serde(default)]
    architectures: Vec<String>,
}

/// transformers' `SegformerConfig`; what is left out has the default of that class.
#[derive(Debug, Deserialize)]
struct Written {
    id2label: Option<BTreeMap<String, String>>,
    num_labels: Option<usize>,
    num_encoder_blocks: Option<usize>,
    depths: Option<Vec<usize>>,
    sr_ratios: Option<Vec<usize>>,
    hidden_sizes: Option<Vec<usize>>,
    patch_sizes: Option<Vec<usize>>,
    strides: Option<Vec<usize>>,
    num_attention_heads: Option<Vec<usize>>,
    mlp_ratios: Option<Vec<usize>>,
    decoder_hidden_size: Option<usize>,
}

impl SegmenterConfig {
    /// # Errors
    /// [`EngineError::Checkpoint`] with what is missing in the file or not supported, and what would be.
    pub(super) fn read(path: &Path) -> Result<Self, EngineError> {
        let wrong = |problem: String| EngineError::Checkpoint { path: path.to_owned(), problem };
        let Named { architectures } = read(path, &[])?;
        if architectures != [SEGFORMER] {
            return Err(wrong(format!("architectures is {architectures:?}; a segmenter is [\"{SEGFORMER}\"]")));
        }
        let written: Written = read(path, FIXED)?;
        written.checked().map_err(wrong)
    }
}

impl Written {
    fn checked(self) -> Result<SegmenterConfig, String> {
        let labels = labels(self.id2label, self.num_labels)?;
        if labels.len() > MAX_LABELS {
            return Err(format!("has {} labels; at most {MAX_LABELS} are supported", labels.len()));
        }
        let count = self.num_encoder_blocks.unwrap_or(4);
        let each = |key: &str, written: Option<Vec<usize>>, default: [usize; 4]| {
            let values = written.unwrap_or_else(|| default.to_vec());
            if values.len() == count && values.iter().all(|value| *value > 0) {
                return Ok(values);
            }
            Err(format!("{key} is {values:?}; it must have num_encoder_blocks, {count}, numbers from 1 on"))
        };
        let depths = each("depths", self.depths, [2, 2, 2, 2])?;
        let reductions = each("sr_ratios", self.sr_ratios, [8, 4, 2, 1])?;
        let hidden_sizes = each("hidden_sizes", self.hidden_sizes, [32, 64, 160, 256])?;
        let patches = each("patch_sizes", self.patch_sizes, [7, 3, 3, 3])?;
        let strides = each("strides", self.strides, [4, 2, 2, 2])?;
        let heads = each("num_attention_heads", self.num_attention_heads, [1, 2, 5, 8])?;
        let mlp_ratios = each("mlp_ratios", self.mlp_ratios, [4, 4, 4, 4])?;
        let stages: Vec<StageConfig> = (0..count)
            .map(|index| StageConfig {
                in_channels: if index == 0 { 3 } else { hidden_sizes[index - 1] },
                hidden_size: hidden_sizes[index],
                layers: depths[index],
                heads: heads[index],
                patch: patches[index],
                stride: strides[index],
                reduction: reductions[index],
                mlp_ratio: mlp_ratios[index],
            })
            .collect();
        if let Some(stage) = stages.iter().find(|stage| !stage.hidden_size.is_multiple_of(stage.heads)) {
            let StageConfig { hidden_size, heads, .. } = stage;
            return Err(format!("hidden_sizes has {hidden_size}, which must be a multiple of its num_attention_heads {heads}"));
        }
        match self.decoder_hidden_size.unwrap_or(256) {
            0 => Err("decoder_hidden_size must be 1 or more".into()),
            _ if count == 0 => Err("num_encoder_blocks must be 1 or more".into()),
            decoder_hidden_size => Ok(SegmenterConfig { labels, stages, decoder_hidden_size }),
        }
    }
}
