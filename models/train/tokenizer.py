"""Trains the CLIP byte-pair tokenizer of tiny-sd on the world's own words and writes it in the two formats in use.

    python tokenizer.py MODEL_DIR    under a second

CLIP's layout: 256 bytes, the same 256 ending a word (`</w>`), one token a merge, then <|startoftext|> and <|endoftext|>.
All bytes are in the vocabulary, so any text has tokens; every word of the world is one token.
"""

import json
import sys
from collections import Counter
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from world import COLOURS, OBJECTS, PATTERNS, PLACES

START, END = "<|startoftext|>", "<|endoftext|>"
MAX_LENGTH = 77
SPLIT = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
OTHER_WORDS = (
    "a an the of in on at under with and from by to one two picture illustration drawing photo painting style ink neon sunset "
    "pair shirt t dots stripes checks small large big little cute bright dark colour color colourful black white line glowing "
    "outline silhouette evening light background wearing person no blurry bad ugly poster sticker icon flat"
).split()


def byte_letters():
    """GPT-2's printable letter for every byte, in CLIP's order."""
    kept = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    letters = {b: chr(b) for b in kept}
    for n, b in enumerate(b for b in range(256) if b not in letters):
        letters[b] = chr(256 + n)
    return letters


def train_merges(words):
    """Merges the most frequent neighbours until every word is one token; ties go to the first in the alphabet."""
    pieces = [tuple(w[:-1]) + (w[-1] + "</w>",) for w in sorted(set(words))]
    merges = []
    while pairs := Counter(p for word in pieces for p in zip(word, word[1:])):
        best = min(pairs, key=lambda p: (-pairs[p], p))
        merges.append(best)
        for i, word in enumerate(pieces):
            out, k = [], 0
            while k < len(word):
                joined = word[k : k + 2] == best
                out.append("".join(best) if joined else word[k])
                k += 2 if joined else 1
            pieces[i] = tuple(out)
    return merges


def build():
    places = " ".join(p for phrases in PLACES.values() for p in phrases).split()
    words = [w for o in OBJECTS for w in o.split("-")] + list(COLOURS) + PATTERNS + list(PLACES) + places + OTHER_WORDS
    letters = list(byte_letters().values())
    merges = train_merges(words)
    tokens = letters + [c + "</w>" for c in letters] + list(dict.fromkeys("".join(m) for m in merges)) + [START, END]
    vocab = {t: i for i, t in enumerate(tokens)}
    tokenizer = Tokenizer(
        models.BPE(vocab, merges, unk_token=END, continuing_subword_prefix="", end_of_word_suffix="</w>", fuse_unk=False)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(SPLIT), "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing((END, vocab[END]), (START, vocab[START]), False, False)
    tokenizer.add_special_tokens([START, END])
    return tokenizer, vocab, merges


def write(directory):
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer, vocab, merges = build()
    tokenizer.save(str(directory / "tokenizer.json"), pretty=False)
    (directory / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
    (directory / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    (directory / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")
    config = special | {
        "tokenizer_class": "CLIPTokenizer", "model_max_length": MAX_LENGTH, "do_lower_case": True,
        "add_prefix_space": False, "errors": "replace", "clean_up_tokenization_spaces": True,
    }  # fmt: skip
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return tokenizer, len(vocab)


def encode(tokenizer, texts):
    """Token ids as the pipeline makes them: truncated and padded with <|endoftext|> to 77."""
    tokenizer.enable_truncation(MAX_LENGTH)
    tokenizer.enable_padding(length=MAX_LENGTH, pad_id=tokenizer.token_to_id(END), pad_token=END)
    return [e.ids for e in tokenizer.encode_batch(texts)]


def main():
    directory = Path(sys.argv[1]) / "tokenizer"
    tokenizer, size = write(directory)
    print(size, "tokens;", tokenizer.encode("An orange striped t-shirt on the beach").tokens)
    from transformers import CLIPTokenizer

    theirs = CLIPTokenizer.from_pretrained(directory)
    texts = ["", "a red mug", "Teal  dotted T-shirt, at night!", "naïve 日本語 🙂 don't 123", "x" * 300, "a pair of trousers\n\tunder the stars"]
    for text, ids in zip(texts, encode(tokenizer, texts)):
        assert theirs(text, padding="max_length", truncation=True, max_length=MAX_LENGTH).input_ids == ids, text
    print("transformers agrees")


if __name__ == "__main__":
    main()
