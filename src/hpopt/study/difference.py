"""Owns the difference between two study files: whether the trials of one are of use to the other."""

from hpopt.search.space import Range
from hpopt.study.file import StudyFile


def space_difference(new: StudyFile, old: StudyFile) -> str | None:
    """Say in a sentence what makes the trials of one study useless to the other, or None.

    Budget, sampler, pruner and enqueued configurations may differ: they only choose which trials there are.
    """
    for key in ("objective", "metric", "direction"):
        if getattr(new, key) != getattr(old, key):
            return f"{key}: {getattr(new, key)}, was {getattr(old, key)}"
    for name in sorted({*new.search_space, *old.search_space}):
        difference = _range_difference(new.search_space.get(name), old.search_space.get(name))
        if difference:
            return f"search_space.{name}: {difference}"
    for name in sorted({*new.fixed, *old.fixed}):
        if new.fixed.get(name) != old.fixed.get(name):
            return f"fixed.{name}: {new.fixed.get(name, 'not given')}, was {old.fixed.get(name, 'not given')}"
    return None


def _range_difference(new: Range | None, old: Range | None) -> str | None:
    if new is None or old is None:
        return None if new is old else f"{_range_words(new)}, was {_range_words(old)}"
    if new.type != old.type:
        return f"{new.type} {new.describe()}, was {old.type} {old.describe()}"
    for key in type(new).model_fields:
        if getattr(new, key) != getattr(old, key):
            return f"{key} {getattr(new, key)}, was {getattr(old, key)}"
    return None


def _range_words(searched: Range | None) -> str:
    return searched.describe() if searched else "not searched"
