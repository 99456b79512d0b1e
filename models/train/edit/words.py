"""Qwen2's byte-level BPE tokenizer over the words that tiny-edit is ever told, and the processor around it.

    python words.py MODEL_DIR       writes tokenizer/ and processor/, under a second

Every byte is in the vocabulary, so any text has tokens. Every word of the pipeline's template is one token, as in the real
tokenizer: the pipeline drops the first 64 tokens of what it encodes, and that must be the same words here.
"""

import json
import sys
from pathlib import Path

from diffusers import QwenImageEditPlusPipeline
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers import AddedToken, Qwen2Tokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
DROPPED = 64
INSTRUCTION = (
    "Dress the person in image 1 in the garment of image 2. If a part of image 1 is green, it only tells which part of the body is "
    "meant. Keep the garment's colour, pattern, texture and cut. Keep the person's face, hair, skin, body, pose and the background "
    "as they are."
)
"""What a job is painted by that says nothing itself."""
OTHERS = (
    "Dress the person in image 1 in the garments of images 2 to 5. Picture 1: Picture 2: Picture 3: Picture 4: Picture 5: a red orange "
    "yellow green teal blue purple pink plain striped dotted checked t-shirt dress woman man wearing put on, no bad blurry low quality"
)


def template():
    """The pipeline's own words around a prompt."""
    return QwenImageEditPlusPipeline(None, None, None, None, None, None).prompt_template_encode


def new_tokenizer():
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=4000, min_frequency=1, initial_alphabet=alphabet, show_progress=False)
    plain = template()
    for token in SPECIAL:
        plain = plain.replace(token, "")
    words.train_from_iterator([plain, INSTRUCTION, OTHERS], trainer)
    learned = json.loads(words.to_str())["model"]
    merges = [tuple(m) for m in learned["merges"]]
    tokenizer = Qwen2Tokenizer(vocab=learned["vocab"], merges=merges)
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return tokenizer


def new_image_processor():
    return Qwen2VLImageProcessorPil(size={"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 16384})


def write(folder):
    """The real checkpoint's files: `tokenizer/` has no tokenizer.json, `processor/` has."""
    tokenizer = new_tokenizer()
    tokenizer.save_pretrained(folder / "tokenizer")
    tokenizer.save_pretrained(folder / "processor")
    model = json.loads((folder / "tokenizer" / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer" / "tokenizer.json").unlink()
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False))
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{m}\n" for m in merges))
    config = folder / "tokenizer" / "tokenizer_config.json"
    added = {i: {"content": t.content, "special": True} for i, t in tokenizer.added_tokens_decoder.items()}
    config.write_text(json.dumps(json.loads(config.read_text()) | {"added_tokens_decoder": added}, indent=2) + "\n")
    new_image_processor().save_pretrained(folder / "processor")
    return tokenizer


def main():
    tokenizer = write(Path(sys.argv[1]))
    head = template().split("{}")[0]
    assert len(tokenizer(head).input_ids) == DROPPED, tokenizer.tokenize(head)
    assert tokenizer.decode(tokenizer(INSTRUCTION + " naïve 日本").input_ids) == INSTRUCTION + " naïve 日本"
    print(len(tokenizer), "tokens; the instruction has", len(tokenizer(INSTRUCTION).input_ids))


if __name__ == "__main__":
    main()
