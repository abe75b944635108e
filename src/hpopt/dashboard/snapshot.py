"""Owns what is known of the studies that the dashboard shows: their trials, and since when nothing has changed.

Asks the storage, which reads again only what is not over. Leaves the answers to answers.py.
"""

import operator
import time
from collections.abc import Sequence
from dataclasses import dataclass

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial

# optuna-dashboard 0.21 takes the trials of a large study for new for 10 s: after that it answers what is seen here.
SETTLED_AFTER_S = 12.0


@dataclass(frozen=True, kw_only=True)
class Look:
    """A study as it has been since a time of the monotonic clock."""

    study: FrozenStudy
    trials: Sequence[FrozenTrial]
    since_s: float

    @property
    def is_settled(self) -> bool:
        """Whether optuna-dashboard, too, remembers nothing else of the study."""
        return time.monotonic() - self.since_s > SETTLED_AFTER_S

    def shows(self, study: FrozenStudy, trials: Sequence[FrozenTrial]) -> bool:
        """Say whether nothing has changed: the cached storage gives what is over as the same objects."""
        same_trials = len(trials) == len(self.trials) and all(map(operator.is_, trials, self.trials))
        return same_trials and study == self.study


class ShownStudies:
    """The studies of a cached storage, looked at again and again."""

    def __init__(self, storage: BaseStorage) -> None:
        self._storage = storage
        self._looks: dict[int, Look] = {}

    def newest(self) -> list[int]:
        """Give the studies, the newest first; none while the database is away."""
        try:
            return sorted((study._study_id for study in self._storage.get_all_studies()), reverse=True)  # noqa: SLF001
        except StorageInternalError:
            return []

    def look(self, study_id: int) -> Look | None:
        """Look at a study: the same object as long as nothing has changed in it.

        None for a study that is not there, and while the database is away.
        """
        try:
            studies = self._storage.get_all_studies()
            study = next(study for study in studies if study._study_id == study_id)  # noqa: SLF001 - it has no other.
            trials = self._storage.get_all_trials(study_id, deepcopy=False)
        except (StopIteration, KeyError, StorageInternalError):
            return None
        last = self._looks.get(study_id)
        if last is None or not last.shows(study, trials):
            last = self._looks[study_id] = Look(study=study, trials=trials, since_s=time.monotonic())
        return last
