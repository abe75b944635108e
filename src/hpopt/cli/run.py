"""Owns the verbs under which workers run: one worker, and a whole study on this machine.

Leaves putting workers elsewhere to launching.py, and what a worker does to worker.py.
"""

import os
import platform
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hpopt.cli.findings import findings_of, show_findings
from hpopt.cli.options import (
    HOME,
    DeviceOption,
    FileArgument,
    GiveUpOption,
    HeartbeatOption,
    HomeOption,
    PipeClosedError,
    StaleOption,
    StorageOption,
    StudyArgument,
    err,
    out,
)
from hpopt.errors import DatabaseError, DatabaseLostError, HpoptError, InputError, Interrupted, NoAnswerError

if TYPE_CHECKING:
    from hpopt.launch.local import LocalWorkers
    from hpopt.storage.database import Database
    from hpopt.storage.progress import Progress
    from hpopt.storage.studies import Study


def run(
    file: FileArgument,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Worker processes; one a GPU, or half the cores, if not given.")
    ] = None,
    heartbeat_every: HeartbeatOption = 5.0,
    stale_after: StaleOption = 20.0,
    give_up_after: GiveUpOption = 900.0,
    storage: StorageOption = None,
    home: HomeOption = HOME,
) -> None:
    """Do everything on this machine: database, study, workers, progress, answer."""
    from hpopt.storage.connect import open_database
    from hpopt.storage.studies import create_study
    from hpopt.study.reading import read_study_text

    text = read_study_text(file)
    patience = patience_options(heartbeat_every, stale_after, give_up_after)
    stop = stop_on_signals()
    with open_database(storage, home, make=True) as database:
        study = create_study(database, text, str(file))
        work_here(
            database, study, fleet_here(database, ["worker", study.name, *patience], home, n_workers=workers), stop
        )


def worker(
    study: StudyArgument,
    storage: StorageOption = None,
    home: HomeOption = HOME,
    device: DeviceOption = "auto",
    heartbeat_every: HeartbeatOption = 15.0,
    stale_after: StaleOption = 60.0,
    give_up_after: GiveUpOption = 900.0,
    stop_with_parent: Annotated[bool, typer.Option("--stop-with-parent", hidden=True)] = False,
) -> None:
    """Pull trials until the budget of the study is spent."""
    from hpopt.cli.connect import open_study_patiently
    from hpopt.storage.database import limit_waits
    from hpopt.worker.attempt import Settings
    from hpopt.worker.loop import find_device, work

    patience_options(heartbeat_every, stale_after, give_up_after)
    limit_waits()
    stop = stop_on_signals()
    if stop_with_parent:
        threading.Thread(target=_stop_at_end_of_input, args=(stop,), daemon=True).start()
    say = _say_until_nobody_listens(stop)
    engine, job, host = placement(os.environ)
    settings = Settings(
        home=home.absolute(),
        host=host,
        engine=engine,
        job=job,
        device=find_device(device),
        heartbeat_every_s=heartbeat_every,
        stale_after_s=stale_after,
        give_up_after_s=give_up_after,
        say=say,
        stop=stop,
    )
    with open_study_patiently(storage, home, study, stop, say) as (database, found):
        err.print(f"over: {work(database, found, settings)}")


def placement(environment: Mapping[str, str]) -> tuple[str, str | None, str]:
    """Say which engine a process runs under, in which of its jobs, and on which node."""
    node = environment.get("HPOPT_NODE") or environment.get("SLURMD_NODENAME") or platform.node()
    if "HPOPT_ENGINE" in environment:
        return environment["HPOPT_ENGINE"], environment.get("HPOPT_JOB"), node
    # Also in a batch script of the user's own.
    if "SLURM_JOB_ID" in environment:
        task = (
            "{SLURM_ARRAY_JOB_ID}_{SLURM_ARRAY_TASK_ID}" if "SLURM_ARRAY_TASK_ID" in environment else "{SLURM_JOB_ID}"
        )
        return "slurm", task.format_map(environment), node
    return "local", None, node


def fleet_here(
    database: "Database",
    command: Sequence[str],
    home: Path,
    *,
    n_workers: int | None,
    per_gpu: int = 1,
    gpus_per_worker: int = 1,
) -> "LocalWorkers":
    """Give the workers that a command would run on this machine: as many as GPUs take, or half the cores."""
    from hpopt.launch.local import LocalWorkers, count_cores, list_gpus

    n_gpus = len(list_gpus(os.environ.get("CUDA_VISIBLE_DEVICES")))
    n_on_gpus = n_gpus * per_gpu // gpus_per_worker if gpus_per_worker else 0
    number = n_workers or n_on_gpus or max(1, count_cores() // 2)
    environment = {**os.environ, "HPOPT_STORAGE": database.url, "HPOPT_HOME": str(home.absolute())}
    logs = home / "logs" / command[1]
    return LocalWorkers(command, number, environment, logs, gpus_per_worker=gpus_per_worker)


def work_here(database: "Database", study: "Study", fleet: "LocalWorkers", stop: threading.Event) -> None:
    """Let workers work on a study, show how far they are, and print the answer; raises what is in its place."""
    from hpopt.storage import queries
    from hpopt.terminal.answer import answer
    from hpopt.terminal.watch import has_work, watch

    progress = queries.progress(database, study)
    if progress.over is None and progress.books.state == "open":
        with fleet:
            watch(database, study, err, stop, lambda: fleet.supervise() and has_work(database, study))
        progress = _progress_now(database, study)
    _refuse_paused(progress)
    out.print(answer(progress, study.file))
    if progress.best is not None:
        show_findings(findings_of(database, study))
    is_over = progress.over is not None or progress.books.state == "stopped"
    if is_over and progress.best is None:
        raise NoAnswerError(
            f"study '{study.name}' ended without a completed trial; the workers' logs are in {fleet.logs}"
        )
    if not is_over:
        raise Interrupted(f"stopped with {progress.books.n_ended} trials done; the same command goes on from here")


def patience_options(heartbeat_every: float, stale_after: float, give_up_after: float) -> list[str]:
    """Give a worker's options of patience; raises InputError for those that contradict each other."""
    # Half of it must be longer than the time between two heartbeats, by which a worker knows that it was cut off.
    if stale_after < 3 * heartbeat_every:
        raise InputError(f"--stale-after: {stale_after:g} s is below three heartbeats of {heartbeat_every:g} s")
    given = {"--heartbeat-every": heartbeat_every, "--stale-after": stale_after, "--give-up-after": give_up_after}
    return [word for name, value in given.items() for word in (name, str(value))]


def _refuse_paused(progress: "Progress") -> None:
    """Raise HpoptError for a study that somebody, or a run of failures, has paused."""
    from hpopt.terminal.status import paused_line

    if progress.over is None and progress.books.state == "paused":
        raise HpoptError(paused_line(progress.name, progress.books.state_reason))


def _progress_now(database: "Database", study: "Study") -> "Progress":
    from hpopt.storage import queries

    try:
        return queries.progress(database, study)
    except DatabaseError as error:
        raise DatabaseLostError(f"lost the database: {error}; the same command goes on from here") from error


def stop_on_signals() -> threading.Event:
    """Turn SIGTERM and the first Ctrl-C into an event, and a Ctrl-C after that into an end at once.

    Schedulers repeat SIGTERM while a checkpoint is being written; only a person is impatient.
    """
    stop = threading.Event()

    def ask_to_stop(number: int, _frame: object) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise Interrupted("ended at once; what was running goes back to the queue")
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ask_to_stop)
    return stop


def _say_until_nobody_listens(stop: threading.Event) -> "Callable[[str], None]":
    """Give what prints a line of a worker; when its reader has left, the worker hands back its trial and ends."""

    def say(line: str) -> None:
        try:
            err.print(line, soft_wrap=True)
        except PipeClosedError:
            stop.set()

    return say


def _stop_at_end_of_input(stop: threading.Event) -> None:
    # Not through sys.stdin: its lock would be held at exit, which Python takes for a deadlock.
    while os.read(0, 1024):
        continue
    stop.set()
