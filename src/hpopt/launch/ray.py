"""Owns workers on a Ray cluster: one detached actor each, which Ray starts again elsewhere when its node is lost.

An actor runs the same worker process as everywhere, by way of local.py. Leaves what that does to worker.py.
"""

import logging
import os
import platform
import shlex
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING

from hpopt.errors import HpoptError, InputError
from hpopt.launch.job import Order, write_passfile
from hpopt.launch.local import LocalWorkers

if TYPE_CHECKING:
    from types import ModuleType

_NAMESPACE = "hpopt"
_TEND_EVERY_S = 0.5
# A worker that is asked to stop writes its checkpoint and hands its trial back.
_GRACE_S = 20.0
_CONNECT_TIMEOUT_S = 10


def submit(order: Order, address: str | None, folder: Path) -> list[str]:
    """Start an actor for each worker, in `folder`, and give their names; those without a free GPU wait for one in Ray.

    Raises InputError when Ray is not installed or its cluster cannot be reached.
    """
    with _connected(address) as ray:
        taken = set(ray.util.list_named_actors())
        free = (name for number in count() if (name := f"{order.name}-{number}") not in taken)
        names = list(islice(free, order.n_workers))
        for name in names:
            # How often a trial may be tried is the worker's business; an actor always comes back.
            kept = {"name": name, "lifetime": "detached", "max_restarts": -1, "num_gpus": order.gpus_per_worker}
            ray.remote(WorkerActor).options(max_concurrency=2, **kept).remote(name, order, folder)
    return names


def preview(order: Order) -> str:
    """Say what the cluster would be asked for; the password travels as an argument of the actors and is not shown."""
    variables = " ".join(f"{name}={value}" for name, value in order.environment(Path("PASSFILE")).items())
    asked = (
        f"{order.n_workers} detached actors {order.name}-N with num_gpus={order.gpus_per_worker} and max_restarts=-1"
    )
    return f"{asked}, each tending\n{variables} hpopt {shlex.join(order.command)}"


def stop(order: Order, address: str | None) -> int:
    """Ask the actors of a study to stop, wait until their workers have, and give their number."""
    with _connected(address) as ray:
        names = [name for name in ray.util.list_named_actors() if name.rpartition("-")[0] == order.name]
        actors = [ray.get_actor(name) for name in names]
        if actors:
            # One that waits for a GPU does not answer.
            ray.wait([actor.stop.remote() for actor in actors], num_returns=len(actors), timeout=_GRACE_S)
        for actor in actors:
            ray.kill(actor)
    return len(names)


class WorkerActor:
    """What Ray keeps alive: it tends one worker process until the study is over, and then ends for good."""

    def __init__(self, name: str, order: Order, folder: Path) -> None:
        self._asked = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(name, order, folder), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ask the worker to hand its trial back, and wait until it has."""
        self._asked.set()
        self._thread.join(_GRACE_S)

    def _run(self, name: str, order: Order, folder: Path) -> None:
        import ray  # noqa: PLC0415 - Ray is an option.

        if folder.is_dir():
            os.chdir(folder)
        try:
            with tempfile.TemporaryDirectory() as private:
                self._tend(name, order, Path(private, "pgpass"))
        except (HpoptError, OSError) as error:
            print(f"hpopt: {error}", flush=True)  # noqa: T201 - Ray keeps it in the log of the actor.
        ray.kill(ray.get_runtime_context().current_actor, no_restart=True)

    def _tend(self, name: str, order: Order, passfile: Path) -> None:
        write_passfile(passfile, order.access)
        placement = {"HPOPT_ENGINE": "ray", "HPOPT_JOB": name, "HPOPT_NODE": platform.node()}
        environment = {**os.environ, **order.environment(passfile), **placement}
        one = LocalWorkers(order.command, 1, environment, order.logs / name, gpus_per_worker=order.gpus_per_worker)
        with one as workers:
            while not self._asked.is_set() and workers.tend():
                self._asked.wait(_TEND_EVERY_S)


@contextmanager
def _connected(address: str | None) -> Iterator["ModuleType"]:
    try:
        import ray  # noqa: PLC0415 - Ray is an option.
    except ImportError:
        raise InputError("--on ray: Ray is not installed; pip install 'hpopt[ray]'") from None
    _refuse_unreachable(address)
    try:
        # "auto" is the cluster of RAY_ADDRESS, or one of this machine; never a new one.
        ray.init(address=address or "auto", namespace=_NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = address or "RAY_ADDRESS or this machine"
        raise InputError(f"--on ray: no cluster at {where}: {' '.join(str(error).split())}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _refuse_unreachable(address: str | None) -> None:
    """Raise InputError where nobody listens: Ray itself tries for minutes, and does not say so."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S).close()
        except OSError as error:
            raise InputError(f"--on ray: no cluster at {address}: {error.strerror or error}") from error
