"""Owns studies in the database: creating, finding and comparing them. Leaves their trials to attempts.py."""

import getpass
import hashlib
import os
import platform
import shutil
import subprocess
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.exceptions import ExperimentalWarning
from optuna.study import StudyDirection
from sqlalchemy.dialects.postgresql import insert

from hpopt import __version__
from hpopt.errors import InputError, did_you_mean
from hpopt.hyperparameters import Scalar
from hpopt.search import sampler
from hpopt.storage import tables
from hpopt.storage.database import Database
from hpopt.study.difference import space_difference
from hpopt.study.file import StudyFile
from hpopt.study.reading import parse_study_file

# The mark of the trial that runs the defaults: all others are measured against it, so it is never pruned.
DEFAULT_CONFIGURATION = "default configuration"

_GIT_TIMEOUT_S = 2
_VERSIONED = ("optuna", "torch", "transformers")


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study as the database knows it."""

    study_id: int
    name: str
    file: StudyFile
    text: str
    parent: str | None
    role: str
    created_at: datetime
    data_fingerprint: str | None
    versions: Mapping[str, str]
    file_sha256: str


def create_study(
    database: Database, text: str, source: str, *, parent: str | None = None, role: str = "search"
) -> Study:
    """Register the study of a study file, with its known configurations enqueued.

    A study that exists goes on: its budget, sampler and pruner become those of the file, and configurations that are
    new in it are enqueued; from then on this version of hpopt runs it. Raises InputError when the file asks for
    another space, saying what differs.
    """
    file = parse_study_file(text, source)
    known = find_study(database, file.name)
    if known is None:
        return _create(database, file, text, parent, role)
    difference = space_difference(file, known.file)
    if difference is not None:
        raise InputError(
            f"{source}: study '{file.name}' exists with another space: {difference}; rename the study or restore it"
        )
    with database.errors():
        _enqueue(open_optuna(database, known), file)
    with database.brief() as connection:
        # What was found with another pruner or by another version may not hold any more.
        row = {"file": text, "file_sha256": _sha256(text), "versions": _versions(), "n_analysed": None}
        connection.execute(sa.update(tables.study).where(tables.study.c.study_id == known.study_id).values(row))
    return load_study(database, file.name)


def load_study(database: Database, name: str) -> Study:
    """Find a study by name; raises InputError with the nearest name when there is none."""
    study = find_study(database, name)
    if study is None:
        raise InputError(f"no study '{name}' in {database.address}{did_you_mean(name, study_names(database))}")
    return study


def find_study(database: Database, name: str) -> Study | None:
    """Find a study by name, or None."""
    query = sa.text(
        """
        select h.study_id, s.study_name as name, h.file, h.role, h.created_at, h.data_fingerprint,
               h.versions, h.file_sha256, p.study_name as parent
        from hpopt.study h
        join public.studies s on s.study_id = h.study_id
        left join public.studies p on p.study_id = h.parent_id
        where s.study_name = :name
        """
    )
    with database.begin() as connection:
        row = connection.execute(query, {"name": name}).mappings().one_or_none()
    if row is None:
        return None
    fields: dict[str, Any] = {**row}
    text = fields.pop("file")
    return Study(**fields, text=text, file=parse_study_file(text, f"study '{name}'"))


def study_names(database: Database) -> list[str]:
    """List the studies by name, newest first."""
    query = "select s.study_name from hpopt.study h join public.studies s using (study_id) order by h.created_at desc"
    with database.begin() as connection:
        return list(connection.scalars(sa.text(query)))


def open_optuna(database: Database, study: Study) -> optuna.Study:
    """Open the Optuna side of a study, as stock Optuna does."""
    with database.errors():
        return optuna.load_study(study_name=study.name, storage=database.optuna)


def reload(database: Database, study: Study) -> Study:
    """Give the study with what `hpopt create` changed since it was read. Raises InputError when it is another one."""
    query = "select file_sha256 from hpopt.study where study_id = :study_id"
    with database.begin() as connection:
        known = connection.scalar(sa.text(query), {"study_id": study.study_id})
    if known == study.file_sha256:
        return study
    now = load_study(database, study.name)
    if now.study_id != study.study_id:
        raise InputError(f"study '{study.name}' was deleted and created anew; start the workers anew too")
    return now


def require_version(study: Study) -> None:
    """Raise InputError where the study is another hpopt's: the same trial may end differently there."""
    theirs = study.versions["hpopt"]
    if theirs != __version__:
        raise InputError(
            f"study '{study.name}' is run by hpopt {theirs}, this is {__version__}; install that one, or move the "
            "study here with `hpopt create FILE`"
        )


def require_data(database: Database, study: Study, fingerprint: str | None) -> None:
    """Record what the first worker trains on; raises InputError for a later one whose data differ."""
    if fingerprint is None:
        return
    query = """
        update hpopt.study set data_fingerprint = coalesce(data_fingerprint, :fingerprint)
        where study_id = :study_id returning data_fingerprint
    """
    with database.brief() as connection:
        known = connection.scalar(sa.text(query), {"fingerprint": fingerprint, "study_id": study.study_id})
    if known != fingerprint:
        raise InputError(
            f"study '{study.name}' trains on data {known}, this worker has {fingerprint}; their losses do not compare"
        )


def _create(database: Database, file: StudyFile, text: str, parent: str | None, role: str) -> Study:
    parent_id = None if parent is None else load_study(database, parent).study_id
    with database.errors():
        study = _make_optuna_study(database, file)
    row = {
        "study_id": study._study_id,  # noqa: SLF001 - Optuna has no public way to the id.
        "parent_id": parent_id,
        "role": role,
        "file": text,
        "file_sha256": _sha256(text),
        "created_by": f"{_user()}@{platform.node()}",
        "git_commit": _git_commit(),
        "versions": _versions(),
    }
    with database.begin() as connection:
        connection.execute(insert(tables.study).values(row).on_conflict_do_nothing())
    return load_study(database, file.name)


def _make_optuna_study(database: Database, file: StudyFile) -> optuna.Study:
    study = optuna.create_study(
        storage=database.optuna,
        study_name=file.name,
        direction=StudyDirection[file.direction.name],
        load_if_exists=True,
    )
    # Another go at creating it may have died half way; then nothing has run.
    has_run = any(trial.state is not optuna.trial.TrialState.WAITING for trial in study.get_trials(deepcopy=False))
    if has_run or study.direction.name.lower() != file.direction:
        raise InputError(f"a study '{file.name}' that hpopt did not make is in {database.address}; choose another name")
    with warnings.catch_warnings():
        # Its interface may change, says Optuna; without it the dashboard calls the metric "Objective 0".
        warnings.simplefilter("ignore", ExperimentalWarning)
        study.set_metric_names([file.metric])
    _enqueue(study, file)
    return study


def _enqueue(study: optuna.Study, file: StudyFile) -> None:
    for params, marks in _known_configurations(file):
        study.enqueue_trial(params, user_attrs=marks, skip_if_exists=True)


def _known_configurations(file: StudyFile) -> list[tuple[dict[str, Scalar], dict[str, bool]]]:
    """Give what is tried first, with its marks: the defaults where they lie in the space, the file's own, the grid."""
    defaults = file.default_params()
    points = sampler.grid_points(file.search_space) if file.sampler.name == "grid" else []
    known: list[tuple[dict[str, Scalar], dict[str, bool]]] = [(params, {}) for params in (*file.enqueue, *points)]
    if defaults is not None and file.sampler.name != "grid":
        known.insert(0, (defaults, {DEFAULT_CONFIGURATION: True}))
    return known


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # In a container the user may have no name.
        return str(os.getuid())


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


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
