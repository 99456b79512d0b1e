"""Writes tests/fixtures/sd/weighted_prompts.safetensors: text states by AUTOMATIC1111's rules, and by lpw's where they differ from it on SD2.

    python tests/oracle/weighted_prompts.py    seconds on a CPU, after make_fixtures.py; the result is committed

AUTOMATIC1111 is no package. Its formula stands here (modules/sd_hijack_clip.py, modules/sd_emphasis.py: `EmphasisOriginal`): every chunk's
states times the weights of their tokens, then the mean of that chunk restored. Which text lies in which chunk with which weight is
written by hand, so that the reading of brackets, BREAK and commas is tested too.
"""

import torch
from diffusers import StableDiffusionPipeline
from make_fixtures import HERE
from safetensors.torch import save_file

ROOM = 75
# Name: prompt as written, its chunks as (text, weight) pairs.
CASES = {
    "blanks": ("a (red: 1.4) cat, (dog :0.5)", [[("a ", 1.0), ("red", 1.4), (" cat, ", 1.0), ("dog ", 0.5)]]),
    "break": ("a [red] cat BREAK (blue: 1.4) dog", [[("a ", 1.0), ("red", 1 / 1.1), (" cat", 1.0)], [("blue", 1.4), (" dog", 1.0)]]),
    "comma": ("cat " * 60 + ", (dog:1.2) " + "sea " * 30, [[("cat " * 60 + ",", 1.0)], [("dog", 1.2), ("sea " * 30, 1.0)]]),
    "far_comma": ("cat " * 50 + ", (dog:1.2) " + "sea " * 30, [[("cat " * 50 + ",", 1.0), ("dog", 1.2), ("sea " * 23, 1.0)], [("sea " * 7, 1.0)]]),
    "two_chunks": ("a bright (red: 1.5) " + "cat " * 80 + "(and a dog:0.25)",
                   [[("a bright ", 1.0), ("red", 1.5), ("cat " * 72, 1.0)], [("cat " * 8, 1.0), ("and a dog", 0.25)]]),
    "word": ("a " * 73 + "(<old-mill>:1.3) cat", [[("a " * 73, 1.0)], [("<old-mill>", 1.3), (" cat", 1.0)]]),
}  # fmt: skip
NEGATIVE = ("storm, (dog: 1.2)", [[("storm, ", 1.0), ("dog", 1.2)]])
LPW = ("a (red:1.4) cat " + "sea " * 90, [("a ", 1.0), ("red", 1.4), (" cat " + "sea " * 90, 1.0)])
TOO_LONG = ("cat " * 100 + "(dog:1.5) " * 100 + "sea " * 60, [("cat " * 100, 1.0)] + [("dog", 1.5)] * 100 + [("sea " * 25, 1.0)])


def ids(pipeline, text):
    return pipeline.tokenizer(pipeline.maybe_convert_prompt(text, pipeline.tokenizer)).input_ids[1:-1]


def tokens(pipeline, pairs):
    return [(token, weight) for text, weight in pairs for token in ids(pipeline, text)]


def restored(states, weights):
    weighted = states * torch.tensor(weights)[None, :, None]
    return weighted * (states.mean() / weighted.mean())


def automatic(pipeline, chunks):
    bos, eos, pad = pipeline.tokenizer.bos_token_id, pipeline.tokenizer.eos_token_id, pipeline.tokenizer.pad_token_id
    out = []
    for chunk in chunks:
        text = tokens(pipeline, chunk)
        assert len(text) <= ROOM
        padded = [bos, *(token for token, _ in text), eos] + [pad] * (ROOM - len(text))
        weights = [1.0, *(weight for _, weight in text)] + [1.0] * (ROOM + 1 - len(text))
        out.append(restored(pipeline.text_encoder(torch.tensor([padded]))[0], weights))
    return torch.cat(out, 1)


def lpw(pipeline, pairs):
    """get_weighted_text_embeddings of diffusers' examples/community/lpw_stable_diffusion.py, with its defaults, of one prompt."""
    bos, eos, pad = pipeline.tokenizer.bos_token_id, pipeline.tokenizer.eos_token_id, pipeline.tokenizer.pad_token_id
    text = tokens(pipeline, pairs)[: 3 * ROOM]
    chunks = max(1, -(-len(text) // ROOM))
    states, weights = [], []
    for chunk in range(chunks):
        part = text[chunk * ROOM : (chunk + 1) * ROOM]
        padded = [bos, *(token for token, _ in part)] + [pad] * (ROOM - len(part)) + [eos]
        states.append(pipeline.text_encoder(torch.tensor([padded]))[0])
        weights += [1.0, *(weight for _, weight in part)] + [1.0] * (ROOM + 1 - len(part))
    return restored(torch.cat(states, 1), weights)


@torch.no_grad()
def main():
    out = {}
    for model in ("sd15", "sd2"):
        pipeline = StableDiffusionPipeline.from_pretrained(HERE / model, torch_dtype=torch.float32, safety_checker=None)
        out[f"{model}/lpw"] = lpw(pipeline, LPW[1])
        if model == "sd15":
            out[f"{model}/lpw_too_long"] = lpw(pipeline, TOO_LONG[1])
            pipeline.load_textual_inversion(HERE / "embeddings", weight_name="mill.safetensors", token="<old-mill>")
        for name, (_, chunks) in CASES.items():
            if model == "sd2" and name not in ("blanks", "comma"):
                continue
            negative = NEGATIVE[1] + [[]] * (len(chunks) - 1)
            out[f"{model}/{name}"] = torch.cat([automatic(pipeline, negative), automatic(pipeline, chunks)])
    save_file({key: value.contiguous() for key, value in out.items()}, HERE / "weighted_prompts.safetensors")


if __name__ == "__main__":
    main()
