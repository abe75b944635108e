"""Find optima at an edge or that depend on the budget, divergence, interactions and biased importances."""

from collections.abc import Iterator

from hpopt.analysis.budget import BudgetOptimum, ParameterBudget
from hpopt.analysis.cliff import Cliff
from hpopt.analysis.insights import Insights
from hpopt.analysis.sensitivity import ParameterSensitivity
from hpopt.analysis.trials import StudyTable
from hpopt.findings.finding import DIGITS, Finding, to_toml
from hpopt.formats import format_number, format_percent, join_words, list_values
from hpopt.search.space import Categorical

# The share of diverged trials from which on they are reported without a region, too.
MANY_DIVERGED = 0.05


def find_edges(table: StudyTable, insights: Insights) -> Iterator[Finding]:
    """Find optima at an end of their range, where the range can be widened."""
    for parameter in insights.sensitivity.parameters:
        if parameter.edge and parameter.widened_range:
            yield _edge_finding(table, parameter)


def find_budget_dependence(insights: Insights) -> Iterator[Finding]:
    """Find optima that move with the budget."""
    for parameter in insights.budget.parameters:
        if parameter.is_budget_dependent:
            yield _budget_finding(parameter)


def find_divergence(insights: Insights) -> Iterator[Finding]:
    """Find that many trials diverged, and in which region."""
    divergence = insights.divergence
    if divergence.cliffs or (divergence.share >= MANY_DIVERGED and divergence.n_diverged > 1):
        regions = [_describe_cliff(cliff) for cliff in divergence.cliffs]
        where = f"mostly with {join_words(regions)}" if regions else "in no particular region of the search space"
        yield Finding(
            code="diverging",
            severity="warning",
            message=f"{divergence.n_diverged} of {divergence.n_trials} trials diverged, {where}.",
            evidence={
                "share": divergence.share,
                "cliffs": [
                    {
                        "name": cliff.name,
                        "side": cliff.side,
                        "threshold": cliff.threshold,
                        "low": cliff.low,
                        "high": cliff.high,
                    }
                    for cliff in divergence.cliffs
                ],
            },
            remedy="End the range there in a new study, or stabilize the training with a longer warmup or stricter "
            "clipping."
            if regions
            else "Check the reasons of the diverged trials: the cause may be data or code rather than a parameter.",
        )


def find_interactions(insights: Insights) -> Iterator[Finding]:
    """Find pairs of parameters that must be tuned together."""
    for pair in insights.interactions.significant:
        one, other = pair.pair
        yield Finding(
            code="interaction",
            subject=f"{one}, {other}",
            severity="note",
            message=f"The best {one} depends on {other}: together they explain {format_percent(pair.share)} of the "
            "variance beyond what each explains alone (90% interval "
            f"{format_percent(pair.low)} to {format_percent(pair.high)}).",
            evidence={"share": pair.share, "low": pair.low, "high": pair.high, "p_value": pair.p_value},
            remedy="Tune them together, not one with the other held fixed.",
        )


def find_bias(insights: Insights) -> Iterator[Finding]:
    """Find that leaving out pruned trials biases the importances."""
    left_out = insights.sensitivity.left_out
    if left_out is not None and left_out.is_biased and left_out.bias_note:
        yield Finding(
            code="importance-biased",
            severity="note",
            message=f"fANOVA and the curves underestimate the effect of bad values: {left_out.bias_note}",
            evidence={
                "n_left_out": left_out.n,
                "n_diverged": left_out.n_diverged,
                "parameters": list(left_out.differ_in),
            },
            remedy=f"Judge {list_values(left_out.differ_in)} also by where trials were stopped, or let some trials run "
            'to the end, with `name = "none"` in [pruner].',
        )


def _edge_finding(table: StudyTable, parameter: ParameterSensitivity) -> Finding:
    range_, name = table.search_space[parameter.name], parameter.name
    ends = range_.extremes()
    numbers = sorted(ends, key=float) if isinstance(range_, Categorical) else ends
    end, beyond = (numbers[0], "lower") if parameter.edge == "low" else (numbers[-1], "higher")
    low, high = (format_number(value, digits=DIGITS) for value in (parameter.best_low, parameter.best_high))
    where = f" where {parameter.where}," if parameter.where else ""
    return Finding(
        code="edge",
        subject=name,
        severity="warning",
        message=f"The best {name}{where} is at the {parameter.edge} end of its range, "
        f"{format_number(end, digits=DIGITS)} (90% interval of the optimum within the range: {low} to {high}): "
        f"a {beyond} value, outside of the range, may be better.",
        evidence={"end": end, "side": parameter.edge, "best": parameter.best, "p_value": parameter.p_value},
        remedy=f"Widen the range in a new study: {name} = {to_toml(parameter.widened_range)}",
    )


def _budget_finding(parameter: ParameterBudget) -> Finding:
    first, last = parameter.optima[0], parameter.optima[-1]
    return Finding(
        code="budget-dependent",
        subject=parameter.name,
        severity="warning",
        message=f"The best {parameter.name} depends on the length of training: {_describe_optimum(first)}, "
        f"{_describe_optimum(last)}.",
        evidence={
            "optima": [
                {
                    "fraction": optimum.fraction,
                    "step": optimum.step,
                    "tokens": optimum.tokens,
                    "best": optimum.best,
                }
                for optimum in parameter.optima
            ],
            "p_value": parameter.p_value,
            "moved_share": parameter.moved_share,
        },
        remedy="Do not use it for longer runs, nor judge it by shorter ones: search at the intended length of "
        "training, with a later first rung (`min_fraction` in [pruner]).",
    )


def _describe_optimum(optimum: BudgetOptimum) -> str:
    best, low, high = (format_number(value, digits=DIGITS) for value in (optimum.best, optimum.low, optimum.high))
    interval = f" ({low} to {high})" if optimum.low is not None else ""
    trained = f"{optimum.tokens:,} tokens" if optimum.tokens else f"{optimum.step:,} steps"
    return f"{best}{interval} after {trained}"


def _describe_cliff(cliff: Cliff) -> str:
    if cliff.levels:
        return f"{cliff.name} {list_values(cliff.levels)}"
    if cliff.threshold is None:
        return f"a {cliff.side} {cliff.name}"
    beyond = "above" if cliff.side == "high" else "below"
    threshold, low, high = (format_number(value, digits=DIGITS) for value in (cliff.threshold, cliff.low, cliff.high))
    return f"{cliff.name} {beyond} {threshold} (90% interval {low} to {high})"
