"""Owns the model of a study that several analyses share, so that it is computed once."""

from dataclasses import dataclass

from hpopt.analysis.anova import Decomposition, decompose
from hpopt.analysis.cores import on_one_core
from hpopt.analysis.posterior import draw_variants
from hpopt.analysis.sample import settled, sign_of
from hpopt.analysis.surrogate import Surrogate, fit, why_not
from hpopt.analysis.trials import StudyTable


@dataclass(frozen=True, kw_only=True)
class Model:
    """The surrogate of the final values, what it may be instead, and its parts; no parts where it is constant."""

    surrogate: Surrogate
    variants: tuple[Surrogate, ...]
    decomposition: Decomposition | None


@on_one_core
def build_model(table: StudyTable) -> Model | None:
    """Model the final values of the complete trials; None where there are too few of them."""
    design = settled(table)
    if why_not(table, design) is not None:
        return None
    surrogate = fit(design, design.values(), sign=sign_of(table))
    variants = draw_variants(surrogate)
    return Model(surrogate=surrogate, variants=variants, decomposition=decompose(surrogate, variants))
