"""What step caching gains, and what it costs: the time of a generation against the same one without, and how far the images are from each other.

    python bench/step_cache.py [--binary target/release/atelier] [--models DIR --model NAME] [--note TEXT]    needs Python alone

The bundled models without other words: tiny-sd in 20 and 50 steps, tiny-edit in its 40. Another manifest's model by its name: what its family takes is asked
for. Each job runs three times in one process, in turns with the one without; the middle time counts. PSNR is over all images of a setting.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from report import cpu, report, row

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests/conformance"))
from binary import environment  # noqa: E402
from bucket import NAME, Bucket  # noqa: E402
from files import png_pixels  # noqa: E402

ROUNDS = 3
INTERVALS = [{"interval": interval} for interval in (2, 3, 5)]
THRESHOLDS = [{"threshold": threshold} for threshold in (0.05, 0.1, 0.2, 0.4)]
PROMPTS = ["a red striped mug on the beach", "a blue cat in a meadow", "a green t-shirt in a room"]
PERSON, GARMENT = ROOT / "events/images/person.png", ROOT / "events/images/garment.png"


def psnr(ours, theirs):
    """In dB, of values from 0 to 255."""
    square = sum((a - b) ** 2 for a, b in zip(ours, theirs, strict=True)) / len(ours)
    return math.inf if square == 0 else 10 * math.log10(255**2 / square)


def generations(steps):
    return [{"prompt": prompt, "seed": 40 + place, "steps": steps} for place, prompt in enumerate(PROMPTS)]


def tryons():
    images = {"person": f"s3://{NAME}/files/{PERSON.name}", "garments": [f"s3://{NAME}/files/{GARMENT.name}"]}
    return [{"task": "tryon", "mode": "base", "steps": 40, "seed": seed, **images} for seed in (1, 2)]


def run(options, models, model, jobs, settings):
    """Milliseconds of step `infer`, and pixels, of each job."""
    bucket = Bucket()
    bucket.objects |= {f"files/{path.name}": path.read_bytes() for path in (PERSON, GARMENT)}
    # One event each: jobs of one event may share a batch.
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        files = []
        for job_id, job in jobs.items():
            files.append(Path(scratch) / f"{job_id}.json")
            files[-1].write_text(json.dumps({"job_id": job_id} | job))
        variables = environment(bucket, models, model, scratch, settings)
        for job_id, file in zip(jobs, files):
            done = subprocess.run([options.binary, "invoke", str(file)], env=variables, cwd=scratch, capture_output=True, text=True)
            keys = [key for key in bucket.objects if key.endswith(f"{job_id}/result.json")]
            if done.returncode or not keys:
                sys.exit(f"{model}: no images of {job_id}\n{done.stderr[-3000:]}")
            record = json.loads(bucket.objects[keys[0]])
            found[job_id] = record["timings_ms"]["infer"], png_pixels(bucket.objects[record["images"][0]["key"]])[2]
    return found


def rows(options, models, model, what, jobs, caches, settings):
    device = cpu(2)
    asked = {}
    for turn in range(ROUNDS):
        for place, job in enumerate(jobs):
            asked |= {f"j{turn}-{place}-none": job}
            asked |= {f"j{turn}-{place}-{number}": job | {"step_cache": cache} for number, cache in enumerate(caches)}
    found = run(options, models, model, asked, settings)

    def taken(cache):
        """The middle time over turns and jobs, and the pixels of all jobs."""
        times = [found[f"j{turn}-{place}-{cache}"][0] for turn in range(ROUNDS) for place in range(len(jobs))]
        return statistics.median(times), b"".join(found[f"j0-{place}-{cache}"][1] for place in range(len(jobs)))

    whole_ms, whole = taken("none")
    for number, cache in enumerate(caches):
        ms, pixels = taken(number)
        [(kind, value)] = cache.items()
        note = f"{psnr(pixels, whole):.1f} dB from the images without"
        yield row(f"{what}, {kind} {value}", "ms of step infer", ms, "the same without", whole_ms, device, f"{note}. {options.note}".strip())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", default=str(ROOT / "target/release/atelier"))
    parser.add_argument("--models", type=Path, default=ROOT / "models")
    parser.add_argument("--model", help="of its manifest; without: both bundled ones")
    parser.add_argument("--kind", choices=["interval", "threshold"], help="with --model: what its family takes")
    parser.add_argument("--steps", type=int, default=30, help="with --model")
    parser.add_argument("--note", default="")
    options = parser.parse_args()
    if options.model:
        caches = INTERVALS if options.kind != "threshold" else THRESHOLDS
        table = list(rows(options, options.models, options.model, options.model, generations(options.steps), caches, {}))
        for one in table:
            print(one["what"], f"{one['ratio']}x", one["note"])
        return
    table = []
    for steps in (20, 50):
        table += rows(options, options.models, "tiny-sd", f"tiny-sd, {steps} steps", generations(steps), INTERVALS, {})
    table += rows(options, options.models, "tiny-edit", "tiny-edit, 40 steps", tryons(), THRESHOLDS, {"ATELIER__MODEL__MODES": "[base]"})
    report("step_cache", "cpu", table)
    for one in table:
        print(one["what"], one["note"])


if __name__ == "__main__":
    main()
