"""`hpopt launch ENGINE`: start workers on this machine, Slurm, Ray or Kubernetes."""

import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
from hpopt.formats import format_count

if TYPE_CHECKING:
    from hpopt.launch.job import JobSpec
    from hpopt.storage.database import Database
    from hpopt.storage.studies import Study

app = typer.Typer(help="Start workers on this machine, Slurm, Ray or Kubernetes.", no_args_is_help=True)

WorkersOption = Annotated[int | None, typer.Option("--workers", min=1, help="Number of workers to start.")]
GpusOption = Annotated[
    int, typer.Option("--gpus-per-worker", min=0, help="GPUs of each worker; 0 for a study on CPUs.")
]
SameHostOption = Annotated[
    bool, typer.Option("--same-host", help="All nodes are this machine and reach a database on its loopback address.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Print what would be submitted, and start nothing.")]
StopOption = Annotated[bool, typer.Option("--stop", help="Cancel the workers launched for the study.")]


@app.command("local")
def launch_local(
    study: StudyArgument,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Number of workers; by default all that the GPUs take, or half the cores.")
    ] = None,
    workers_per_gpu: Annotated[int, typer.Option(min=1, help="Number of workers that share a GPU.")] = 1,
    gpus_per_worker: GpusOption = 1,
    dry_run: DryRunOption = False,
    stop: StopOption = False,
    heartbeat_every: HeartbeatOption = 15.0,
    stale_after: StaleOption = 60.0,
    give_up_after: GiveUpOption = 900.0,
    storage: StorageOption = None,
    home: HomeOption = HOME,
) -> None:
    """Run workers on this machine until the study is finished, and restart those that end early."""
    from hpopt.launch.local import hold_pid_file, stop_by_pid_file

    options = timeout_options(heartbeat_every, stale_after, give_up_after)
    with _open("local", study, workers, gpus_per_worker, options, storage, home) as launch:
        folder, name = launch.job.home / "launch", launch.job.name
        if stop:
            launch.print_cancelled(stop_by_pid_file(folder, name), "local run")
            return
        share = {"per_gpu": workers_per_gpu, "gpus_per_worker": gpus_per_worker}
        fleet = local_workers(launch.database, launch.job.command, launch.job.home, n_workers=workers, **share)
        launch.require_unfinished()
        if dry_run:
            out.write("\n".join(fleet.preview()))
            return
        with hold_pid_file(folder, name):
            run_workers(launch.database, launch.study, fleet, stop_on_signals())


@app.command("slurm")
def launch_slurm(
    study: StudyArgument,
    workers: WorkersOption = None,
    gpus_per_worker: GpusOption = 1,
    partition: Annotated[str | None, typer.Option(help="Partition; the cluster's default if not given.")] = None,
    time: Annotated[str | None, typer.Option(help="Time limit of a task, such as 4h, 90m or 2-12:00:00.")] = None,
    sbatch_arg: Annotated[
        list[str] | None, typer.Option(help="Argument for sbatch, such as --sbatch-arg=--account=ml; repeatable.")
    ] = None,
    same_host: SameHostOption = False,
    dry_run: DryRunOption = False,
    stop: StopOption = False,
    heartbeat_every: HeartbeatOption = 15.0,
    stale_after: StaleOption = 60.0,
    give_up_after: GiveUpOption = 900.0,
    storage: StorageOption = None,
    home: HomeOption = HOME,
) -> None:
    """Submit workers to Slurm as a job array."""
    from hpopt.launch import slurm

    options = timeout_options(heartbeat_every, stale_after, give_up_after)
    with _open("slurm", study, workers, gpus_per_worker, options, storage, home) as launch:
        if stop:
            launch.print_cancelled(slurm.cancel(launch.job), "Slurm task")
            return
        launch.require_workers(workers)
        launch.require_reachable_database(is_same_host=same_host)
        script = slurm.write_script(launch.job, Path.cwd(), partition=partition, time_limit=time)
        launch.require_unfinished()
        if dry_run:
            out.write(script)
            return
        launch.print_submitted(f"Slurm job {slurm.submit(launch.job, script, sbatch_arg or [], os.environ)}")


@app.command("ray")
def launch_ray(
    study: StudyArgument,
    workers: WorkersOption = None,
    gpus_per_worker: GpusOption = 1,
    address: Annotated[
        str | None,
        typer.Option(envvar="RAY_ADDRESS", help="Address of the cluster; one that runs on this machine if not given."),
    ] = None,
    same_host: SameHostOption = False,
    dry_run: DryRunOption = False,
    stop: StopOption = False,
    heartbeat_every: HeartbeatOption = 15.0,
    stale_after: StaleOption = 60.0,
    give_up_after: GiveUpOption = 900.0,
    storage: StorageOption = None,
    home: HomeOption = HOME,
) -> None:
    """Start workers on a Ray cluster as detached actors."""
    from hpopt.launch import ray

    options = timeout_options(heartbeat_every, stale_after, give_up_after)
    with _open("ray", study, workers, gpus_per_worker, options, storage, home) as launch:
        if stop:
            launch.print_cancelled(ray.stop(launch.job, address), "Ray actor")
            return
        launch.require_workers(workers)
        launch.require_reachable_database(is_same_host=same_host)
        launch.require_unfinished()
        if dry_run:
            out.write(ray.preview(launch.job))
            return
        names = ray.submit(launch.job, address, Path.cwd())
        launch.print_submitted(f"Ray actors {', '.join(names)}", *([f"--address={address}"] if address else []))


@app.command("kubernetes")
def launch_kubernetes(
    study: StudyArgument,
    workers: WorkersOption = None,
    image: Annotated[str | None, typer.Option(help="Image of target `worker` of docker/Dockerfile.")] = None,
    namespace: Annotated[str, typer.Option(help="Namespace of the job.")] = "hpopt",
    gpus_per_worker: GpusOption = 1,
    dry_run: DryRunOption = False,
    stop: StopOption = False,
    heartbeat_every: HeartbeatOption = 15.0,
    stale_after: StaleOption = 60.0,
    give_up_after: GiveUpOption = 900.0,
    storage: StorageOption = None,
    home: HomeOption = HOME,
) -> None:
    """Create workers on Kubernetes as an Indexed Job."""
    from hpopt.launch import kubernetes

    options = timeout_options(heartbeat_every, stale_after, give_up_after)
    with _open("kubernetes", study, workers, gpus_per_worker, options, storage, home) as launch:
        if stop:
            launch.print_cancelled(kubernetes.delete(launch.job, namespace=namespace), "Kubernetes job")
            return
        launch.require_workers(workers)
        if image is None:
            raise InputError("--image: required; docker/Dockerfile builds it as target `worker`")
        manifest = kubernetes.write_manifest(launch.job, image=image, namespace=namespace)
        launch.require_unfinished()
        if dry_run:
            out.write(manifest)
            return
        launch.print_submitted(f"Kubernetes {kubernetes.submit(manifest)}", f"--namespace={namespace}")


@dataclass(frozen=True, kw_only=True)
class _Launch:
    """A study whose workers are launched or cancelled on an engine."""

    engine: str
    database: "Database"
    study: "Study"
    job: "JobSpec"

    def require_workers(self, workers: int | None) -> None:
        """Raise InputError without a number of workers."""
        if workers is None:
            raise InputError(f"--workers: required, the number of workers that {self.engine} starts")

    def require_reachable_database(self, *, is_same_host: bool) -> None:
        """Raise InputError if only this machine reaches the database and workers may run on others."""
        if self.database.is_on_loopback and not is_same_host:
            raise InputError(
                f"--storage: only this machine reaches the database {self.database.address}, and workers of "
                f"{self.engine} may run elsewhere; pass one that all nodes reach, or --same-host"
            )

    def require_unfinished(self) -> None:
        """Raise InputError if the study has no work for another worker."""
        from hpopt.storage import control
        from hpopt.storage.confirmation import family_finished_reason
        from hpopt.storage.studies import require_root

        require_root(self.study)
        reason = family_finished_reason(self.database, self.study)
        if reason is not None:
            name = self.study.name
            is_stopped = control.read_state(self.database, self.study).state == "stopped"
            remedy = f"`hpopt resume {name}`" if is_stopped else "`hpopt create FILE` with a larger budget"
            raise InputError(f"study '{name}' is finished: {reason}; {remedy} continues it")

    def print_submitted(self, what: str, *stop_options: str) -> None:
        """Print what the engine has accepted, and the commands that show and cancel it."""
        stop = shlex.join(["hpopt", "launch", self.engine, self.study.name, *stop_options, "--stop"])
        out.print(f"{what}; `hpopt status {self.study.name}` shows the workers, `{stop}` cancels them", soft_wrap=True)

    def print_cancelled(self, n: int, noun: str) -> None:
        """Print the number of things that were cancelled."""
        out.print(f"{self.study.name}: {format_count(n, noun)} cancelled")


@contextmanager
def _open(
    engine: str,
    study: str,
    n_workers: int | None,
    gpus_per_worker: int,
    worker_options: Sequence[str],
    storage: str | None,
    home: Path,
) -> Iterator[_Launch]:
    """Open the database and load the study whose workers are launched."""
    from hpopt.launch.job import JobSpec, job_name, split_credentials
    from hpopt.storage.connect import open_database
    from hpopt.storage.studies import load_study

    with open_database(storage, home) as database:
        loaded = load_study(database, study)
        job = JobSpec(
            name=job_name(loaded),
            study=study,
            n_workers=n_workers or 1,
            gpus_per_worker=gpus_per_worker,
            command=["worker", study, *worker_options],
            home=home.absolute(),
            credentials=split_credentials(database, is_embedded=storage is None, password=os.environ.get("PGPASSWORD")),
        )
        yield _Launch(engine=engine, database=database, study=loaded, job=job)
