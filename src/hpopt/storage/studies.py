"""Create, load and compare the studies of a database."""

import getpass
import hashlib
import json
import os
import platform
import shutil
import subprocess
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.exceptions import ExperimentalWarning
from optuna.study import StudyDirection
from sqlalchemy.dialects.postgresql import insert

from hpopt import __version__
from hpopt.errors import InputError, did_you_mean
from hpopt.formats import storable, to_json
from hpopt.storage import tables
from hpopt.storage.configurations import Configuration, Configurations, lock_study
from hpopt.storage.database import Database
from hpopt.study import plan
from hpopt.study.file import StudyFile, file_changes, space_difference
from hpopt.study.reading import StudySource, parse_stored

# The user attribute of the trial that runs the defaults. All others are compared with it, so it is never pruned.
DEFAULT_CONFIGURATION = "default configuration"
# The user attribute of a trial with the note of its entry in the study file.
NOTE = "note"

_GIT_TIMEOUT_S = 2
_VERSIONED = ("optuna", "torch", "transformers")


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study of a database.

    The root of a family was created from a study file, its other studies have the file of their root and are enqueued
    whole. `defaults` are the objective's, `n_steps` the optimizer steps of a complete trial (None if they differ): both
    are stored when the study is created, so that displaying it does not import the objective.
    """

    study_id: int
    name: str
    file: StudyFile
    text: str
    root_id: int
    role: str
    created_at: datetime
    data_fingerprint: str | None
    versions: Mapping[str, str]
    file_sha256: str
    defaults: Mapping[str, Any]
    n_steps: int | None
    not_taken: Sequence[str] = ()
    n_candidates: int = 0

    @property
    def is_root(self) -> bool:
        """Whether the study is the first of its family."""
        return self.root_id == self.study_id

    @property
    def is_enqueued_whole(self) -> bool:
        """Whether all its trials are enqueued, so that workers sample none."""
        return not self.is_root or self.file.is_fixed_design


def create_study(
    database: Database,
    source: StudySource,
    *,
    log: Callable[[str], None] = lambda _line: None,
) -> Study:
    """Create the study of a study file with its configurations enqueued, or update an existing one.

    An existing study takes the budget, sampler, pruner and further configurations of the file, and is run by this
    version of hpopt from then on; `log` takes a line for each change. Raises InputError if its search space differs.
    """
    existing = find_study(database, source.file.name)
    if existing is None:
        _create(database, source)
    else:
        changes = _update(database, existing, source)
        for key, (new, old) in changes.items():
            log(f"{key}: {new}, was {old}")
    return load_study(database, source.file.name)


def load_study(database: Database, name: str) -> Study:
    """Return the study of a name. Raises InputError with the nearest name if there is none."""
    study = find_study(database, name)
    if study is None:
        raise InputError(f"no study '{name}' in {database.address}{did_you_mean(name, study_names(database))}")
    return study


def find_study(database: Database, name: str) -> Study | None:
    """Return the study of a name, or None. Raises StudyFileError if its stored file cannot be read."""
    with database.begin() as connection:
        row = connection.execute(_STUDY, {"name": storable(name)}).mappings().one_or_none()
    return None if row is None else _read_study(row)


def family_of(database: Database, study: Study) -> list[Study]:
    """Return the studies of a family in the order of their creation, its root first."""
    with database.begin() as connection:
        rows = connection.execute(_FAMILY, {"root_id": study.root_id}).mappings().all()
    return [_read_study(row) for row in rows]


def _read_study(row: sa.RowMapping) -> Study:
    fields: dict[str, Any] = {**row}
    text = fields.pop("file")
    file = parse_stored(text, f"study '{row['name']}'")
    return Study(**fields, text=text, file=plan.confirmation_file(file) if row["role"] == "confirm" else file)


def run_folder(home: Path, name: str, created_at: datetime) -> Path:
    """Return the folder of the trials of a study; the time tells studies of one name in different databases apart."""
    return home / "runs" / f"{name}-{created_at:%Y%m%dT%H%M%S}"


def study_names(database: Database) -> list[str]:
    """Return the names of the studies, newest first."""
    query = "select s.study_name from hpopt.study h join public.studies s using (study_id) order by h.created_at desc"
    with database.begin() as connection:
        return list(connection.scalars(sa.text(query)))


def open_optuna(database: Database, study: Study) -> optuna.Study:
    """Load the Optuna study of a study."""
    with database.errors():
        return optuna.load_study(study_name=study.name, storage=database.optuna)


def reload(database: Database, study: Study) -> Study:
    """Return the study with what `hpopt create` changed since it was read. Raises InputError if it was replaced."""
    query = "select file_sha256 from hpopt.study where study_id = :study_id"
    with database.begin() as connection:
        current = connection.scalar(sa.text(query), {"study_id": study.study_id})
    if current == study.file_sha256:
        return study
    reloaded = load_study(database, study.name)
    if reloaded.study_id != study.study_id:
        raise InputError(f"study '{study.name}' was deleted and created again; restart the workers")
    return reloaded


def require_version(study: Study) -> None:
    """Raise InputError if another version of hpopt runs the study: the same trial could have another result."""
    version = study.versions["hpopt"]
    if version != __version__:
        raise InputError(
            f"study '{study.name}' is run by hpopt {version}, this is {__version__}; install that version, or run "
            "`hpopt create FILE` to continue the study with this one"
        )


def require_root(study: Study) -> None:
    """Raise InputError for a study that follows another one: workers run the family, and its root has the answer."""
    if not study.is_root:
        root = study.name.partition("@")[0]
        raise InputError(f"study '{study.name}' belongs to '{root}'; name that one")


def require_data(database: Database, study: Study, fingerprint: str | None) -> None:
    """Record the data of the first worker. Raises InputError for a worker with other data."""
    if fingerprint is None:
        return
    query = """
        update hpopt.study set data_fingerprint = coalesce(data_fingerprint, :fingerprint)
        where study_id = :study_id returning data_fingerprint
    """
    with database.brief() as connection:
        recorded = connection.scalar(sa.text(query), {"fingerprint": fingerprint, "study_id": study.study_id})
    if recorded != fingerprint:
        raise InputError(
            f"study '{study.name}' trains on data {recorded}, this worker has {fingerprint}; their losses are not "
            "comparable"
        )


def _create(database: Database, source: StudySource) -> None:
    with database.errors():
        study = _create_optuna_study(database, source.file)
    study_id = study._study_id  # noqa: SLF001 - Optuna has no public way to the id.
    row = {
        "study_id": study_id,
        "root_id": study_id,
        "role": "compare" if source.file.arms else "search",
        "created_by": _user_and_host(),
        "git_commit": _git_commit(),
        **_from_source(source),
    }
    with database.begin() as connection:
        connection.execute(insert(tables.study).values(row).on_conflict_do_nothing())
        _enqueue(connection, study_id, source.file)


def _update(database: Database, study: Study, source: StudySource) -> dict[str, tuple[str, str]]:
    """Take over a changed file, and return the changes: by key the new and the old value."""
    difference = space_difference(source.file, study.file)
    if difference is not None:
        raise InputError(
            f"{source.name}: study '{study.name}' exists with another space: {difference}; rename the study, or restore"
            " its space"
        )
    with database.brief() as connection:
        _enqueue(connection, study.study_id, source.file)
        # Findings with another pruner or of another version can be outdated.
        row = {**_from_source(source), "n_analyzed": None}
        connection.execute(sa.update(tables.study).where(tables.study.c.root_id == study.study_id).values(row))
        changes = file_changes(source.file, study.file)
        if study.versions["hpopt"] != __version__:
            changes["hpopt"] = (__version__, study.versions["hpopt"])
        who = {"study_id": study.study_id, "changed_by": _user_and_host()}
        rows = [{**who, "key": key, "old_value": old, "new_value": new} for key, (new, old) in changes.items()]
        if rows:
            connection.execute(insert(tables.study_change), rows)
            # More seeds or another indifference can have another verdict.
            connection.execute(_FORGET_COMPARISON, {"study_id": study.study_id})
    return changes


def _from_source(source: StudySource) -> dict[str, Any]:
    """Return the columns that follow from a study file and this version of hpopt."""
    return {
        "file": source.text,
        "file_sha256": hashlib.sha256(source.text.encode()).hexdigest(),
        "summary": source.file.summary,
        "versions": _versions(),
        "defaults": json.loads(to_json(plan.defaults(source.file), keep_non_finite=True)),
        "n_steps": plan.count_steps(source.file),
        "not_taken": plan.not_taken(source.file),
    }


def _create_optuna_study(database: Database, file: StudyFile) -> optuna.Study:
    study = optuna.create_study(
        storage=database.optuna,
        study_name=file.name,
        direction=StudyDirection[file.direction.name],
        load_if_exists=True,
    )
    # An earlier call may have crashed before it added the row of hpopt; then no trial has run.
    has_run = any(trial.state is not optuna.trial.TrialState.WAITING for trial in study.get_trials(deepcopy=False))
    if has_run or study.direction.name.lower() != file.direction:
        raise InputError(f"{database.address} has a study '{file.name}' that hpopt did not create; choose another name")
    with warnings.catch_warnings():
        # It is experimental in Optuna; without it the dashboard calls the metric "Objective 0".
        warnings.simplefilter("ignore", ExperimentalWarning)
        study.set_metric_names([file.metric])
    return study


def _enqueue(connection: sa.Connection, study_id: int, file: StudyFile) -> None:
    """Enqueue what is tried first and is new: the defaults if they are in the space, the file's, a fixed design.

    A design has the first seed of all its configurations or arms before the second of any, so that whole replicates are
    left if it is interrupted.
    """
    first_seed = default_seed(file, plan.defaults(file))
    initial = [
        Configuration(params=params, seed=entry.seed, user_attrs={NOTE: entry.note} if entry.note else {})
        for params, entry in zip(plan.enqueued_params(file), file.enqueue, strict=True)
    ]
    if file.is_fixed_design:
        points = [Configuration(params=params) for params in plan.design_points(file)]
        points = [Configuration(params={}, arm=arm) for arm in file.arms] or points
        initial += [replace(point, seed=seed) for seed in plan.replicate_seeds(file, first_seed) for point in points]
    elif (params := file.default_params()) is not None:
        initial.insert(0, Configuration(params=params, user_attrs={DEFAULT_CONFIGURATION: True}))
    lock_study(connection, study_id)
    Configurations(connection, study_id, first_seed).enqueue(initial)


def default_seed(file: StudyFile, defaults: Mapping[str, Any]) -> int | None:
    """Return the seed of a trial that was given none, or None if the objective has no default for it."""
    seed = file.fixed.get("seed", defaults.get("seed"))
    return seed if isinstance(seed, int) else None


def _user_and_host() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        # In a container the user can have no name.
        user = str(os.getuid())
    return storable(f"{user}@{platform.node()}")


def _git_commit() -> str | None:
    git = shutil.which("git")
    if git is None:
        return None
    try:
        done = subprocess.run(
            [git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=_GIT_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return None
    return done.stdout.strip() or None


def _versions() -> dict[str, str]:
    versions = {"hpopt": __version__, "python": platform.python_version()}
    for package in _VERSIONED:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


_FORGET_COMPARISON = sa.text(
    """
    with compared as (delete from hpopt.comparison where study_id = :study_id)
    delete from hpopt.answer where study_id = :study_id and arm <> ''
    """
)

_STUDIES = """
    select h.study_id, s.study_name as name, h.file, h.root_id, h.role, h.created_at, h.data_fingerprint, h.versions,
           h.file_sha256, h.defaults, h.n_steps, h.not_taken,
           coalesce(jsonb_array_length(h.candidates), 0) as n_candidates
    from hpopt.study h join public.studies s using (study_id)
    """
_STUDY = sa.text(f"{_STUDIES} where s.study_name = :name")
_FAMILY = sa.text(f"{_STUDIES} where h.root_id = :root_id order by h.created_at, h.study_id")
