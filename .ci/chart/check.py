"""Renders deploy/helm/atelier in several ways and checks the objects: check.py DIRECTORY, which gets them: NAME-core.yaml for
kubernetes-validate, NAME-operators.yaml for operators.py.

With the values of deploy/k8s/ the chart makes the objects of deploy/k8s/. Values that cannot work are refused in words.
"""

import copy
import json
import pathlib
import subprocess
import sys

import jsonschema
import yaml

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
CHART = ROOT / "deploy/helm/atelier"
OUT = pathlib.Path(sys.argv[1])
# What Helm adds to objects, or what the chart has beside deploy/k8s.
OF_HELM = {"app.kubernetes.io/instance", "app.kubernetes.io/version", "app.kubernetes.io/managed-by", "helm.sh/chart", "checksum/settings"}
EVERYTHING = {
    "image": {"tag": "0.1.0-sm90"}, "imagePullSecrets": [{"name": "registry"}], "scaling": {"enabled": False}, "replicas": 2,
    "queue": {"source": "none"}, "serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::111122223333:role/atelier"}},
    "models": {"volume": {"persistentVolumeClaim": {"claimName": "models"}}, "pull": True}, "runtimeClassName": "nvidia",
    "nodeSelector": {"gpu": "l4"}, "affinity": {"nodeAffinity": {}}, "podAnnotations": {"a": "b"}, "serviceMonitor": {"enabled": True},
}  # fmt: skip
RABBITMQ = {"queue": {"source": "rabbitmq", "rabbitmq": {"host": "queue"}}}


def merged(values, changes):
    for name, value in changes.items():
        values[name] = merged(values.get(name, {}), value) if isinstance(value, dict) and isinstance(values.get(name), dict) else value
    return values


def rendered(name, changes, release="atelier"):
    """The objects, or the words with which the chart refuses."""
    values = merged(yaml.safe_load((CHART / "values.yaml").read_text()), copy.deepcopy(changes))
    jsonschema.validate(values, json.loads((CHART / "values.schema.json").read_text()))
    # Helm writes the keys of the chart with capitals.
    chart = {key[0].upper() + key[1:]: value for key, value in yaml.safe_load((CHART / "Chart.yaml").read_text()).items()}
    given = {"Values": values, "Chart": chart, "Release": {"Name": release, "Namespace": "default", "Service": "Helm"}}
    (OUT / f"{name}.json").write_text(json.dumps(given))
    ran = subprocess.run(["go", "run", ROOT / ".ci/chart/render.go", CHART, OUT / f"{name}.json"], capture_output=True, text=True)
    if ran.returncode:
        return ran.stderr
    objects = [document for document in yaml.safe_load_all(ran.stdout) if document]
    of_operators = ("keda.sh", "monitoring.coreos.com")
    for part, is_in in (("operators", True), ("core", False)):
        mine = [each for each in objects if each["apiVersion"].startswith(of_operators) is is_in]
        (OUT / f"{name}-{part}.yaml").write_text(yaml.safe_dump_all(mine))
    assert all(labels["app.kubernetes.io/managed-by"] == "Helm" for labels in (each["metadata"]["labels"] for each in objects))
    return objects


def plain(node):
    """Without what only Helm says, and without what says what goes without saying."""
    if isinstance(node, dict):
        kept = {key: plain(value) for key, value in node.items() if key not in OF_HELM}
        defaults = {"imagePullPolicy": "IfNotPresent", "type": "ClusterIP"}
        return {key: value for key, value in kept.items() if defaults.get(key) != value and not (key == "annotations" and value == {})}
    if isinstance(node, list):
        return [plain(value) for value in node]
    return node


def of_files(*names):
    return [document for name in names for document in yaml.safe_load_all((ROOT / "deploy/k8s" / name).read_text()) if document]


def by_name(objects):
    return {(each["kind"], each["metadata"]["name"]): plain(each) for each in objects}


def differences(ours, theirs, path=""):
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in sorted(ours.keys() | theirs.keys(), key=str):
            yield from differences(ours.get(key), theirs.get(key), f"{path}/{key}")
    elif ours != theirs:
        yield f"{path}: the chart has {ours}, deploy/k8s {theirs}"


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    wrong = list(differences(by_name(rendered("sqs", {})), by_name(of_files("deployment.yaml", "sqs.yaml"))))
    scaled = [each for each in rendered("rabbitmq", RABBITMQ) if each["apiVersion"].startswith("keda")]
    wrong += differences(by_name(scaled), by_name(of_files("rabbitmq.yaml")))
    everything = by_name(rendered("everything", EVERYTHING, "studio"))
    pod = everything["Deployment", "studio-atelier"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["image"] == "registry.example/atelier:0.1.0-sm90" and pod["initContainers"][0]["args"] == ["models", "pull"], pod
    assert everything["Deployment", "studio-atelier"]["spec"]["replicas"] == 2 and ("ServiceMonitor", "studio-atelier") in everything
    assert {"name": "spool", "emptyDir": {}} in pod["volumes"] and {"name": "spool", "mountPath": "/var/lib/atelier"} in pod["containers"][0]["volumeMounts"], pod
    assert not any(kind == "ScaledObject" for kind, _ in everything), everything.keys()
    for changes, says in [
        ({"queue": {"source": "rabbitmq"}}, "queue.rabbitmq.host: the name of the broker"),
        ({"queue": {"source": "none"}}, "scaling.enabled needs a queue"),
        ({"models": {"pull": True}}, "models.pull needs models.volume"),
    ]:
        refused = rendered("refused", changes)
        if not isinstance(refused, str) or says not in refused:
            wrong.append(f"{changes} is not refused with {says!r}: {refused}")
    for changes in ({"queue": {"source": "kafka"}}, {"drainSeconds": 0}, {"image": {"tags": "x"}}):
        try:
            rendered("refused", changes)
            wrong.append(f"the schema takes {changes}")
        except jsonschema.ValidationError:
            pass
    sys.exit("\n".join(wrong) or 0)


if __name__ == "__main__":
    main()
