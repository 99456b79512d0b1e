#!/usr/bin/env python3
"""Prints what the program of a flavour is made of, as a CycloneDX 1.5 bill of materials in JSON: sbom.py cpu|cuda

Every crate that it is linked with, build scripts and tests aside: version, licence, checksum of Cargo.lock, and which needs which. The same sources give
the same bytes, so there is no date and no serial number in it. Needs Python 3.11 and cargo; what cargo has not downloaded yet it downloads.
"""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
TARGET = "x86_64-unknown-linux-gnu"
# As deploy/program.sh builds them.
FEATURES = {"cpu": [], "cuda": ["--features", "flash-attn"]}


def cargo(*words):
    done = subprocess.run(["cargo", *words], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"sbom.py: cargo {words[0]} failed; what it says stands above")
    return done.stdout


def linked(flavour):
    """Name and version of every crate of the program. What `cargo metadata` knows of is more: it turns on what tests ask for."""
    edges = ["--edges", "normal", "--target", TARGET, "--prefix", "none", "--no-dedupe", "--format", "{p}"]
    # A line is `name v1.2.3`, and perhaps where it lies or what kind it is.
    lines = cargo("tree", "--locked", *edges, *FEATURES[flavour]).splitlines()
    return {(line.split()[0], line.split()[1].removeprefix("v")) for line in lines if line}


def is_linked(dependency):
    return any(kind["kind"] is None for kind in dependency["dep_kinds"])


def licence(package):
    """`MIT/Apache-2.0` is how old manifests write `MIT OR Apache-2.0`."""
    expression = package["license"]
    return [{"expression": re.sub(r"\s*/\s*", " OR ", expression)}] if expression else [{"license": {"name": package["license_file"] or "see its sources"}}]


def component(package, checksums, kind="library"):
    name, version = package["name"], package["version"]
    purl = f"pkg:cargo/{name}@{version}"
    found = {"type": kind, "bom-ref": purl, "name": name, "version": version, "purl": purl, "licenses": licence(package)}
    if checksum := checksums.get((name, version)):
        found["hashes"] = [{"alg": "SHA-256", "content": checksum}]
    if package["repository"]:
        found["externalReferences"] = [{"type": "vcs", "url": package["repository"]}]
    return found


def main():
    if len(sys.argv) != 2 or sys.argv[1] not in FEATURES:
        sys.exit("usage: sbom.py cpu|cuda")
    flavour = sys.argv[1]
    read = json.loads(cargo("metadata", "--locked", "--format-version", "1", "--filter-platform", TARGET, *FEATURES[flavour]))
    inside = linked(flavour)
    packages = {package["id"]: package for package in read["packages"] if (package["name"], package["version"]) in inside}
    locked = tomllib.loads((ROOT / "Cargo.lock").read_text())["package"]
    checksums = {(entry["name"], entry["version"]): entry["checksum"] for entry in locked if "checksum" in entry}
    root = read["resolve"]["root"]
    ordered = sorted(packages, key=lambda crate: (packages[crate]["name"], packages[crate]["version"]))
    ref = {crate: f"pkg:cargo/{packages[crate]['name']}@{packages[crate]['version']}" for crate in ordered}
    needs = {node["id"]: {ref[d["pkg"]] for d in node["deps"] if is_linked(d) and d["pkg"] in ref} for node in read["resolve"]["nodes"]}
    bill = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": component(packages[root], checksums, "application")},
        "components": [component(packages[crate], checksums) for crate in ordered if crate != root],
        "dependencies": [{"ref": ref[crate], "dependsOn": sorted(needs[crate])} for crate in ordered],
    }
    print(json.dumps(bill, indent=1))


main()
