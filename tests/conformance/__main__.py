"""Compares the binary with diffusers, job by job: the same files, the same seeds, at most 1 of 255 apart.

    python tests/conformance BINARY stored [--count N]  against the references that are stored, or N of them; needs Python alone
    python tests/conformance BINARY live [--count 60]   against diffusers; the seed rotates, --seed repeats one
    python tests/conformance BINARY drift               whether the stored references are what this script would write now
    python tests/conformance BINARY write               writes them: tests/fixtures/conformance
    python tests/conformance BINARY hostile             what it takes to refuse files that are made to cost; needs Python alone

`live` makes checkpoints, adapters and jobs of its own from the seed; `--count 2000` is the long run. `--psnr 40` compares by the ratio of signal to noise,
in place of 1 of 255: for a GPU, whose settings go through `--set NAME=VALUE` (environment of the binary). Made with what tests/oracle is made with, and
scipy. The binary writes PNG, and inputs are PNG: decoders of other files are compared alone, in crates' and tests' own cases.
"""

import argparse
import filecmp
import importlib.util
import json
import math
import os
import random
import sys
import tempfile
import time
import warnings
from pathlib import Path

import binary
import cases as jobs
import hostile
from files import every_second, read_tensors, write_tensors

HERE = Path(__file__).resolve().parent
STORED = HERE.parent / "fixtures" / "conformance"
LIMIT = 1
# One thread: sums of another order are other sums.
QUIET = {"OMP_NUM_THREADS": "1", "DIFFUSERS_VERBOSITY": "error", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_OFFLINE": "1"}
LIVE_COUNT, STORED_COUNT, STORED_SEED, DRIFT_EVERY = 60, 300, 15, 20


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("binary")
    parser.add_argument("what", choices=["stored", "live", "drift", "write", "hostile"])
    parser.add_argument("--count", type=int)
    parser.add_argument("--seed", type=int, default=int(time.time()) % 1_000_000)
    parser.add_argument("--only", default="", help="the checkpoint of the jobs that are run")
    parser.add_argument("--psnr", type=float)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    options = parser.parse_args()
    options.binary = str(Path(options.binary).resolve())
    options.settings = dict(setting.split("=", 1) for setting in options.set)
    if options.what in ("live", "drift", "write") and importlib.util.find_spec("torch") is None:
        print(f"conformance: {options.what} was left out: torch and diffusers are not installed here")
        return
    os.environ |= QUIET
    warnings.simplefilter("ignore")  # that a checkpoint's schedule is corrected
    sys.path.insert(1, str(HERE.parent / "oracle"))
    sys.exit({"stored": stored, "live": live, "drift": drift, "write": write, "hostile": hostile_files}[options.what](options))


def live(options):
    import checkpoints
    import torch
    from reference import Reference

    count = options.count or LIVE_COUNT
    print(f"seed {options.seed}: repeat it with --seed {options.seed} --count {count}")
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch) / "made"
        checkpoints.write(options.seed, directory)
        made, met = jobs.cases(count, options.seed)
        made = [case for case in made if options.only in case["checkpoint"]]
        print(f"{len(made)} jobs, in which {met} pairs of settings meet")
        reference = Reference(directory)
        expected = {case["key"]: referred(reference, case) for case in made}
        return compared(made, expected, directory, options, tuple, lambda case: reference.images(case, torch.float64))


def hostile_files(options):
    return hostile.table(options.binary, HERE.parent.parent / "models")


def stored(options):
    made = json.loads((STORED / "jobs.json").read_text())
    made = random.Random(STORED_SEED).sample(made, options.count) if options.count else made
    references = read_tensors(STORED / "images.safetensors")
    expected = {}
    for case in made:
        found = [references[f"{case['key']}/{n}"] for n in range(case["job"].get("num_images", 1))]
        expected[case["key"]] = [(*shape, pixels) for shape, pixels in found]
    return compared(made, expected, STORED, options, kept, lambda case: expected[case["key"]])


def write(_options):
    import checkpoints

    checkpoints.write(STORED_SEED, STORED)
    made, met = jobs.cases(STORED_COUNT, STORED_SEED)
    expected = in_double(made, STORED)
    # Single precision has an image of its own for some jobs, such as those at noise levels of 20,000: these decide nothing.
    single = in_single(made, STORED)
    made = [case for case in made if expected[case["key"]] and single[case["key"]] and agree(single[case["key"]], expected[case["key"]])]
    images = {f"{case['key']}/{n}": ([width, height], every_second(width, height, rgb))
              for case in made for n, (width, height, rgb) in enumerate(expected[case["key"]])}  # fmt: skip
    write_tensors(STORED / "images.safetensors", images)
    (STORED / "jobs.json").write_text("[\n" + ",\n".join(json.dumps(case) for case in made) + "\n]\n")
    size = sum(path.stat().st_size for path in STORED.rglob("*") if path.is_file())
    print(f"{len(made)} jobs, in which {met} pairs of settings meet; {size / 1e6:.2f} MB")
    return 0


def drift(_options):
    """All files, and a sample of the references, made again."""
    import checkpoints

    stored_jobs = json.loads((STORED / "jobs.json").read_text())
    keys = {case["key"] for case in stored_jobs}
    made = [case for case in jobs.cases(STORED_COUNT, STORED_SEED)[0] if case["key"] in keys]
    old = [] if stored_jobs == json.loads(json.dumps(made)) else ["jobs.json"]
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch) / "made"
        checkpoints.write(STORED_SEED, directory)
        for path in (path for path in sorted(directory.rglob("*")) if path.is_file()):
            name = path.relative_to(directory)
            if not ((STORED / name).is_file() and (same_tensors if path.suffix == ".safetensors" else filecmp.cmp)(path, STORED / name)):
                old.append(str(name))
        sample = made[::DRIFT_EVERY]
        references, expected = read_tensors(STORED / "images.safetensors"), in_double(sample, directory)
    for key, images in expected.items():
        if images is None or any(furthest(kept(image)[2], references[f"{key}/{n}"][1]) > LIMIT for n, image in enumerate(images)):
            old.append(f"images.safetensors, {key}")
    print(f"{len(sample)} of {len(made)} references made again")
    for name in old:
        print(f"old: {name}; write them anew: python tests/conformance BINARY write")
    return 1 if old else 0


def same_tensors(path, other):
    """But for the last bits: torch draws and rounds by the vectors that a processor has."""
    import torch
    from safetensors import safe_open

    with safe_open(path, "pt") as ours, safe_open(other, "pt") as theirs:
        if (settings(ours.metadata()), sorted(ours.keys())) != (settings(theirs.metadata()), sorted(theirs.keys())):
            return False
        pairs = [(ours.get_tensor(name), theirs.get_tensor(name)) for name in ours.keys()]
    same = lambda a, b: (a.dtype, a.shape) == (b.dtype, b.shape) and torch.allclose(a.double(), b.double(), rtol=0.01, atol=1e-6)  # noqa: E731
    return all(same(a, b) for a, b in pairs)


def settings(metadata):
    """PEFT writes sets, such as the names of modules, as lists in the order of this process's hashes."""
    def ordered(value):
        if isinstance(value, dict):
            return {key: ordered(inner) for key, inner in value.items()}
        return sorted(value, key=str) if isinstance(value, list) else value

    def read(text):
        try:
            return ordered(json.loads(text))
        except json.JSONDecodeError:
            return text

    return {key: read(text) for key, text in (metadata or {}).items()}


def in_double(made, directory):
    """Images by key, in double precision: what is stored is to be the same on every machine."""
    import torch
    from reference import Reference

    reference = Reference(directory)
    return {case["key"]: referred(reference, case, torch.float64) for case in made}


def in_single(made, directory):
    from reference import Reference

    reference = Reference(directory)
    return {case["key"]: referred(reference, case) for case in made}


def agree(single, double):
    return Distance(single, double).fits(None)


def referred(reference, case, *dtype):
    """What diffusers makes of a case; none where it fails, which is told, or comes to NaN."""
    try:
        return reference.images(case, *dtype)
    except Exception as error:
        print(f"diffusers does not run {json.dumps(case)}: {error!r}")
        return None


def kept(image):
    width, height, rgb = image
    return (width, height, every_second(width, height, rgb))


def furthest(ours, theirs):
    return max((abs(a - b) for a, b in zip(ours, theirs, strict=True)), default=0)


def psnr(ours, theirs):
    square = sum((a - b) ** 2 for a, b in zip(ours, theirs, strict=True)) / len(ours)
    return math.inf if square == 0 else 10 * math.log10(255**2 / square)


def ran(made, directory, options):
    """The binary's images by key."""
    images = {}
    for checkpoint in dict.fromkeys(case["checkpoint"] for case in made):
        mine = {f"c{case['key']}": case["job"] for case in made if case["checkpoint"] == checkpoint}
        edit = checkpoint == "edit"
        models, model = (HERE.parent.parent / "models", "tiny-edit") if edit else (directory / "models", checkpoint)
        more = {"ATELIER__MODEL__MODES": "[base, lora, fp8]"} if edit else {}
        inputs = sorted((directory / "inputs").iterdir())
        images |= binary.run(options.binary, models, model, mine, inputs, {"ATELIER__ENGINE__DTYPE": "f32"} | more | options.settings)
    return {key.removeprefix("c"): all_of for key, all_of in images.items()}


class Distance:
    """How far images are from those of diffusers: of all of a job's images the worst."""

    def __init__(self, ours, theirs):
        self.sizes = [image[:2] for image in ours] == [image[:2] for image in theirs]
        pairs = [(a[2], b[2]) for a, b in zip(ours, theirs)] if self.sizes else []
        self.furthest = max((furthest(a, b) for a, b in pairs), default=255)
        self.mean = max((sum(abs(x - y) for x, y in zip(a, b)) / len(a) for a, b in pairs), default=255)
        self.psnr = min((psnr(a, b) for a, b in pairs), default=0)

    def fits(self, least_psnr):
        return self.sizes and (self.furthest <= LIMIT if least_psnr is None else self.psnr >= least_psnr)


def compared(made, expected, directory, options, kept_of, in_double_precision):
    """Runs the binary and prints the table; the exit code. Where single precision decides, double precision is asked: diffusers rounds as well."""
    images, wrong, families, by_double, undecided = ran(made, directory, options), [], {}, 0, 0
    finite = [case for case in made if expected[case["key"]]]
    for case in finite:
        ours = [kept_of(image) for image in images.get(case["key"], [])]
        distance = Distance(ours, expected[case["key"]])
        if ours and not distance.fits(options.psnr):
            double = in_double_precision(case)
            if double is None or not agree(expected[case["key"]], double):
                undecided += 1
                continue
            distance = Distance(ours, double)
            by_double += distance.fits(options.psnr)
        families.setdefault((case["checkpoint"], case["family"]), []).append(distance)
        if not distance.fits(options.psnr):
            wrong.append((case, f"{distance.furthest} of 255 apart, {distance.psnr:.1f} dB" if ours else "no image"))
    print(f"{'checkpoint':12}{'family':12}{'runs':>6}{'max':>6}{'mean':>9}{'least dB':>10}")
    for (checkpoint, family), runs in sorted(families.items()):
        mean, least = sum(run.mean for run in runs) / len(runs), min(run.psnr for run in runs)
        print(f"{checkpoint:12}{family:12}{len(runs):6}{max(run.furthest for run in runs):6}{mean:9.4f}{least:10.1f}")
    for case, problem in wrong:
        print(f"WRONG {case['key']}: {problem}: {json.dumps(case)}")
    decided = len(finite) - undecided
    print(f"{decided - len(wrong)} of {decided} jobs agree, {by_double} of them with double precision alone")
    if decided < len(made):
        print(f"left out: {len(made) - len(finite)} where diffusers fails or comes to NaN, {undecided} where its single precision decides the image")
    return 1 if wrong or decided < 0.95 * len(made) else 0


if __name__ == "__main__":
    main()
