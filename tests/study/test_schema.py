"""Editors complete study files with the schema in studies/."""

import json
from pathlib import Path

from hpopt.study.schema import study_file_schema
from hpopt.training.config import PretrainConfig

STUDIES = Path(__file__).parents[2] / "studies"


def test_the_schema_in_the_repository_is_current():
    """Editors read the file."""
    written = json.loads((STUDIES / "study.schema.json").read_text())
    assert written == study_file_schema(), "run: make schema"


def test_the_schema_has_every_hyperparameter_with_its_bounds():
    properties = study_file_schema()["properties"]
    momentum = properties["fixed"]["properties"]["momentum"]
    assert (momentum["type"], momentum["minimum"], momentum["exclusiveMaximum"]) == ("number", 0, 1)
    assert properties["fixed"]["properties"]["optimizer"]["enum"] == ["muon", "adamw"]
    assert properties["search_space"]["properties"]["ns_steps"]["anyOf"] == [
        {"$ref": "#/$defs/Int"},
        {"$ref": "#/$defs/Categorical"},
    ]
    assert set(properties["fixed"]["properties"]) == set(PretrainConfig.__dataclass_fields__)
    enqueued, searched = properties["enqueue"]["items"]["properties"], set(properties["search_space"]["properties"])
    assert set(enqueued) == {*searched, "params", "seed", "note"}
    assert set(enqueued["params"]["properties"]) == searched
    assert "seed" not in properties["search_space"]["properties"]
