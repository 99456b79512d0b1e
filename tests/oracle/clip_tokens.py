"""Writes tests/fixtures/tokenizers.json: what transformers' CLIPTokenizer makes of prompts, over the small files as they come in the wild.

    python tests/oracle/clip_tokens.py    seconds, after make_fixtures.py; the result is committed

Every case is the tokenizer of tests/fixtures/sd/sd15 with files removed, written anew, or sections of tokenizer.json replaced.
"""

import json
import shutil
import tempfile
from pathlib import Path

from transformers import CLIPTokenizer

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
START, END = "<|startoftext|>", "<|endoftext|>"
PROMPTS = ["a red cat! by the SEA", "", "wow!! a!b", " ".join(["cat"] * 90), "a <|endoftext|> b", "a <sks> cat", "the<SKS> and  <sks>s"]


def added(content, normalized):
    return {"content": content, "lstrip": False, "normalized": normalized, "rstrip": False, "single_word": False}


# As the official repositories have them: 1.5's and 2.1's.
MAP_1 = {"bos_token": added(START, True), "eos_token": added(END, True), "pad_token": END, "unk_token": added(END, True)}
MAP_2 = MAP_1 | {"pad_token": "!"}
CONFIG = {"bos_token": START, "eos_token": END, "unk_token": END, "model_max_length": 77, "tokenizer_class": "CLIPTokenizer"}
DECODER = {"567": added(START, False) | {"special": True}, "568": added(END, False) | {"special": True}}
SKS = added("<sks>", True) | {"special": False}
PADDING = {"strategy": {"Fixed": 77}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 568, "pad_type_id": 0, "pad_token": END}
TRUNCATION = {"direction": "Right", "max_length": 12, "strategy": "LongestFirst", "stride": 0}

CASES = {
    "sd2: the map alone has !": {"remove": ["tokenizer.json"], "write": {"special_tokens_map.json": MAP_2, "tokenizer_config.json": CONFIG | {"pad_token": END}}},
    "the map's pad token is an object": {"remove": ["tokenizer.json"], "write": {"special_tokens_map.json": MAP_1 | {"pad_token": added("!", False)}, "tokenizer_config.json": CONFIG}},
    "sd2 with tokenizer.json": {"write": {"special_tokens_map.json": MAP_2, "tokenizer_config.json": CONFIG | {"pad_token": END}}},
    "added_tokens_decoder: the map is not read": {"write": {"special_tokens_map.json": MAP_2, "tokenizer_config.json": CONFIG | {"pad_token": END, "added_tokens_decoder": DECODER}}},
    "added_tokens_decoder and !": {"write": {"special_tokens_map.json": MAP_1, "tokenizer_config.json": CONFIG | {"pad_token": "!", "added_tokens_decoder": DECODER}}},
    "no pad_token": {"write": {"tokenizer_config.json": CONFIG}},
    "no tokenizer_config.json": {"remove": ["tokenizer_config.json"]},
    "no tokenizer_config.json nor tokenizer.json": {"remove": ["tokenizer_config.json", "tokenizer.json"]},
    "no tokenizer_config.json, a map with !": {"remove": ["tokenizer_config.json", "tokenizer.json"], "write": {"special_tokens_map.json": MAP_2}},
    "a word in added_tokens.json": {"remove": ["tokenizer.json"], "write": {"added_tokens.json": {"<sks>": 569}}},
    "the same beside tokenizer.json": {"write": {"added_tokens.json": {"<sks>": 569}}},
    "a word in added_tokens_decoder": {"write": {"tokenizer_config.json": CONFIG | {"pad_token": END, "added_tokens_decoder": DECODER | {"569": SKS}}}},
    "the same without tokenizer.json": {"remove": ["tokenizer.json"], "write": {"tokenizer_config.json": CONFIG | {"pad_token": END, "added_tokens_decoder": DECODER | {"569": SKS}}}},
    "one that is special and takes blanks": {"write": {"tokenizer_config.json": CONFIG | {"pad_token": END, "added_tokens_decoder": DECODER | {"569": SKS | {"special": True, "normalized": False, "lstrip": True, "single_word": True}}}}},
    "padding": {"patch": {"padding": PADDING}},
    "truncation": {"patch": {"truncation": TRUNCATION}},
    "padding and truncation": {"patch": {"padding": PADDING, "truncation": TRUNCATION}},
}  # fmt: skip


def main():
    out = []
    for name, case in CASES.items():
        with tempfile.TemporaryDirectory() as directory:
            directory = Path(directory) / "tokenizer"
            shutil.copytree(FIXTURES / "sd/sd15/tokenizer", directory)
            for file in case.get("remove", []):
                (directory / file).unlink()
            for file, content in case.get("write", {}).items():
                (directory / file).write_text(json.dumps(content))
            if patch := case.get("patch"):
                file = directory / "tokenizer.json"
                file.write_text(json.dumps(json.loads(file.read_text()) | patch))
            tokenizer = CLIPTokenizer.from_pretrained(directory)
            ids = [tokenizer(p, padding="max_length", max_length=77, truncation=True).input_ids for p in PROMPTS]
            # Of a text without start and end, as weighted prompts are read.
            bare = [tokenizer(p).input_ids[1:-1] for p in PROMPTS]
        out.append({"name": name, "remove": [], "write": {}, "patch": {}} | case | {"ids": ids, "bare": bare})
    (FIXTURES / "tokenizers.json").write_text(json.dumps({"prompts": PROMPTS, "cases": out}) + "\n")
    for case in out:
        print(case["name"], case["ids"][0][:12])


if __name__ == "__main__":
    main()
