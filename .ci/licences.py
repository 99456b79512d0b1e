#!/usr/bin/env python3
"""Prints the licence texts of every crate that is linked into a release: .ci/licences.py > THIRD-PARTY-LICENSES.

A crate that gives a choice of licences is used under the first of PREFERRED. Equal texts are printed once, with the crates under them. The
texts are the files that the crates ship, in cargo's registry. A crate that ships none gets the licence's usual text with its authors.
"""

import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = "x86_64-unknown-linux-gnu"
# Those of deny.toml, the fewest texts first: Apache-2.0 has one text for all crates.
PREFERRED = ["Apache-2.0", "MIT-0", "Unicode-3.0", "MIT", "ISC", "BSD-2-Clause", "BSD-3-Clause", "Zlib", "CDLA-Permissive-2.0"]
# Words that stand in a licence's text and in no other of PREFERRED.
MARKS = {
    "Apache-2.0": r"Apache License.*Version 2\.0.*TERMS AND CONDITIONS",
    "MIT": r"Permission is hereby granted, free of charge.*The above copyright notice and this permission notice",
    "MIT-0": r"Permission is hereby granted, free of charge",
    "ISC": r"Permission to use, copy, modify,? and(/or)? distribute",
    "BSD-2-Clause": r"Redistributions of source code",
    "BSD-3-Clause": r"Redistributions of source code.*[Nn]either the name",
    "Zlib": r"provided ['‘\"]?as-is",
    "Unicode-3.0": r"UNICODE LICENSE V3",
    "CDLA-Permissive-2.0": r"Community Data License Agreement.*Permissive.*Version 2\.0",
}


# What a licence's file never is.
CODE = (".rs", ".py", ".go", ".sh", ".json", ".toml", ".c", ".h", ".html")
# For crates that ship no file, under the names of their authors.
MIT = """\
Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated documentation files (the
"Software"), to deal in the Software without restriction, including without limitation the rights to use, copy, modify, merge, publish,
distribute, sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is furnished to do so, subject to the
following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF
MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY
CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE
SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE."""


def packages():
    """The packages that are linked into a release with any feature, by name and version: those of THIRD-PARTY, less build tools."""
    command = ["cargo", "metadata", "--locked", "--format-version", "1", "--all-features", "--filter-platform", TARGET]
    metadata = json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)
    by_id = {package["id"]: package for package in metadata["packages"]}
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    waiting = [package["id"] for package in metadata["packages"] if package["name"] == "atelier"]
    found = set()
    while waiting:
        package = waiting.pop()
        if package in found:
            continue
        found.add(package)
        for dependency in nodes[package]["deps"]:
            # Neither tests nor build scripts are part of what is handed on.
            if any(kind["kind"] is None for kind in dependency["dep_kinds"]):
                waiting.append(dependency["pkg"])
    listed = {line.split(" ")[0] for line in (ROOT / "THIRD-PARTY").read_text().splitlines()}
    linked = [by_id[package] for package in found if f"{by_id[package]['name']}@{by_id[package]['version']}" in listed]
    return sorted(linked, key=lambda package: (package["name"], package["version"]))


def chosen(expression):
    """The licences of an SPDX expression that is used, as a set: one of each OR, all of each AND."""
    tokens = re.findall(r"\(|\)|[^\s()/]+|/", expression)

    def either():
        options = [every()]
        while tokens and tokens[0] in ("OR", "/"):
            tokens.pop(0)
            options.append(every())
        known = [option for option in options if option <= set(PREFERRED)]
        if not known:
            sys.exit(f"licences.py: {expression!r} has no licence of PREFERRED")
        return min(known, key=lambda option: (len(option), max(map(PREFERRED.index, option))))

    def every():
        taken = one()
        while tokens and tokens[0] == "AND":
            tokens.pop(0)
            taken = taken | one()
        return taken

    def one():
        token = tokens.pop(0)
        if token == "(":
            inside = either()
            tokens.pop(0)
            return inside
        if tokens and tokens[0] == "WITH":
            # An exception only allows more than the licence does.
            del tokens[:2]
        return {token}

    # Options that are not allowed are dropped in `either`, so an AND of them may hold anything.
    return either()


def plain(text):
    return re.sub(r"\s+", " ", text)


def shipped(package):
    """The files of a crate that hold licences or notifications, as name and text."""
    directory = Path(package["manifest_path"]).parent
    pattern = re.compile(r"(licen[cs]e|copying|notification|copyright|unlicense)", re.IGNORECASE)
    files = [path for path in sorted(directory.rglob("*")) if path.is_file() and pattern.match(path.name)]
    return [(path.name, tidy(path.read_text(encoding="utf-8", errors="replace"))) for path in files if path.suffix not in CODE]


def tidy(text):
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


class Texts:
    """Each text once, with the crates that are under it."""

    def __init__(self):
        self.found = {}

    def add(self, licence, text, name):
        self.found.setdefault((licence, plain(text)), (text, []))[1].append(name)

    def show(self):
        line = "=" * 80
        for (licence, _), (text, names) in sorted(self.found.items(), key=lambda item: (item[0][0], item[1][1])):
            title = textwrap.fill(f"{licence}: {', '.join(names)}", width=120, break_on_hyphens=False)
            print(f"\n{line}\n{title}\n{line}\n\n{text}")


def main():
    apache = tidy((ROOT / "LICENSE").read_text())
    texts = Texts()
    without = []
    for package in packages():
        name = f"{package['name']} {package['version']}"
        files = shipped(package)
        for licence in sorted(chosen(package["license"] or "")):
            found = [text for _, text in files if re.search(MARKS[licence], plain(text))]
            if licence == "Apache-2.0":
                texts.add(licence, apache, name)
            elif found:
                texts.add(licence, found[0], name)
            else:
                without.append((licence, package, name))
        # Apache-2.0 asks that notifications go along.
        for file, text in files:
            if file.lower().startswith("notification"):
                texts.add("NOTIFICATION", text, name)
    for licence, package, name in without:
        # A repository of several crates may have its text in one of them.
        beside = [other for other in packages() if other["repository"] == package["repository"] and other["name"] != package["name"]]
        found = [text for other in beside for _, text in shipped(other) if re.search(MARKS[licence], plain(text))]
        if found and package["repository"]:
            texts.add(licence, found[0], name)
            continue
        if licence != "MIT":
            sys.exit(f"licences.py: {name} ships no text of {licence}: add one by hand")
        authors = ", ".join(package["authors"]) or f"the authors of {package['repository']}"
        texts.add(licence, f"MIT License\n\nCopyright (c) {authors}\n\n{MIT}", name)
    print("Licences of what is linked into atelier. Written by .ci/licences.py; `just licences` writes it anew.")
    texts.show()


main()
