"""Owns the verb that puts workers somewhere. Leaves how to the engines in launch/, and this machine to working.py."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hpopt.cli.options import (
    HOME,
    GiveUpOption,
    HeartbeatOption,
    HomeOption,
    StaleOption,
    StorageOption,
    StudyArgument,
    out,
)
from hpopt.cli.run import local_workers, run_workers, stop_on_signals, timeout_options
from hpopt.errors import InputError
from hpopt.hyperparameters import not_one_of

if TYPE_CHECKING:
    from hpopt.launch.job import Order
    from hpopt.storage.database import Database
    from hpopt.storage.studies import Study

_SUBMITTED = "{what}; `hpopt status {study}` shows its workers, `hpopt launch {study} --on {on} --stop` cancels them"
_ONLY_HERE = (
    "the database {address} answers this machine only, and workers of {on} may run elsewhere: name one that all nodes "
    "reach by --storage, or say --same-host"
)


def launch(
    study: StudyArgument,
    on: Annotated[str, typer.Option("--on", help="local, slurm, ray or kubernetes.")] = "local",
    workers: Annotated[
        int | None, typer.Option(min=1, help="How many; on this machine one a GPU, or half the cores, if not given.")
    ] = None,
    gpus_per_worker: Annotated[int, typer.Option(min=0, help="GPUs of a worker; 0 for a study on CPUs.")] = 1,
    per_gpu: Annotated[int | None, typer.Option(min=1, help="local: how many workers share a GPU.")] = None,
    partition: Annotated[str | None, typer.Option(help="slurm: the partition.")] = None,
    time: Annotated[str | None, typer.Option(help="slurm: the time limit of one go of a worker: 4h, 90m.")] = None,
    extra: Annotated[
        list[str] | None, typer.Option(help="slurm: a word for sbatch, such as --extra=--account=ml; repeatable.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(envvar="RAY_ADDRESS", help="ray: the cluster; one on this machine if not given.")
    ] = None,
    image: Annotated[str | None, typer.Option(help="kubernetes: the image of a worker.")] = None,
    namespace: Annotated[str | None, typer.Option(help="kubernetes: the namespace, if not `hpopt`.")] = None,
    same_host: Annotated[
        bool, typer.Option("--same-host", help="slurm, ray: every node is this machine, its own database will do.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be handed over.")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="Cancel the workers launched for the study.")] = False,
    heartbeat_every: HeartbeatOption = 15.0,
    stale_after: StaleOption = 60.0,
    give_up_after: GiveUpOption = 900.0,
    storage: StorageOption = None,
    home: HomeOption = HOME,
) -> None:
    """Put workers where the GPUs are: on this machine, Slurm, Ray or Kubernetes."""
    from hpopt.launch.job import Order, access_to, job_name
    from hpopt.storage.connect import open_database
    from hpopt.storage.studies import load_study

    words = {"--partition": partition, "--time": time, "--extra": extra}
    pods = {"--image": image, "--namespace": namespace}
    _refuse_misplaced(on, {"local": {"--per-gpu": per_gpu}, "slurm": words, "ray": {}, "kubernetes": pods})
    if on != "local" and workers is None and not stop:
        raise InputError(f"--workers: say how many workers {on} is to start")
    command = ["worker", study, *timeout_options(heartbeat_every, stale_after, give_up_after)]
    with open_database(storage, home) as database:
        found = load_study(database, study)
        if on in {"slurm", "ray"} and database.is_on_loopback and not (same_host or stop):
            raise InputError(_ONLY_HERE.format(address=database.address, on=on))
        order = Order(
            name=job_name(found),
            study=study,
            n_workers=workers or 1,
            gpus_per_worker=gpus_per_worker,
            command=command,
            home=home.absolute(),
            access=access_to(database, is_embedded=storage is None, password=os.environ.get("PGPASSWORD")),
        )
        engine = {
            "local": lambda: _local(order, database, found, n_workers=workers, per_gpu=per_gpu or 1),
            "slurm": lambda: _slurm(order, partition, time, extra or []),
            "ray": lambda: _ray(order, address),
            "kubernetes": lambda: _kubernetes(order, image, namespace, is_needed=not stop),
        }[on]()
        if stop:
            out.print(f"{study}: {engine.cancel()} cancelled ({engine.noun})")
        elif dry_run:
            out.write(engine.preview())
        else:
            _submit(engine, database, found, on)


def _submit(engine: "_Engine", database: "Database", study: "Study", on: str) -> None:
    from hpopt.storage import budget

    reason = budget.finished_reason(study, budget.read_usage(database, study))
    if reason is not None and on != "local":
        raise InputError(
            f"study '{study.name}' has finished: {reason}; `hpopt create` a file with a larger budget to continue it"
        )
    submitted = engine.submit()
    if submitted is not None:
        out.print(_SUBMITTED.format(what=submitted, study=study.name, on=on), soft_wrap=True)


@dataclass(frozen=True, kw_only=True)
class _Engine:
    """What can be asked of an engine: to show what it would be handed, to take it, to cancel what it took before.

    `submit` says as what it was taken, or None for workers that ended before it came back.
    """

    preview: Callable[[], str]
    submit: Callable[[], str | None]
    cancel: Callable[[], int]
    noun: str


def _local(order: "Order", database: "Database", study: "Study", *, n_workers: int | None, per_gpu: int) -> _Engine:
    from hpopt.launch.local import announced, stop_announced

    gpus = {"per_gpu": per_gpu, "gpus_per_worker": order.gpus_per_worker}
    fleet = local_workers(database, order.command, order.home, n_workers=n_workers, **gpus)

    def submit() -> None:
        with announced(order.home / "launch", order.name):
            run_workers(database, study, fleet, stop_on_signals())

    return _Engine(
        preview=lambda: "\n".join(fleet.preview()),
        submit=submit,
        cancel=lambda: stop_announced(order.home / "launch", order.name),
        noun="launches on this machine",
    )


def _slurm(order: "Order", partition: str | None, time: str | None, extra: list[str]) -> _Engine:
    from hpopt.launch import slurm

    script = slurm.write_script(order, Path.cwd(), partition=partition, limit=time)
    return _Engine(
        preview=lambda: script,
        submit=lambda: f"Slurm job {slurm.submit(order, script, extra, os.environ)}",
        cancel=lambda: slurm.cancel(order),
        noun="tasks in Slurm",
    )


def _ray(order: "Order", address: str | None) -> _Engine:
    from hpopt.launch import ray

    return _Engine(
        preview=lambda: ray.preview(order),
        submit=lambda: f"Ray actors {', '.join(ray.submit(order, address, Path.cwd()))}",
        cancel=lambda: ray.stop(order, address),
        noun="actors in Ray",
    )


def _kubernetes(order: "Order", image: str | None, namespace: str | None, *, is_needed: bool) -> _Engine:
    from hpopt.launch import kubernetes

    namespace = namespace or kubernetes.NAMESPACE
    if image is None and is_needed:
        raise InputError("--image: name the image of the worker; docker/Dockerfile builds it as target `worker`")
    manifest = kubernetes.write_manifest(order, image=image or "", namespace=namespace)
    return _Engine(
        preview=lambda: manifest,
        submit=lambda: f"Kubernetes {kubernetes.submit(manifest)}",
        cancel=lambda: kubernetes.delete(order, namespace=namespace),
        noun="jobs in Kubernetes",
    )


def _refuse_misplaced(on: str, options: Mapping[str, Mapping[str, object]]) -> None:
    """Raise InputError for an engine that there is not, and for an option that another one understands."""
    if on not in options:
        raise InputError(f"--on: {not_one_of(on, options)}")
    for engine, given in options.items():
        for name, value in given.items():
            if value and engine != on:
                raise InputError(f"{name}: belongs to --on {engine}, not to --on {on}")
