"""What a GPU decides about the engines, against diffusers on the same GPU: same files, same lines of work.

    python bench/gpu.py --engine ENGINE --edit EDIT [--only PART] [--rehearse]    bench/gpu.sh calls it

parity: every stage and format of LoRA, in f32 and in halves. edit: the try-on model at its own sizes. profile: the kernels of a step. sd:
Stable Diffusion 1.5 at its own sizes. flow: Z-Image, FLUX.1, FLUX.2 klein and SDXL at theirs, where --only asks for it. Each writes
bench/results/gpu-<part>-cuda.json when its time is up at the latest; all together stay below 9 minutes. The status is 1 where parity does not hold or a part broke. --rehearse: the bundled models on a CPU, so that all of it can
be tried where there is no GPU; nothing is written.
"""

import argparse
import sys
import time
import traceback
from contextlib import closing

import gpu_edit
import gpu_flow
import gpu_parity
import gpu_profile
import gpu_sd
from gpu_run import Run, quiet
from report import report, show

# What makes the rows of a part, and seconds that it may take; the last has what the others leave, because torch.compile takes long.
PARTS = {"parity": (gpu_parity.rows, 75), "edit": (gpu_edit.rows, 175), "profile": (gpu_profile.rows, 70), "flow": (gpu_flow.rows, 520), "sd": (gpu_sd.rows, 520)}
ASKED_FOR = {"flow"}
"""There is no time for them beside the others."""
WHOLE_SECONDS = 520


def carry_out(run, part, end):
    """Prints and writes one part, that has time until `end` at most; returns what is wrong with it."""
    start, rows, wrong = time.monotonic(), [], []
    make, budget = PARTS[part]
    end = min(start + budget, end)
    run.deadline = None if run.rehearse else end
    print(f"== {part}", flush=True)
    try:
        with closing(make(run)) as made:
            for row in made:
                rows.append(row)
                if run.deadline and time.monotonic() > run.deadline:
                    raise TimeoutError("the budget is used up")
    except TimeoutError as late:
        print(f"{part}: what would come after {len(rows)} rows is left out: {late}")
        wrong += [f"{part} is incomplete"] if part == "parity" else []
    except Exception:  # noqa: BLE001, a broken part must not cost the others' results
        traceback.print_exc()
        wrong.append(f"{part} broke")
    if rows:
        show(rows) if run.rehearse else report(f"gpu-{part}", "cuda", rows)
    print(f"{part}: {time.monotonic() - start:.0f} s of {end - start:.0f}", flush=True)
    # What is no number is not within its bound either.
    beyond = [row for row in rows if "bound" in row and not row["ours"] <= row["bound"]]
    return wrong + [f"beyond {row['bound']:.1e}: {row['what']}, {row['ours']:.1e}" for row in beyond]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", required=True, help="crates/engine/bench/engine.rs, built for this machine")
    parser.add_argument("--edit", required=True, help="crates/engine/bench/edit.rs, built for this machine")
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--rehearse", action="store_true", help="the bundled models on a CPU; nothing is written")
    parser.add_argument("--note", default="", help="what a reader of the results must know about this run")
    options = parser.parse_args()
    quiet()
    run = Run(options.engine, options.edit, options.rehearse, options.note)
    end = time.monotonic() + WHOLE_SECONDS
    with run.kept:
        wrong = [problem for part in PARTS if options.only == part or (options.only is None and part not in ASKED_FOR) for problem in carry_out(run, part, end)]
    for problem in wrong:
        print(problem)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
