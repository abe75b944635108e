"""Return the JSON Schema of a study file, for completion in editors. Run as a program, it prints the schema."""

import json
import sys
from typing import Any

from hpopt.hyperparameters import HYPERPARAMETERS, Hyperparameter
from hpopt.study.file import StudyFile


def study_file_schema() -> dict[str, Any]:
    """Return the JSON Schema of a study file; the parameters of an objective are checked in Python."""
    schema = StudyFile.model_json_schema()
    values = {name: _value_schema(entry) for name, entry in HYPERPARAMETERS.items()}
    searchable = {name: entry for name, entry in HYPERPARAMETERS.items() if name != "seed"}
    sections = schema["properties"]
    sections["search_space"]["properties"] = {name: _range_schema(entry) for name, entry in searchable.items()}
    sections["fixed"]["properties"] = values
    sections["derived"]["properties"] = {
        name: {"description": _description(entry), "type": "string"}
        for name, entry in searchable.items()
        if entry.type in {int, float}
    }
    params = {name: values[name] for name in searchable}
    schema["$defs"]["Sampler"]["properties"]["base"]["properties"] = params
    enqueued = schema["$defs"].pop("Enqueued")
    enqueued["properties"]["params"]["properties"] = params
    # Without the key params, the keys are the parameters.
    both = {"additionalProperties": True, "properties": {**params, **enqueued["properties"]}}
    sections["enqueue"]["items"] = {**enqueued, **both}
    sections["arms"]["additionalProperties"]["properties"] = {name: values[name] for name in searchable}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _value_schema(entry: Hyperparameter) -> dict[str, Any]:
    names = {bool: "boolean", int: "integer", float: "number", str: "string"}
    schema = {"description": _description(entry), "type": names[entry.type], "default": entry.default}
    bounds = {
        "exclusiveMinimum" if entry.low_open else "minimum": entry.low,
        "exclusiveMaximum" if entry.high_open else "maximum": entry.high,
    }
    schema |= {key: bound for key, bound in bounds.items() if bound is not None}
    return schema | ({"enum": list(entry.choices)} if entry.choices else {})


def _range_schema(entry: Hyperparameter) -> dict[str, Any]:
    ranges = {int: ("Int",), float: ("Float", "Int")}.get(entry.type, ())
    references = [{"$ref": f"#/$defs/{name}"} for name in (*ranges, "Categorical")]
    return {"description": _description(entry), "anyOf": references}


def _description(entry: Hyperparameter) -> str:
    unit = f" ({entry.unit})" if entry.unit else ""
    return f"{entry.meaning}{unit}"


if __name__ == "__main__":
    sys.stdout.write(json.dumps(study_file_schema(), indent=2) + "\n")
