"""Holds a Kubernetes file against the schema that its operator publishes; a key that the schema lacks is a fault too.

python deploy/validate.py ray.io_rayjobs.yaml deploy/kuberay/rayjob.yaml     # the first from KubeRay's repository
"""

import sys
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a resource, in which objects with named properties may have no others."""
    made: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "properties":
            made[key] = {name: strict(one) for name, one in value.items()}
        elif key in ("items", "additionalProperties") and isinstance(value, dict):
            made[key] = strict(value)
        else:
            made[key] = value
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    if "properties" in made and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made


def faults(definition: dict[str, Any], resource: dict[str, Any]) -> list[str]:
    """What in a resource its definition does not allow, each with its place."""
    group, _, version = str(resource["apiVersion"]).partition("/")
    if (definition["spec"]["group"], definition["spec"]["names"]["kind"]) != (group, resource["kind"]):
        return [f"the definition is of {definition['spec']['names']['kind']}, the resource a {resource['kind']}"]
    found = [one for one in definition["spec"]["versions"] if one["name"] == version]
    if not found:
        return [f"no version {version} in the definition"]
    schema = strict(found[0]["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    errors = Draft202012Validator(schema).iter_errors(resource)
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message[:300]}" for error in errors]


def main() -> None:
    """Says what is wrong; exit code 1 where something is."""
    definition, resource = (yaml.safe_load(Path(name).read_text()) for name in sys.argv[1:3])
    wrong = faults(definition, resource)
    print("\n".join(wrong) or "valid")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
