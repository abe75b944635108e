"""Owns the storage that the dashboard reads: Optuna's cached one, with our notes where nobody has written another."""

from collections.abc import Callable, Mapping
from typing import Any

from optuna.storages import RDBStorage
from optuna.storages._cached_storage import _CachedStorage
from optuna.study._frozen import FrozenStudy

_VERSION = "note_ver"


class NotedStorage(_CachedStorage):
    """A cached storage whose studies have some attributes that are nowhere stored."""

    def __init__(self, backend: RDBStorage, notes: Callable[[int], Mapping[str, Any]]) -> None:
        super().__init__(backend)
        self._notes = notes

    def get_all_studies(self) -> list[FrozenStudy]:
        """Give all studies, those that are looked at with their notes."""
        found = super().get_all_studies()
        for study in found:
            study.system_attrs = self._with_notes(study._study_id, study.system_attrs)  # noqa: SLF001 - it has no other.
        return found

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """Give the attributes of a study, with its notes."""
        return self._with_notes(study_id, super().get_study_system_attrs(study_id))

    def _with_notes(self, study_id: int, stored: dict[str, Any]) -> dict[str, Any]:
        """Add the notes in whose place nothing is stored: keys are `dashboard:[TRIAL:]note_ver` and `...note_str:0`."""
        notes = self._notes(study_id)
        written = {key.removesuffix(_VERSION) for key in stored if key.endswith(_VERSION)}
        return stored | {key: value for key, value in notes.items() if key.rpartition("note_")[0] not in written}
