"""Prints docs/manifest.schema.json from `jobs.manifest.Manifest`: `python -m tools.manifest_schema`."""

from __future__ import annotations

import json

from jobs.manifest import VERSION, Manifest


def schema() -> dict[str, object]:
    """JSON Schema of a manifest as it lies in the store: the model's, and the seal."""
    made = Manifest.model_json_schema(mode="serialization")
    made["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    made["properties"]["version"]["const"] = VERSION
    made["properties"]["sha256"] = {
        "type": "string",
        "pattern": "^[0-9a-f]{64}$",
        "description": "of this object's canonical JSON without this key: sorted keys, an indent of 1, a final newline",
    }
    made["required"] = sorted([*made["required"], "version", "sha256"])
    return made


if __name__ == "__main__":
    print(json.dumps(schema(), indent=2))
