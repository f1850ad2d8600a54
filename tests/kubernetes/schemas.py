"""JSON schemas of the cluster's own kinds, for kubeconform, out of what its API server says of itself."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

LOCATION = "{{ .ResourceKind }}{{ .KindSuffix }}.json"
"""kubeconform's name for the file of a kind: `networkpolicy-networking-v1.json`."""

_DRAFT = "http://json-schema.org/draft-07/schema#"
_TAKEN = ("type", "format", "enum", "required", "minimum", "maximum", "pattern")
_PREFIX = "#/definitions/"
# Numbers and texts alike, which OpenAPI 2 cannot say.
_EITHER = {
    "io.k8s.apimachinery.pkg.util.intstr.IntOrString": {"type": ["integer", "string"]},
    "io.k8s.apimachinery.pkg.api.resource.Quantity": {"type": ["number", "string"]},
}
Schema = dict[str, Any]


def write(openapi: Mapping[str, Any], folder: Path) -> int:
    """One file for each kind and version, that stands for itself; how many there are."""
    definitions = openapi["definitions"]
    count = 0
    for name, definition in definitions.items():
        kinds = definition.get("x-kubernetes-group-version-kind", ())
        if len(kinds) != 1:
            continue  # what every group has (DeleteOptions, WatchEvent): nobody writes those into a chart
        (kind,) = kinds
        schema = _resolved(definition, definitions, (name,))
        properties = schema.get("properties", {})
        version = "/".join(part for part in (kind["group"], kind["version"]) if part)
        if not {"kind", "apiVersion"} <= properties.keys():
            continue
        properties |= {"kind": {"enum": [kind["kind"]]}, "apiVersion": {"enum": [version]}}
        schema["required"] = sorted({*schema.get("required", ()), "kind", "apiVersion"})
        parts = (kind["kind"].lower(), kind["group"].partition(".")[0], kind["version"])
        (folder / f"{'-'.join(filter(None, parts))}.json").write_text(json.dumps({"$schema": _DRAFT, **schema}))
        count += 1
    return count


def _resolved(schema: Mapping[str, Any], definitions: Mapping[str, Any], within: tuple[str, ...]) -> Schema:
    """Strict: an object has the properties that are named, and no others."""
    if "$ref" in schema:
        name = schema["$ref"].removeprefix(_PREFIX)
        if name in _EITHER:
            return dict(_EITHER[name])
        # Kinds that contain themselves (schemas of custom resources) are not looked into.
        return {} if name in within else _resolved(definitions[name], definitions, (*within, name))
    if schema.get("format") == "int-or-string":
        return {"type": ["integer", "string"]}
    made: Schema = {key: schema[key] for key in _TAKEN if key in schema}
    if "properties" in schema:
        made["properties"] = dict(_properties(schema, definitions, within))
        made["additionalProperties"] = bool(schema.get("x-kubernetes-preserve-unknown-fields"))
    elif isinstance(values := schema.get("additionalProperties"), Mapping):
        made["additionalProperties"] = _resolved(values, definitions, within)
    if "items" in schema:
        made["items"] = _resolved(schema["items"], definitions, within)
    return made


def _properties(
    schema: Mapping[str, Any], definitions: Mapping[str, Any], within: tuple[str, ...]
) -> Iterator[tuple[str, Schema]]:
    """What may be left out may also be null."""
    for name, value in schema["properties"].items():
        made = _resolved(value, definitions, within)
        if name not in schema.get("required", ()) and isinstance(made.get("type"), str):
            made["type"] = [made["type"], "null"]
        yield name, made
