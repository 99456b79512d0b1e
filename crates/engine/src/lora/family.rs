//! Which models a LoRA file was trained on, as far as its keys say: for the words of a refusal.

use super::LoraError;
use crate::tensor_file::TensorFile;
use crate::weights::Shapes;

const SD: &str = "Stable Diffusion 1 or 2";
const XL: &str = "Stable Diffusion XL";
const FLUX: &str = "FLUX.1";
const FLUX_2: &str = "FLUX.2";
/// Of a file that adapts no layer by which the two are told apart.
const ANY_FLUX: &str = "FLUX.1 or FLUX.2";
const QWEN: &str = "Qwen-Image";
const Z_IMAGE: &str = "Z-Image";

/// Parts of keys, dots written as underscores, that the files of one family alone have, or the first of those that are asked for.
const MARKS: [(&str, &str); 21] = [
    ("_to_qkv_mlp_proj", FLUX_2),
    ("_stream_modulation_", FLUX_2),
    ("_linear_in", FLUX_2),
    ("double_blocks_", ANY_FLUX),
    ("single_blocks_", ANY_FLUX),
    ("single_transformer_blocks_", FLUX),
    ("_norm1_context_", FLUX),
    ("_attention_to_q", Z_IMAGE),
    ("_attention_qkv", Z_IMAGE),
    ("_feed_forward_w1", Z_IMAGE),
    ("_add_q_proj", QWEN),
    ("_img_mlp_", QWEN),
    ("lora_te2_", XL),
    ("text_encoder_2_", XL),
    ("label_emb_", XL),
    ("add_embedding_", XL),
    ("clip_g", XL),
    ("down_blocks_0_attentions_", SD),
    ("input_blocks_1_1_", SD),
    ("up_blocks_3_attentions_", SD),
    ("output_blocks_11_1_", SD),
];
/// FLUX's layers whose outputs are so many times as wide as their inputs in FLUX.1; in FLUX.2 they are 9 and 6 times.
const WIDENING: [(&str, usize); 3] = [("_linear1", 7), ("_img_mlp_0", 4), ("_txt_mlp_0", 4)];
/// Widths of the text that attention looks at.
const WIDTHS: [(usize, &str); 3] = [(768, SD), (1024, SD), (2048, XL)];

/// `error`, with the family of the file where that is another than the model's.
pub(super) fn explained(error: LoraError, file: &TensorFile, shapes: &Shapes) -> LoraError {
    let about_family = matches!(error, LoraError::Unmatched { .. } | LoraError::Shape { .. });
    match (of_file(file), of_model(shapes)) {
        (Some(found), Some(expected)) if about_family && !found.contains(expected) => {
            LoraError::OtherFamily { found, expected, cause: Box::new(error) }
        }
        _ => error,
    }
}

fn of_model(shapes: &Shapes) -> Option<&'static str> {
    let has = |component: &str| shapes.keys().any(|name| name.split('.').next() == Some(component));
    match (has("unet"), has("text_encoder_2"), has("transformer")) {
        (true, true, _) => Some(XL),
        (true, false, _) => Some(SD),
        (false, _, true) if shapes.contains_key("transformer.x_pad_token") => Some(Z_IMAGE),
        (false, _, true) if shapes.contains_key("transformer.single_stream_modulation.linear.weight") => Some(FLUX_2),
        (false, _, true) if shapes.contains_key("transformer.context_embedder.weight") => Some(FLUX),
        (false, _, true) => Some(QWEN),
        _ => None,
    }
}

fn of_file(file: &TensorFile) -> Option<&'static str> {
    let keys: Vec<String> = file.tensors().map(|(key, _)| key).collect();
    let flat: Vec<String> = keys.iter().map(|key| key.replace('.', "_")).collect();
    let by_name = MARKS.iter().find(|(mark, _)| flat.iter().any(|key| key.contains(mark))).map(|(_, family)| *family);
    let by_name = by_name.map(|family| if family == ANY_FLUX { of_flux(file, &keys) } else { family });
    by_name.or_else(|| flat.iter().any(|key| is_of_deep_transformer(key)).then_some(XL)).or_else(|| {
        let of_text = keys.iter().filter(|key| key.contains("attn2") && (key.contains("to_k") || key.contains("to_v")));
        let mut widths = of_text.filter_map(|key| file.info(key)?.shape.get(1).copied());
        widths.find_map(|width| WIDTHS.iter().find(|(known, _)| *known == width).map(|(_, family)| *family))
    })
}

/// Which FLUX a file under the names of the first release is of: both have the same ones.
fn of_flux(file: &TensorFile, keys: &[String]) -> &'static str {
    let sides = keys.iter().find_map(|key| {
        let (module, end) =
            [".lora_up.weight", ".lora_B.weight"].iter().find_map(|end| Some((key.strip_suffix(end)?, *end)))?;
        let flat = module.replace('.', "_");
        let (_, times) = WIDENING.iter().find(|(layer, _)| flat.ends_with(layer))?;
        let down = end.replace("_up", "_down").replace("_B", "_A");
        let outputs = *file.info(key)?.shape.first()?;
        let inputs = *file.info(&format!("{module}{down}"))?.shape.get(1)?;
        Some(outputs == times * inputs)
    });
    sides.map_or(ANY_FLUX, |is_first| if is_first { FLUX } else { FLUX_2 })
}

/// Whether it is of a transformer of several blocks in a UNet, which SDXL alone has.
fn is_of_deep_transformer(key: &str) -> bool {
    const BLOCKS: &str = "_transformer_blocks_";
    let of_unet = ["attentions_", "input_blocks_", "middle_block_", "output_blocks_"].iter().any(|part| key.contains(part));
    let number = key.split_once(BLOCKS).and_then(|(_, rest)| rest.split('_').next()?.parse::<usize>().ok());
    of_unet && number.is_some_and(|number| number > 0)
}
