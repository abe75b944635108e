"""Compare the arms of a study, or two configurations of any studies, and refuse a treatment that never arrived."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean, stdev
from typing import Any

from hpopt.analysis.comparison import Comparison, compare_pairs, confidence_half_width
from hpopt.analysis.trials import Outcome, StudyTable, TrialRow, is_finite
from hpopt.formats import format_count, format_number, join_words, list_values, to_json
from hpopt.search.direction import Direction

MIN_PAIRS = 2
_MIN_RUNS = 2


@dataclass(frozen=True, kw_only=True)
class Side:
    """The runs of one configuration, and what they must share with those of another one to be compared with it.

    `shared` are the properties that must be equal, by what they are called; a value of None is not known.
    """

    name: str
    runs: tuple[TrialRow, ...]
    shared: Mapping[str, Any] = field(default_factory=dict)

    def complete(self) -> dict[int, TrialRow]:
        """Return the complete runs by seed."""
        rows = [row for row in self.runs if row.state == "COMPLETE" and is_finite(row.value) and row.seed is not None]
        return {row.seed: row for row in reversed(rows) if row.seed is not None}


@dataclass(frozen=True, kw_only=True)
class SideSummary:
    """The values of the complete runs of one side by seed; `std` is the sample standard deviation.

    `low` to `high` is the 95% interval of the true mean, and `trial` the run with the lowest seed.
    """

    name: str
    values: Mapping[int, float]
    mean: float | None = None
    std: float | None = None
    min: float | None = None
    max: float | None = None
    low: float | None = None
    high: float | None = None
    trial: int | None = None

    @property
    def n(self) -> int:
        """The number of complete runs."""
        return len(self.values)


@dataclass(frozen=True, kw_only=True)
class SideComparison:
    """What two sides show: a `result`, or the `reason` why there is none.

    `changed` are the keys in which their configs differ, with both values, `shared` the properties that are known to be
    equal, and `seeds` those that both completed.
    `is_fault` tells that the runs cannot show anything, such as a treatment that never arrived in the training,
    `is_unlike` that they measure different things. `notes` are what else a reader has to know.
    """

    baseline: str
    treatment: str
    changed: Mapping[str, tuple[Any, Any]]
    shared: tuple[str, ...]
    seeds: tuple[int, ...]
    result: Comparison | None
    reason: str | None = None
    is_fault: bool = False
    is_unlike: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ArmsComparison:
    """All arms of a study, the baseline first, and each other one compared with the baseline."""

    metric: str
    direction: Direction
    indifference: float | None
    sides: tuple[SideSummary, ...]
    comparisons: tuple[SideComparison, ...]

    @property
    def fault(self) -> str | None:
        """Why the study shows nothing, or None."""
        return next((one.reason for one in self.comparisons if one.is_fault), None)


def compare_arms(table: StudyTable) -> ArmsComparison | None:
    """Compare each arm of a study with the first; None for a study without arms."""
    design = table.design
    if design is None:
        return None
    sides = [
        Side(
            name=arm,
            runs=tuple(row for row in table.trials if row.arm == arm),
            shared={"data": design.data[arm]},
        )
        for arm in design.arms
    ]
    return compare_sides(
        sides,
        metric=table.metric,
        direction=table.direction,
        indifference=design.indifference,
        is_finished=design.is_finished,
    )


def compare_sides(
    sides: Sequence[Side],
    *,
    metric: str,
    direction: Direction,
    indifference: float | None = None,
    is_finished: bool = True,
) -> ArmsComparison:
    """Compare each side with the first by the values of runs with one seed, corrected for their number.

    Sides whose shared properties differ are not compared, nor are those of a study that has not finished: ending it at
    the first significant difference finds one too often.
    """
    baseline, *others = sides
    n_comparisons = sum(_unlike(baseline, other) is None for other in others)

    def compare(treatment: Side) -> SideComparison:
        one, other = baseline.complete(), treatment.complete()
        seeds = tuple(sorted(one.keys() & other.keys()))
        unlike = _unlike(baseline, treatment)
        fault = None if unlike else _fault(baseline, treatment)
        reason = unlike or fault
        if reason is None and not is_finished:
            reason = "not all runs have finished; the verdict follows when they have"
        if reason is None and len(seeds) < MIN_PAIRS:
            reason = f"{format_count(len(seeds), 'seed')} completed by both; at least {MIN_PAIRS} are needed"
        result = None
        if reason is None:
            result = compare_pairs(
                _values(one, seeds),
                _values(other, seeds),
                direction=direction,
                indifference=indifference,
                n_comparisons=n_comparisons,
            )
        return SideComparison(
            baseline=baseline.name,
            treatment=treatment.name,
            changed=find_changes(baseline, treatment),
            shared=tuple(
                name
                for name, value in baseline.shared.items()
                if value is not None and treatment.shared.get(name) == value
            ),
            seeds=seeds,
            result=result,
            reason=reason,
            is_fault=fault is not None,
            is_unlike=unlike is not None,
            notes=tuple(_notes((baseline, treatment))),
        )

    return ArmsComparison(
        metric=metric,
        direction=direction,
        indifference=indifference,
        sides=tuple(_summarize(side) for side in sides),
        comparisons=tuple(compare(other) for other in others),
    )


def find_changes(baseline: Side, treatment: Side) -> dict[str, tuple[Any, Any]]:
    """Return the keys in which the resolved configs of two sides differ, with both values; the seed is left out."""
    one, other = _config(baseline), _config(treatment)
    if one is None or other is None:
        return {}
    keys = sorted({*one, *other})
    return {key: (one.get(key), other.get(key)) for key in keys if one.get(key) != other.get(key) and key != "seed"}


def _config(side: Side) -> Mapping[str, Any] | None:
    return next((row.config for row in side.runs if row.config is not None), None)


def _values(rows: Mapping[int, TrialRow], seeds: Iterable[int]) -> list[float]:
    return [value for seed in seeds if (value := rows[seed].value) is not None]


def _unlike(one: Side, other: Side) -> str | None:
    """Return what makes the values of two sides incomparable, or None."""
    unlike = [
        name
        for name, value in one.shared.items()
        if value is not None and other.shared.get(name) is not None and value != other.shared[name]
    ]
    if not unlike:
        return None
    return f"{one.name} and {other.name} differ in {join_words(unlike)}: their values are not compared"


def _fault(baseline: Side, treatment: Side) -> str | None:
    """Return why the runs of two sides cannot show a difference, or None."""
    changed = find_changes(baseline, treatment)
    if not changed and _config(baseline) is not None and _config(treatment) is not None:
        return f"{baseline.name} and {treatment.name} resolve to one config: there is nothing to compare"
    names = list_values(list(changed))
    one, other = baseline.complete(), treatment.complete()
    common = sorted(one.keys() & other.keys())
    seeds = f"seed{'' if len(common) == 1 else 's'} {list_values(list(map(str, common)))}"
    if common and all(_curve(one[seed]) == _curve(other[seed]) for seed in common):
        values = join_words([f"{name} {_show(a)} and {_show(b)}" for name, (a, b) in changed.items()])
        return (
            f"{treatment.name} never arrived: its config differs from that of {baseline.name} ({values}), and their "
            f"learning curves are equal to the last digit with {seeds}. The training ignores {names}"
        )
    if "learning_rate" in changed and common and all(_same_rates(one[seed], other[seed]) for seed in common):
        return (
            f"{treatment.name} never arrived: learning_rate differs from that of {baseline.name}, and the learning "
            f"rates that their runs report are equal with {seeds}"
        )
    return _ignored_seed(baseline) or _ignored_seed(treatment)


def _ignored_seed(side: Side) -> str | None:
    runs = side.complete()
    if len(runs) < _MIN_RUNS or len({_curve(row) for row in runs.values()}) > 1:
        return None
    seeds = list_values([str(seed) for seed in sorted(runs)])
    return (
        f"the seeds never arrived: the runs of {side.name} with the seeds {seeds} have one learning curve to the last "
        "digit. The training ignores seed, so that its runs do not show the noise"
    )


def _curve(row: TrialRow) -> tuple[object, ...]:
    return (row.value, *((point.step, point.value) for point in row.curve))


def _same_rates(one: TrialRow, other: TrialRow) -> bool:
    rates = [rate for rate in one.learning_rates if rate]
    return bool(rates) and one.learning_rates == other.learning_rates


def _notes(sides: Sequence[Side]) -> Iterable[str]:
    """Yield how the runs of two sides differ in length, and which of them are left out."""
    lengths = {side.name: {row.curve[-1].step for row in side.complete().values() if row.curve} for side in sides}
    if all(len(steps) == 1 for steps in lengths.values()) and len(set(map(frozenset, lengths.values()))) > 1:
        yield "their runs have unlike lengths: " + join_words([f"{name} {min(n)}" for name, n in lengths.items()])
    for side in sides:
        for outcome in (Outcome.DIVERGED, Outcome.FAILED):
            seeds = [str(row.seed) for row in side.runs if row.outcome is outcome and row.seed is not None]
            if seeds:
                yield f"left out: {side.name} {outcome} with seed {join_words(seeds)}"


def _summarize(side: Side) -> SideSummary:
    runs = side.complete()
    values = {seed: row.value for seed, row in sorted(runs.items()) if row.value is not None}
    numbers = list(values.values())
    if not numbers:
        return SideSummary(name=side.name, values={})
    center, std = mean(numbers), stdev(numbers) if len(numbers) >= _MIN_RUNS else None
    half_width = None if std is None else confidence_half_width(std, len(numbers))
    return SideSummary(
        name=side.name,
        values=values,
        mean=center,
        std=std,
        min=min(numbers),
        max=max(numbers),
        low=None if half_width is None else center - half_width,
        high=None if half_width is None else center + half_width,
        trial=runs[min(runs)].trial,
    )


def _show(value: object) -> str:
    return format_number(value) if value is None or isinstance(value, bool | int | float | str) else to_json(value)
