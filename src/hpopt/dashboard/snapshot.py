"""Read the studies that the dashboard shows, add generated notes, and detect changes.

Reads go through Optuna's cached storage, which reads finished trials only once.
"""

import operator
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._cached_storage import _CachedStorage
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial

_NOTE_VERSION = "note_ver"


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A study and its trials, unchanged since `since_s` of the monotonic clock."""

    study: FrozenStudy
    trials: Sequence[FrozenTrial]
    since_s: float

    @property
    def study_id(self) -> int:
        """Optuna's id of the study."""
        return int(self.study._study_id)  # noqa: SLF001 - Optuna has no public one.

    def is_equal(self, study: FrozenStudy, trials: Sequence[FrozenTrial]) -> bool:
        """Return whether nothing has changed: the cached storage returns finished trials as the same objects."""
        same_trials = len(trials) == len(self.trials) and all(map(operator.is_, trials, self.trials))
        return same_trials and study == self.study


class SnapshotReader:
    """Snapshots of the studies in a cached storage."""

    def __init__(self, storage: BaseStorage) -> None:
        self._storage = storage
        self._snapshots: dict[int, Snapshot] = {}

    def newest_study_ids(self) -> list[int]:
        """Return the ids of all studies, newest first; none while the database is unreachable."""
        try:
            return sorted((study._study_id for study in self._storage.get_all_studies()), reverse=True)  # noqa: SLF001
        except StorageInternalError:
            return []

    def read(self, study_id: int) -> Snapshot | None:
        """Return a study's snapshot: the same object as long as the study does not change.

        None if there is no such study, and while the database is unreachable.
        """
        try:
            studies = self._storage.get_all_studies()
            study = next(study for study in studies if study._study_id == study_id)  # noqa: SLF001
            trials = self._storage.get_all_trials(study_id, deepcopy=False)
        except (StopIteration, KeyError, StorageInternalError):
            return None
        last = self._snapshots.get(study_id)
        if last is None or not last.is_equal(study, trials):
            last = self._snapshots[study_id] = Snapshot(study=study, trials=trials, since_s=time.monotonic())
        return last


class StorageWithNotes(_CachedStorage):
    """Optuna's cached storage, with generated notes among the attributes of studies that have none of their own.

    `read_notes` returns the notes for a study id; they are stored nowhere.
    """

    def __init__(self, backend: RDBStorage, read_notes: Callable[[int], Mapping[str, Any]]) -> None:
        super().__init__(backend)
        self._read_notes = read_notes

    def get_all_studies(self) -> list[FrozenStudy]:
        """Return all studies, with their notes."""
        studies = super().get_all_studies()
        for study in studies:
            study.system_attrs = self._add_notes(study._study_id, study.system_attrs)  # noqa: SLF001
        return studies

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """Return the system attributes of a study, with its notes."""
        return self._add_notes(study_id, super().get_study_system_attrs(study_id))

    def _add_notes(self, study_id: int, stored: dict[str, Any]) -> dict[str, Any]:
        """Add each note for which none is stored.

        The keys of a note are `dashboard:[TRIAL_ID:]note_ver` and `dashboard:[TRIAL_ID:]note_str:0`.
        """
        stored_notes = {key.removesuffix(_NOTE_VERSION) for key in stored if key.endswith(_NOTE_VERSION)}
        notes = self._read_notes(study_id)
        return stored | {key: value for key, value in notes.items() if key.rpartition("note_")[0] not in stored_notes}
