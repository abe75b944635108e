"""Run workers on a Ray cluster: one detached actor each, which Ray restarts on another node when its node is lost.

An actor supervises a worker process by way of local.py.
"""

import logging
import os
import platform
import shlex
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING

from hpopt.errors import HpoptError, InputError
from hpopt.formats import one_line, printable
from hpopt.launch.job import JobSpec, write_passfile
from hpopt.launch.local import LocalWorkers

if TYPE_CHECKING:
    from types import ModuleType

_NAMESPACE = "hpopt"
_SUPERVISE_EVERY_S = 0.5
# A worker that is asked to stop writes its checkpoint and returns its trial to the queue.
_STOP_TIMEOUT_S = 20.0
_CONNECT_TIMEOUT_S = 10


def submit(job: JobSpec, address: str | None, folder: Path) -> list[str]:
    """Start an actor for each worker, in `folder`, and return their names. Actors without a free GPU wait in Ray.

    Raises InputError if Ray is not installed or its cluster is unreachable.
    """
    with _connect(address) as ray:
        taken = set(ray.util.list_named_actors())
        free = (name for number in count() if (name := f"{job.name}-{number}") not in taken)
        names = list(islice(free, job.n_workers))
        for name in names:
            # The worker limits how often a trial is retried, so an actor is always restarted.
            options = {"name": name, "lifetime": "detached", "max_restarts": -1, "num_gpus": job.gpus_per_worker}
            ray.remote(WorkerActor).options(max_concurrency=2, **options).remote(name, job, folder)
    return names


def preview(job: JobSpec) -> str:
    """Describe the actors that `submit` would start. The password is one of their arguments and is not shown."""
    variables = " ".join(f"{name}={value}" for name, value in job.environment(Path("PASSFILE")).items())
    return (
        f"{job.n_workers} detached actors {job.name}-N with num_gpus={job.gpus_per_worker} and max_restarts=-1, "
        f"each supervising\n{variables} hpopt {shlex.join(job.command)}"
    )


def stop(job: JobSpec, address: str | None) -> int:
    """Ask the actors of a study to stop, wait until their workers have ended, and return the number of actors."""
    with _connect(address) as ray:
        actors = []
        for name in ray.util.list_named_actors():
            if name.rpartition("-")[0] == job.name:
                # Raised for an actor that has ended meanwhile.
                with suppress(ValueError):
                    actors.append(ray.get_actor(name))
        if actors:
            # An actor that waits for a GPU does not answer.
            ray.wait([actor.stop.remote() for actor in actors], num_returns=len(actors), timeout=_STOP_TIMEOUT_S)
        for actor in actors:
            ray.kill(actor)
    return len(actors)


class WorkerActor:
    """A Ray actor that supervises one worker process until the study is finished, and then ends for good."""

    def __init__(self, name: str, job: JobSpec, folder: Path) -> None:
        self._should_stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(name, job, folder), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ask the worker to return its trial to the queue, and wait until it has ended."""
        self._should_stop.set()
        self._thread.join(_STOP_TIMEOUT_S)

    def _run(self, name: str, job: JobSpec, folder: Path) -> None:
        import ray  # noqa: PLC0415 - Ray is optional.

        if folder.is_dir():
            os.chdir(folder)
        try:
            with tempfile.TemporaryDirectory() as private:
                self._supervise(name, job, Path(private, "pgpass"))
        except (HpoptError, OSError) as error:
            print(printable(f"hpopt: {error}"), flush=True)  # noqa: T201 - Ray writes it to the log of the actor.
        ray.kill(ray.get_runtime_context().current_actor, no_restart=True)

    def _supervise(self, name: str, job: JobSpec, passfile: Path) -> None:
        write_passfile(passfile, job.credentials)
        placement = {"HPOPT_ENGINE": "ray", "HPOPT_JOB": name, "HPOPT_NODE": platform.node()}
        environment = {**os.environ, **job.environment(passfile), **placement}
        workers = LocalWorkers(job.command, 1, environment, job.log_folder / name, gpus_per_worker=job.gpus_per_worker)
        with workers:
            while not self._should_stop.is_set() and workers.supervise():
                self._should_stop.wait(_SUPERVISE_EVERY_S)


@contextmanager
def _connect(address: str | None) -> Iterator["ModuleType"]:
    try:
        import ray  # noqa: PLC0415 - Ray is optional.
    except ImportError:
        raise InputError("Ray is not installed; pip install 'hpopt[ray]'") from None
    _require_reachable(address)
    try:
        # "auto" is the cluster of RAY_ADDRESS or a running one on this machine; it never starts a new one.
        ray.init(address=address or "auto", namespace=_NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = address or "RAY_ADDRESS or on this machine"
        raise InputError(f"--address: no Ray cluster at {where}: {one_line(str(error))}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _require_reachable(address: str | None) -> None:
    """Raise InputError if nothing listens at an address, where Ray would retry for minutes without a message."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S).close()
        except OSError as error:
            raise InputError(f"--address: no Ray cluster at {address}: {error.strerror or error}") from error
