"""Owns the model of a study that several analyses share, so that it is computed once."""

from dataclasses import dataclass

import numpy as np

from hpopt.analysis.anova import Decomposition, decompose
from hpopt.analysis.axes import build_design
from hpopt.analysis.cores import on_one_core
from hpopt.analysis.posterior import draw_variants
from hpopt.analysis.promise import find_promises
from hpopt.analysis.sample import LeftOut, expected_values, find_left_out, settled, sign_of
from hpopt.analysis.surrogate import Surrogate, fit, why_not
from hpopt.analysis.trials import StudyTable


@dataclass(frozen=True, kw_only=True)
class Model:
    """The surrogate of the final values, what it may be instead, and its parts; no parts where it is constant.

    `n_promised` of its trials were pruned, and count at what their learning curves promise.
    """

    surrogate: Surrogate
    variants: tuple[Surrogate, ...]
    decomposition: Decomposition | None
    n_promised: int
    left_out: LeftOut


@on_one_core
def build_model(table: StudyTable) -> Model | None:
    """Model the final values of the complete trials and those that pruned ones promise; None where there are few."""
    if why_not(table, settled(table)) is not None:
        return None
    promises = find_promises(table)
    design = build_design(table, [*table.complete(), *(row for row in table.pruned() if row.trial in promises)])
    stds = np.array([promises[row.trial].std if row.trial in promises else 0.0 for row in design.rows])
    surrogate = fit(design, expected_values(design, promises), sign=sign_of(table), stds=stds)
    variants = draw_variants(surrogate)
    return Model(
        surrogate=surrogate,
        variants=variants,
        decomposition=decompose(surrogate, variants),
        n_promised=len(promises),
        left_out=find_left_out(table, promises),
    )
