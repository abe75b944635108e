"""Owns what is changed in optuna-dashboard's answer about a study: figures are put in, its own curves are taken out.

Its answer is bytes here, megabytes of them: two keys are found and written over, nothing is parsed. With another answer
than that of optuna-dashboard 0.21 nothing is changed. Leaves drawing to curves.py and publishing.py.
"""

import json
import re
from collections.abc import Sequence
from typing import NamedTuple

# As keys these cannot be part of a text, where their quotes would have backslashes.
_CURVES_ARE_DRAWN = re.compile(rb'"has_intermediate_values":\s*true')
_FIGURES = re.compile(rb'"plotly_graph_objects":\s*\[(\s*\])?')


class ShownFigure(NamedTuple):
    """A figure of the page: its name there, and plotly's JSON."""

    name: str
    json: str


def has_curves(body: bytes) -> bool:
    """Say whether the page would draw its own learning curves, and figures of ours could take their place."""
    return bool(_CURVES_ARE_DRAWN.search(body) and _FIGURES.search(body))


def take_out_curves(body: bytes) -> bytes:
    """Say to the page that there are no learning curves to draw."""
    return _CURVES_ARE_DRAWN.sub(b'"has_intermediate_values": false', body, count=1)


def put_in(body: bytes, figures: Sequence[ShownFigure]) -> bytes:
    """Put figures before those that the answer has already."""
    if not figures:
        return body
    items = ", ".join(json.dumps({"id": figure.name, "graph_object": figure.json}) for figure in figures).encode()
    return _FIGURES.sub(
        lambda found: b'"plotly_graph_objects": [' + items + (b"]" if found[1] else b", "), body, count=1
    )
