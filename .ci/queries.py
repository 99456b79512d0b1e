"""Parses every expression of PromQL in files of rules and dashboards: queries.py FILE..."""

import sys

import promql_parser
import yaml

PANEL_VARIABLES = {"$__rate_interval": "5m", "$__range": "1h"}


def expressions(node):
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "expr":
                yield value
            else:
                yield from expressions(value)
    elif isinstance(node, list):
        for value in node:
            yield from expressions(value)


wrong = []
for name in sys.argv[1:]:
    with open(name, encoding="utf-8") as file:
        found = [text for document in yaml.safe_load_all(file) for text in expressions(document)]
    if not found:
        wrong.append(f"{name}: has no expression")
    for text in found:
        plain = text
        for variable, value in PANEL_VARIABLES.items():
            plain = plain.replace(variable, value)
        try:
            promql_parser.parse(plain)
        except ValueError as error:
            wrong.append(f"{name}: {text}: {error}")
sys.exit("\n".join(wrong) or 0)
