"""Find the hyperparameters of a training run with a fleet of workers and PostgreSQL."""

import os
import time
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from hpopt.errors import Interrupted
    from hpopt.storage.database import Database
    from hpopt.storage.progress import Best
    from hpopt.storage.studies import Study
    from hpopt.training.run import Evaluation, Run

__version__ = "0.1.0"
__all__ = ["Evaluation", "Interrupted", "Run", "best", "connect", "create", "run", "trials"]

_LAZY = {"Evaluation": "hpopt.training.run", "Interrupted": "hpopt.errors", "Run": "hpopt.training.run"}
_POLL_S = 1.0


def __getattr__(name: str) -> object:
    """Import what training functions need when it is used."""
    if name not in _LAZY:
        raise AttributeError(f"module 'hpopt' has no attribute '{name}'")
    return getattr(import_module(_LAZY[name]), name)


def connect(url: str | None = None, *, home: str | Path | None = None) -> "AbstractContextManager[Database]":
    """Open a database of studies, as a context manager.

    Pass what it returns as `storage` to the other functions, so that they share one connection.

    Args:
        url: URL of a PostgreSQL database. Default: `HPOPT_STORAGE`, else the embedded database below `home`, which is
            started, and stopped at the end if no other process uses it.
        home: Folder of the embedded database. Default: `HPOPT_HOME`, else `.hpopt` in the current folder.

    Raises:
        hpopt.errors.DatabaseError: The database is unreachable, or has no tables of this version.

    """
    return _open(url, home, create=False)


def best(study: str, *, storage: "str | Database | None" = None) -> "Best":
    """Return the best parameters of a study.

    Args:
        study: Name of the study. Its training code is not imported.
        storage: A URL, or a database from `connect`. Default: as in `connect`.

    Returns:
        A record with `value`, `params`, `trial`, `n_seeds`, `value_low`, `value_high`, `source` and `finished_at`: the
        row of the view `hpopt.best_params`.

    Raises:
        hpopt.errors.NoAnswerError: No trial is complete yet, or a comparison has no verdict.
        hpopt.errors.InputError: There is no study of this name.

    """
    from hpopt.storage.studies import load_study  # noqa: PLC0415 - import hpopt stays fast.

    with _database(storage) as database:
        return _best(database, load_study(database, study))


def trials(study: str, *, storage: "str | Database | None" = None) -> "pd.DataFrame":
    """Return all trials of a study as a pandas DataFrame, one row for each trial.

    Args:
        study: Name of the study. Its training code is not imported.
        storage: A URL, or a database from `connect`. Default: as in `connect`.

    Returns:
        The columns `trial`, `state`, `outcome`, `value`, `seed`, `n_attempts`, `tokens`, `device_seconds`,
        `started_at`, `finished_at` and `reason`, and `params_NAME` for each parameter, derived ones included.

    Raises:
        ImportError: pandas is not installed.
        hpopt.errors.InputError: There is no study of this name.

    """
    try:
        import pandas as pd  # noqa: PLC0415 - optional.
    except ImportError:
        raise ImportError("hpopt.trials needs pandas: pip install pandas") from None
    from hpopt.storage import queries, studies  # noqa: PLC0415

    with _database(storage) as database:
        table = queries.read_table(database, studies.load_study(database, study))
    names = (
        *("trial", "state", "outcome", "value", "seed", "n_attempts", "tokens", "device_seconds"),
        *("started_at", "finished_at", "reason"),
    )
    rows = [
        {name: getattr(row, name) for name in names}
        | {f"params_{name}": value for name, value in {**row.params, **row.derived}.items()}
        for row in table.trials
    ]
    columns = [*names, *(f"params_{name}" for name in table.search_space)]
    # Trials of other programs can have further parameters.
    further = dict.fromkeys(name for row in rows for name in row if name not in columns)
    return pd.DataFrame(rows, columns=[*columns, *further])


def create(file: str | Path, *, storage: "str | Database | None" = None) -> str:
    """Create the study of a study file, or update the budget of an existing one, and return its name.

    Args:
        file: Path of a study file (TOML).
        storage: A URL, or a database from `connect`. Default: as in `connect`; the database is created if necessary.

    Raises:
        hpopt.errors.StudyFileError: The file is not valid.
        hpopt.errors.InputError: A study of this name exists with another search space.

    """
    from hpopt.storage.studies import create_study  # noqa: PLC0415
    from hpopt.study.reading import read_study_file  # noqa: PLC0415

    source = read_study_file(Path(file))
    with _database(storage, create=True) as database:
        return create_study(database, source).name


def run(file: str | Path, *, workers: int | None = None, storage: "str | Database | None" = None) -> "Best":
    """Run a study on this machine until it has finished, and return its best parameters.

    The study is created if necessary, and an interrupted one continues. Ctrl-C stops the workers, which write their
    checkpoints and return their trials to the queue.

    Args:
        file: Path of a study file (TOML).
        workers: Number of worker processes. Default: one for each GPU, or half the cores.
        storage: A URL, or a database from `connect`. Default: as in `connect`; the database is created if necessary.

    Raises:
        hpopt.errors.StudyFileError: The file is not valid.
        hpopt.errors.HpoptError: The workers fail, or the study is paused.
        hpopt.errors.NoAnswerError: The study finished without a complete trial.

    """
    from hpopt.cli.run import local_workers, refuse_paused, timeout_options  # noqa: PLC0415
    from hpopt.storage import queries  # noqa: PLC0415
    from hpopt.storage.studies import create_study  # noqa: PLC0415
    from hpopt.study.reading import read_study_file  # noqa: PLC0415
    from hpopt.terminal.watch import has_work  # noqa: PLC0415

    source = read_study_file(Path(file))
    with _database(storage, create=True) as database:
        study = create_study(database, source)
        command = ["worker", study.name, *timeout_options(5.0, 20.0, 900.0)]
        if has_work(database, study):
            with local_workers(database, command, _home(None), n_workers=workers) as processes:
                while processes.supervise() and has_work(database, study):
                    time.sleep(_POLL_S)
        refuse_paused(queries.progress(database, study))
        return _best(database, study)


def _best(database: "Database", study: "Study") -> "Best":
    from hpopt.storage import comparison, queries  # noqa: PLC0415

    if study.file.arms:
        comparison.record_comparison(database, study)
    return queries.best(database, study)


def _database(storage: "str | Database | None", *, create: bool = False) -> "AbstractContextManager[Database]":
    if storage is None or isinstance(storage, str):
        return _open(storage, None, create=create)
    return nullcontext(storage)


def _open(url: str | None, home: str | Path | None, *, create: bool) -> "AbstractContextManager[Database]":
    from hpopt.storage.connect import open_database  # noqa: PLC0415

    return open_database(url or os.environ.get("HPOPT_STORAGE"), _home(home), create=create)


def _home(home: str | Path | None) -> Path:
    return Path(home or os.environ.get("HPOPT_HOME", ".hpopt"))
