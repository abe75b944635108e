"""Record which folders of finished trials are kept, and find those that another one replaces."""

from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from hpopt.storage.attempts import Attempt
from hpopt.storage.database import Database
from hpopt.storage.studies import Study


@dataclass(frozen=True)
class ReplacedFolder:
    """The folder of a complete trial that is not among the best."""

    attempt_id: int
    host: str
    folder: Path


def keep_folder(database: Database, study: Study, attempt: Attempt, folder: Path) -> list[ReplacedFolder]:
    """Record the folder of a complete trial, and return those that another one replaces.

    Those of the best `study.file.keep` trials stay; of each configuration of a confirmation, that of the lowest seed.
    """
    parameters = {
        "attempt_id": attempt.attempt_id,
        "folder": str(folder),
        "study_id": study.study_id,
        "sign": study.file.direction.sign,
        "keep": study.file.keep,
    }
    with database.brief() as connection:
        connection.execute(_KEEP, parameters)
        rows = connection.execute(_REPLACED if study.is_root else _REPLACED_OF_CONFIRMATION, parameters).all()
    return [ReplacedFolder(row.attempt_id, row.host, Path(row.folder)) for row in rows]


def forget_folders(database: Database, replaced: list[ReplacedFolder]) -> None:
    """Record that folders were deleted."""
    with database.brief() as connection:
        connection.execute(_FORGET, {"attempt_ids": [folder.attempt_id for folder in replaced]})


_KEEP = sa.text("update hpopt.attempt set folder = :folder where attempt_id = :attempt_id and outcome = 'complete'")

# Of two equal trials the earlier one is kept, as hpopt.best_params shows it.
_REPLACED = sa.text(
    """
    select attempt_id, host, folder
    from (
        select a.attempt_id, t.host, t.folder,
               row_number() over (order by t.feasible desc, :sign * t.value nulls last, t.trial) as rank
        from hpopt.trials t join hpopt.attempt a using (optuna_trial_id)
        where t.study_id = :study_id and t.folder is not null
    ) kept
    where rank > :keep
    """
)

_REPLACED_OF_CONFIRMATION = sa.text(
    """
    select attempt_id, host, folder
    from (
        select a.attempt_id, t.host, t.folder, row_number() over (partition by t.params order by t.seed) as rank
        from hpopt.trials t join hpopt.attempt a using (optuna_trial_id)
        where t.study_id = :study_id and t.folder is not null
    ) kept
    where rank > 1
    """
)

_FORGET = sa.text("update hpopt.attempt set folder = null where attempt_id = any(:attempt_ids)")
