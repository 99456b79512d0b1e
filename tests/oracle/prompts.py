"""What long and weighted prompts and textual inversions come to; called by make_fixtures.py.

Weights are applied as diffusers' community pipeline `lpw_stable_diffusion` applies them, whose formula stands here: states of the last
layer times the weight of their token, then the mean of all states restored. It is in no package, and compel, which is, has another
syntax. Which text has which weight is written by hand, so that the reading of brackets is tested too.
"""

import torch
from safetensors.torch import save_file

ROOM = 75
WEIGHTED = {
    "weights": [("a ", 1.0), ("small", 1.3), (" ", 1.0), ("lighthouse", 1 / 1.1), (" over ", 1.0), ("the sea", 1.1)],
    "escaped": [("a (red) cat: [old", 1.0), (" dog", 0.4)],
    "two_chunks": [("a bright ", 1.0), ("red ", 1.5), ("cat " * 80, 1.0), ("and a dog", 0.25)],
}
LONG = " ".join(["paper", "sea", "over", "a", "storm"] * 40)
NEGATIVE = "storm, dog"
# In small letters: of a word with capitals diffusers 0.42 on transformers 5 takes the first vector only, since it looks for the word as the
# tokenizer writes it.
INVERTED = {
    "one": ("a <mood> lighthouse", "storm"),
    "several": ("a <mood> cat over <old-mill>, and easydusk", "<old-mill> dog"),
    "cut": ("a " * 73 + "<old-mill>", ""),
}


def weighted(pipeline, text, negative):
    """`text`: pairs of text and weight; returns (2, chunks · 77, hidden), the negative one first."""
    tokenizer, encoder = pipeline.tokenizer, pipeline.text_encoder
    rows = []
    for pairs in (negative, text):
        ids = [(token, weight) for words, weight in pairs for token in tokenizer(words).input_ids[1:-1]]
        rows.append(ids)
    chunks = max(1, -(-max(map(len, rows)) // ROOM))
    out = []
    for ids in rows:
        states, weights = [], []
        for chunk in range(chunks):
            part = ids[chunk * ROOM : (chunk + 1) * ROOM]
            padded = [tokenizer.bos_token_id, *(token for token, _ in part), tokenizer.eos_token_id]
            padded += [tokenizer.pad_token_id] * (ROOM + 2 - len(padded))
            states.append(encoder(torch.tensor([padded]))[0])
            weights += [1.0, *(weight for _, weight in part)] + [1.0] * (ROOM + 1 - len(part))
        states = torch.cat(states, 1)
        before = states.mean((-2, -1), keepdim=True)
        states = states * torch.tensor(weights)[None, :, None]
        out.append(states * (before / states.mean((-2, -1), keepdim=True)))
    return torch.cat(out)


def write(pipeline, normals, directory):
    out = {"long": weighted(pipeline, [(LONG, 1.0)], [(NEGATIVE, 1.0)])}
    for name, pairs in WEIGHTED.items():
        out[name] = weighted(pipeline, pairs, [(NEGATIVE, 1.0)])

    files = directory / "embeddings"
    files.mkdir()
    save_file({"<mood>": normals((24,), 2100)}, files / "mood.safetensors")
    save_file({"<another-name>": normals((3, 24), 2101)}, files / "mill.safetensors")
    save_file({"emb_params": normals((2, 24), 2102).half()}, files / "a1111.safetensors")
    for token, file in (("<mood>", "mood"), ("<old-mill>", "mill"), ("easydusk", "a1111")):
        pipeline.load_textual_inversion(files, weight_name=f"{file}.safetensors", token=token)
    for name, (prompt, negative) in INVERTED.items():
        positive, negative = pipeline.encode_prompt(prompt, "cpu", 1, True, negative_prompt=negative)
        out[f"inverted/{name}"] = torch.cat([negative, positive])
    pipeline.unload_textual_inversion()
    save_file({key: value.contiguous() for key, value in out.items()}, directory / "prompts.safetensors")
