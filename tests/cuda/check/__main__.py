"""Checks the simulated device against exact arithmetic and CUDA's documents: python3 tests/cuda/check DEVICE. Needs nothing but Python.

CUDA_HOME: the toolkit, whose assembler says how many registers a kernel takes.
"""
import os
import subprocess
import sys
import tempfile

import following
import instructions
import meetings
import products
import rules
from driver import Driver


def one(device, name):
    """A check in a process of its own, for the settings are read once."""
    check = next(check for check, _ in rules.checks if check.__name__ == name)
    check(Driver(device))


def each_rule(device):
    for check, settings in rules.checks:
        ran = subprocess.run([sys.executable, os.path.dirname(__file__), device, check.__name__], env=os.environ | settings, capture_output=True, text=True)
        if ran.returncode:
            yield f"{check.__name__}: {ran.stderr.strip().splitlines()[-1] if ran.stderr.strip() else ran.returncode}"


def main(device):
    problems = []
    driver = Driver(device)
    count, values, wrong = instructions.check(driver)
    print(f"{count} instructions over {values} values")
    problems += wrong
    for title, found in (("threads that meet", meetings.check(driver)), ("products and convolutions", products.check(driver)),
                         ("what follows products and convolutions", following.check(driver)),
                         (f"{len(rules.checks)} rules of streams, graphs and launches", list(each_rule(device)))):
        print(title)
        problems += found
    for problem in problems:
        print(f"wrong: {problem}", file=sys.stderr)
    sys.exit(bool(problems))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as cache:
        os.environ.setdefault("SIMCUDA_CACHE", cache)
        main(*sys.argv[1:]) if len(sys.argv) == 2 else one(*sys.argv[1:])
