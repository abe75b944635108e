"""Describe the workers that an engine starts, hide their database password, and run the engine's client programs."""

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hpopt.errors import InputError
from hpopt.formats import one_line
from hpopt.storage.database import Database
from hpopt.storage.studies import Study

# With the digest and the time that kubernetes.py appends, below the 63 characters of a Kubernetes label.
_MAX_SLUG_LENGTH = 30
# Slurm's client programs hang for minutes while the controller is down.
_CLIENT_TIMEOUT_S = 60
# An engine records the environment of a job and shows it to other users.
_SECRET_VARIABLES = frozenset({"HPOPT_STORAGE", "HPOPT_DASHBOARD_PASSWORD", "PGPASSWORD"})


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """A database URL without its password, and the password. The URL is None for the embedded server."""

    url: str | None
    password: str | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """Workers of one study.

    `name` is the name of the study's jobs on every engine, `command` the arguments of `hpopt`.
    """

    name: str
    study: str
    n_workers: int
    gpus_per_worker: int
    command: Sequence[str]
    home: Path
    credentials: Credentials

    @property
    def log_folder(self) -> Path:
        """The folder of the workers' logs."""
        return self.home / "logs" / self.study

    @property
    def passfile(self) -> Path:
        """The password file of this user for workers that share this disk."""
        return self.home / "launch" / f"{self.name}-{os.getuid()}.pgpass"

    def environment(self, passfile: Path) -> dict[str, str]:
        """Return the environment variables of a worker, with the path of the password file and without the password."""
        variables = {"HPOPT_HOME": str(self.home)}
        if self.credentials.url is not None:
            variables["HPOPT_STORAGE"] = self.credentials.url
        if self.credentials.password is not None:
            variables["PGPASSFILE"] = str(passfile)
        return variables


def job_name(study: Study) -> str:
    """Return a readable name that no other study has, in this or any other database."""
    slug = re.sub(r"[^a-z0-9]+", "-", study.name.lower()).strip("-")[:_MAX_SLUG_LENGTH].strip("-") or "study"
    digest = hashlib.sha256(f"{study.study_id} {study.name} {study.created_at.isoformat()}".encode()).hexdigest()
    return f"hpopt-{slug}-{digest[:8]}"


def split_credentials(database: Database, *, is_embedded: bool, password: str | None) -> Credentials:
    """Separate a database's URL from its password; `password` is used where the URL has none, as in libpq."""
    if is_embedded:
        return Credentials(url=None)
    return Credentials(url=database.url_without_password, password=database.password or password)


def write_passfile(path: Path, credentials: Credentials) -> None:
    """Write the password as libpq's PGPASSFILE for any server and user, readable by its owner only.

    Write nothing without a password. Raises InputError if the file cannot be written.
    """
    if credentials.password is None:
        return
    escaped = credentials.password.replace("\\", "\\\\").replace(":", "\\:")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Opens with O_EXCL, O_NOFOLLOW and mode 0600: in a shared folder it never writes to another user's file.
        descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.")
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(f"*:*:*:*:{escaped}\n")
            Path(draft).replace(path)
        except BaseException:
            Path(draft).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise InputError(f"{path}: cannot write the password file: {error.strerror}") from error


def without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without the variables that hold a password."""
    return {name: value for name, value in environment.items() if name not in _SECRET_VARIABLES}


def run_client(
    command: Sequence[str], *, hint: str, stdin: str = "", environment: Mapping[str, str] | None = None
) -> str:
    """Run a client program of an engine, such as sbatch or kubectl, and return its standard output.

    Raises InputError if the program is not installed (the message ends with `hint`), times out or fails.
    """
    program = command[0]
    if shutil.which(program) is None:
        raise InputError(f"{program} is not installed on this machine: {hint}")
    try:
        completed = subprocess.run(
            command,
            input=stdin,
            text=True,
            capture_output=True,
            check=False,
            timeout=_CLIENT_TIMEOUT_S,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        raise InputError(f"{program} did not answer within {_CLIENT_TIMEOUT_S} s") from None
    if completed.returncode != 0:
        message = one_line(completed.stderr) or f"exit code {completed.returncode}"
        raise InputError(message if message.startswith(program) else f"{program}: {message}")
    return completed.stdout.strip()
