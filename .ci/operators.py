"""Reads the objects of KEDA and of the Prometheus operator with models made from their CRDs (cloudcoil-models-*): operators.py FILE..."""

import sys

import yaml
from cloudcoil.models.keda import v1alpha1 as keda
from cloudcoil.models.prometheus_operator import v1 as prometheus

MODELS = {"keda.sh/v1alpha1": keda, "monitoring.coreos.com/v1": prometheus}


def unknown(given, read, path):
    """Keys that the model did not take, which pydantic would pass over in silence."""
    if isinstance(given, dict) and isinstance(read, dict):
        for key, value in given.items():
            if key not in read:
                yield f"{path}.{key}"
            else:
                yield from unknown(value, read[key], f"{path}.{key}")
    elif isinstance(given, list):
        for index, (one, other) in enumerate(zip(given, read, strict=True)):
            yield from unknown(one, other, f"{path}[{index}]")


wrong = []
for name in sys.argv[1:]:
    with open(name, encoding="utf-8") as file:
        documents = [document for document in yaml.safe_load_all(file) if document["apiVersion"] in MODELS]
    if not documents:
        wrong.append(f"{name}: holds no object of an operator that is known here")
    for document in documents:
        model = getattr(MODELS[document["apiVersion"]], document["kind"]).model_validate(document)
        read = model.model_dump(by_alias=True, exclude_unset=True, mode="json")
        wrong += [f"{name}: {path} is unknown" for path in unknown(document, read, document["kind"])]
sys.exit("\n".join(wrong) or 0)
