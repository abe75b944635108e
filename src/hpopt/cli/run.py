"""Commands that run workers: one worker, or a whole study on this machine."""

import os
import platform
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hpopt.cli.compare import answer_comparison
from hpopt.cli.options import (
    HOME,
    DeviceOption,
    FileArgument,
    GiveUpOption,
    HeartbeatOption,
    HomeOption,
    StaleOption,
    StorageOption,
    StudyArgument,
    err,
    out,
)
from hpopt.cli.studies import analyze, print_change, show_effects, show_findings
from hpopt.errors import DatabaseError, DatabaseLostError, HpoptError, InputError, Interrupted, NoAnswerError
from hpopt.formats import format_count

if TYPE_CHECKING:
    from hpopt.launch.local import LocalWorkers
    from hpopt.storage.database import Database
    from hpopt.storage.progress import Progress
    from hpopt.storage.studies import Study

# Those of NVIDIA's driver, of Jetson, of WSL and of AMD's driver: no torch without one finds a GPU.
_GPU_DEVICE_FILES = ("nvidia*", "nvhost*", "nvgpu*", "dxg", "kfd")


def run(
    file: FileArgument,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Worker processes; one for each GPU, or half the cores, if not given.")
    ] = None,
    heartbeat_every: HeartbeatOption = 5.0,
    stale_after: StaleOption = 20.0,
    give_up_after: GiveUpOption = 900.0,
    storage: StorageOption = None,
    home: HomeOption = HOME,
) -> None:
    """Run a study on this machine, from the database to the answer."""
    from hpopt.storage.connect import open_database
    from hpopt.storage.studies import create_study
    from hpopt.study.reading import read_study_file

    refuse_process_group(os.environ)
    source = read_study_file(file)
    timeouts = timeout_options(heartbeat_every, stale_after, give_up_after)
    stop = stop_on_signals()
    with open_database(storage, home, create=True) as database:
        study = create_study(database, source, log=print_change)
        command = ["worker", study.name, *timeouts]
        run_workers(database, study, local_workers(database, command, home, n_workers=workers), stop)


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
    """Run trials until the study has finished."""
    from hpopt.cli.connect import open_study_with_retries
    from hpopt.worker.attempt import WorkerOptions
    from hpopt.worker.loop import find_device, work

    refuse_process_group(os.environ)
    timeout_options(heartbeat_every, stale_after, give_up_after)
    stop = stop_on_signals()
    if stop_with_parent:
        threading.Thread(target=_stop_at_end_of_input, args=(os.dup(0), stop), daemon=True).start()
    log = _log_until_closed(stop)
    engine, job, host = placement(os.environ)
    options = WorkerOptions(
        home=home.absolute(),
        host=host,
        engine=engine,
        job=job,
        device=find_device(device),
        heartbeat_every_s=heartbeat_every,
        stale_after_s=stale_after,
        give_up_after_s=give_up_after,
        log=log,
        stop=stop,
    )
    with open_study_with_retries(storage, home, study, stop, log) as (database, row):
        err.print(f"finished: {work(database, row, options)}")


def refuse_process_group(environment: Mapping[str, str]) -> None:
    """Raise InputError in a process of a group that trains together, as torchrun starts it.

    Each of them would train other trials. Tasks of Slurm do not set the variable: each of them is a worker.
    """
    n_processes = environment.get("WORLD_SIZE", "1")
    if n_processes not in {"", "0", "1"}:
        raise InputError(
            f"WORLD_SIZE: {n_processes}; a worker trains a trial in one process. Start it without torchrun, once for "
            "each GPU: `hpopt launch local STUDY`"
        )


def placement(environment: Mapping[str, str]) -> tuple[str, str | None, str]:
    """Return the engine that a process runs under, its job there, and its node."""
    node = environment.get("HPOPT_NODE") or environment.get("SLURMD_NODENAME") or platform.node()
    if "HPOPT_ENGINE" in environment:
        return environment["HPOPT_ENGINE"], environment.get("HPOPT_JOB"), node
    # Also in a batch script of the user's.
    if "SLURM_JOB_ID" in environment:
        task = (
            "{SLURM_ARRAY_JOB_ID}_{SLURM_ARRAY_TASK_ID}" if "SLURM_ARRAY_TASK_ID" in environment else "{SLURM_JOB_ID}"
        )
        return "slurm", task.format_map(environment), node
    return "local", None, node


def local_workers(
    database: "Database",
    command: Sequence[str],
    home: Path,
    *,
    n_workers: int | None,
    per_gpu: int = 1,
    gpus_per_worker: int = 1,
) -> "LocalWorkers":
    """Return the workers of a command on this machine: n_workers, else one for each GPU, else half the cores."""
    from hpopt.launch.local import LocalWorkers, count_cores, list_gpus

    n_gpus = len(list_gpus(os.environ.get("CUDA_VISIBLE_DEVICES")))
    n_on_gpus = n_gpus * per_gpu // gpus_per_worker if gpus_per_worker else 0
    number = n_workers or n_on_gpus or max(1, count_cores() // 2)
    # A worker that is given its device does not import torch to look for a GPU, which takes seconds.
    device = [] if n_gpus or _has_gpu() else ["--device", "cpu"]
    environment = {**os.environ, "HPOPT_STORAGE": database.url, "HPOPT_HOME": str(home.absolute())}
    logs = home / "logs" / command[1]
    return LocalWorkers([*command, *device], number, environment, logs, gpus_per_worker=gpus_per_worker)


def _has_gpu() -> bool:
    """Return whether there is a device file of a GPU: also of one that nvidia-smi does not list."""
    return any(path for pattern in _GPU_DEVICE_FILES for path in Path("/dev").glob(pattern))


def run_workers(database: "Database", study: "Study", workers: "LocalWorkers", stop: threading.Event) -> None:
    """Run workers on a study, show its progress, and print the answer.

    Raises NoAnswerError if no trial is complete at the end, Interrupted if stopped before it, and HpoptError if the
    study is paused.
    """
    from hpopt.storage import queries
    from hpopt.terminal.answer import render_answer
    from hpopt.terminal.status import describe_pause
    from hpopt.terminal.watch import has_work, watch

    progress = queries.progress(database, study)
    if progress.finished_reason is None and (progress.usage.state == "open" or progress.confirmation is not None):
        with workers:
            watch(database, study, err, stop, lambda: workers.supervise() and has_work(database, study))
        progress = _read_progress(database, study)
    refuse_paused(progress)
    is_finished = progress.finished_reason is not None or progress.usage.state == "stopped"
    if study.file.arms and is_finished:
        answer_comparison(database, study)
        show_findings(analyze(database, study))
        return
    out.print(render_answer(progress, study))
    if progress.best is not None:
        show_effects(database, study)
        show_findings(analyze(database, study))
    if progress.usage.state == "paused":
        err.print(describe_pause(study.name, progress.usage.state_reason), soft_wrap=True)
    if is_finished and progress.best is None:
        retry = f"; `hpopt retry {study.name} --failed` runs its failed trials again" if progress.n_failed else ""
        raise NoAnswerError(
            f"study '{study.name}' finished without a completed trial; the logs of its workers are in {workers.logs}"
            f"{retry}"
        )
    if not is_finished:
        raise Interrupted(
            f"stopped with {format_count(progress.usage.n_finished, 'finished trial')}; the same command continues"
        )


def timeout_options(heartbeat_every: float, stale_after: float, give_up_after: float) -> list[str]:
    """Return the timeout options of a worker's command line. Raises InputError if they contradict each other."""
    # A worker detects a lost connection within half of stale_after, which must be longer than a heartbeat interval.
    if stale_after < 3 * heartbeat_every:
        raise InputError(f"--stale-after: {stale_after:g} s is below three heartbeats of {heartbeat_every:g} s")
    options = {"--heartbeat-every": heartbeat_every, "--stale-after": stale_after, "--give-up-after": give_up_after}
    return [word for name, value in options.items() for word in (name, str(value))]


def refuse_paused(progress: "Progress") -> None:
    """Raise HpoptError for a study that is paused, or whose confirmation is."""
    from hpopt.terminal.status import describe_pause

    for study in (progress, progress.confirmation):
        if study is not None and study.finished_reason is None and study.usage.state == "paused":
            raise HpoptError(describe_pause(study.name, study.usage.state_reason, n_failed=study.n_failed))


def _read_progress(database: "Database", study: "Study") -> "Progress":
    from hpopt.storage import queries

    try:
        return queries.progress(database, study)
    except DatabaseError as error:
        raise DatabaseLostError(f"lost the database: {error}; the same command continues") from error


def stop_on_signals() -> threading.Event:
    """Return an event that SIGTERM and the first Ctrl-C set; a second Ctrl-C raises Interrupted.

    Schedulers repeat SIGTERM while a checkpoint is written, so a second SIGTERM does nothing.
    """
    stop = threading.Event()

    def ask_to_stop(number: int, _frame: object) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise Interrupted("stopped at once; running trials return to the queue when their heartbeats expire")
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ask_to_stop)
    # multiprocessing ends its processes by SIGTERM, which a forked copy of this handler would not do.
    os.register_at_fork(after_in_child=_restore_default_handlers)
    return stop


def _restore_default_handlers() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _log_until_closed(stop: threading.Event) -> "Callable[[str], None]":
    """Return a function that prints lines of a worker; the worker stops when its output is closed.

    It writes to a copy of standard error, which a training function cannot close or redirect.
    """
    descriptor = os.dup(2)

    def log(line: str) -> None:
        try:
            os.write(descriptor, f"{line}\n".encode(errors="backslashreplace"))
        except BrokenPipeError:
            stop.set()
        except OSError:
            # A full disk loses lines of the log, not the training.
            return

    return log


def _stop_at_end_of_input(descriptor: int, stop: threading.Event) -> None:
    """Set `stop` at the end of standard input, of which `descriptor` is a copy: a training function can close it."""
    while os.read(descriptor, 1024):
        continue
    stop.set()
