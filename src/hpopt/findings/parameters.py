"""Owns the warnings about parameters: optima at an edge or that move, divergence, interactions, biased importance."""

from collections.abc import Iterator

from hpopt.analysis.budget import ParameterBudget
from hpopt.analysis.cliff import Cliff
from hpopt.analysis.insights import Insights
from hpopt.analysis.sensitivity import ParameterSensitivity
from hpopt.analysis.trials import StudyTable
from hpopt.findings.finding import Finding, as_toml, list_words, show
from hpopt.search.space import Categorical

# More diverged trials than this are too many to take as they come.
MANY_DIVERGED = 0.05


def find_edges(table: StudyTable, insights: Insights) -> Iterator[Finding]:
    """Find the optima at an end of their range, where the range can be wider."""
    for parameter in insights.sensitivity.parameters:
        if parameter.edge and parameter.wider:
            yield _tell_edge(table, parameter)


def find_drift(insights: Insights) -> Iterator[Finding]:
    """Find the optima that move with the budget."""
    for parameter in insights.budget.parameters:
        if parameter.is_drifting:
            yield _tell_drift(parameter)


def find_divergence(insights: Insights) -> Iterator[Finding]:
    """Find that many trials diverge, and where."""
    divergence = insights.divergence
    if divergence.cliffs or (divergence.share >= MANY_DIVERGED and divergence.n_diverged > 1):
        regions = [_tell_cliff(cliff) for cliff in divergence.cliffs]
        where = (
            f", mostly with {' and '.join(regions)}" if regions else ", in no region of the parameters in particular"
        )
        yield Finding(
            code="diverging",
            severity="warning",
            message=f"{divergence.n_diverged} of {divergence.n_trials} trials diverged{where}.",
            evidence={
                "share": divergence.share,
                "cliffs": [
                    {"name": cliff.name, "side": cliff.side, "at": cliff.at, "low": cliff.low, "high": cliff.high}
                    for cliff in divergence.cliffs
                ],
            },
            remedy="End the range there in a new study; or allow more with a longer warmup or stricter clipping."
            if regions
            else "Look at the reasons of the diverged trials: data or code may be at fault rather than a parameter.",
        )


def find_interactions(insights: Insights) -> Iterator[Finding]:
    """Find the pairs that must be chosen together."""
    for pair in insights.interactions.pairs:
        if pair.is_significant:
            one, other = pair.pair
            yield Finding(
                code="interaction",
                subject=f"{one}, {other}",
                severity="note",
                message=f"The best {one} depends on {other}: together they explain {pair.share:.0%} of the "
                f"differences beyond what each explains alone (90% interval {pair.low:.0%} to {pair.high:.0%}).",
                evidence={"share": pair.share, "low": pair.low, "high": pair.high, "p_value": pair.p_value},
                remedy="Choose them together; do not tune one with the other held fixed.",
            )


def find_bias(insights: Insights) -> Iterator[Finding]:
    """Find that what was pruned would have changed the importances."""
    left_out = insights.sensitivity.left_out
    if left_out is not None and left_out.is_biased and left_out.bias_sentence:
        yield Finding(
            code="importance-biased",
            severity="note",
            message=f"fANOVA and the curves understate what is bad: {left_out.bias_sentence}",
            evidence={"n_left_out": left_out.n, "n_diverged": left_out.n_diverged, "parameters": list(left_out.unlike)},
            remedy=f"Judge {list_words(left_out.unlike)} by where trials were stopped, too; or let some trials run to "
            'their ends, with `name = "none"` in [pruner].',
        )


def _tell_edge(table: StudyTable, parameter: ParameterSensitivity) -> Finding:
    range_, name = table.search_space[parameter.name], parameter.name
    ends = range_.extremes()
    numbers = sorted(ends, key=float) if isinstance(range_, Categorical) else ends
    end, beyond = (numbers[0], "lower") if parameter.edge == "low" else (numbers[-1], "higher")
    return Finding(
        code="edge",
        subject=name,
        severity="warning",
        message=f"The best {name} is at the {parameter.edge} end of its range, {show(end)}: a {beyond} one, which no "
        f"trial could try, may be better (90% interval of the optimum in the range: {show(parameter.best_low)} to "
        f"{show(parameter.best_high)}).",
        evidence={"end": end, "side": parameter.edge, "best": parameter.best, "p_value": parameter.p_value},
        remedy=f"Search further in a new study: {name} = {as_toml(parameter.wider)}",
    )


def _tell_drift(parameter: ParameterBudget) -> Finding:
    first, last = parameter.optima[0], parameter.optima[-1]
    spans = [f" ({show(each.low)} to {show(each.high)})" if each.low is not None else "" for each in (first, last)]
    trained = [f"{each.tokens:,} tokens" if each.tokens else f"{each.step:,} steps" for each in (first, last)]
    return Finding(
        code="budget-dependent",
        subject=parameter.name,
        severity="warning",
        message=f"The best {parameter.name} depends on how long one trains: {show(first.best)}{spans[0]} after "
        f"{trained[0]}, {show(last.best)}{spans[1]} after {trained[1]}.",
        evidence={
            "optima": [
                {"fraction": each.fraction, "step": each.step, "tokens": each.tokens, "best": each.best}
                for each in parameter.optima
            ],
            "p_value": parameter.p_value,
            "moved": parameter.moved,
        },
        remedy="Do not carry it over to a longer run, and do not judge by short ones: search at the length that you "
        "will train, with a later first rung (`min_fraction` in [pruner]).",
    )


def _tell_cliff(cliff: Cliff) -> str:
    if cliff.levels:
        return f"{cliff.name} {list_words(cliff.levels)}"
    word = "high" if cliff.side == "high" else "low"
    if cliff.at is None:
        return f"a {word} {cliff.name}"
    beyond = "above" if cliff.side == "high" else "below"
    return f"{cliff.name} {beyond} {show(cliff.at)} (90% interval {show(cliff.low)} to {show(cliff.high)})"
