"""Owns what an engine is asked for: so many workers of one study, and how they get at its database.

Leaves putting them somewhere to the engines: local.py, slurm.py, ray.py and kubernetes.py.
"""

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hpopt.storage.database import Database
from hpopt.storage.studies import Study

# With the digest and the time that kubernetes.py adds, within the 63 characters of a label.
_LONGEST_SLUG = 30


@dataclass(frozen=True, kw_only=True)
class Access:
    """How a worker gets at the database: a URL without its password, None for the embedded one below its home."""

    url: str | None
    password: str | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class Order:
    """Workers of one study. `command` is what follows `hpopt`; `name` names the study's jobs on every engine."""

    name: str
    study: str
    n_workers: int
    gpus_per_worker: int
    command: Sequence[str]
    home: Path
    access: Access

    @property
    def logs(self) -> Path:
        """The folder in which workers log."""
        return self.home / "logs" / self.study

    @property
    def passfile(self) -> Path:
        """Where the password lies for workers that share this disk."""
        return self.home / "launch" / f"{self.name}.pgpass"

    def environment(self, passfile: Path) -> dict[str, str]:
        """Give what workers must have in their environment: no password, only where it is."""
        found = {"HPOPT_HOME": str(self.home)}
        if self.access.url is not None:
            found["HPOPT_STORAGE"] = self.access.url
        if self.access.password is not None:
            found["PGPASSFILE"] = str(passfile)
        return found


def job_name(study: Study) -> str:
    """Name the jobs of a study: readable, and never those of another study, in whichever database."""
    slug = re.sub(r"[^a-z0-9]+", "-", study.name.lower()).strip("-")[:_LONGEST_SLUG].strip("-") or "study"
    digest = hashlib.sha256(f"{study.study_id} {study.name} {study.created_at.isoformat()}".encode()).hexdigest()
    return f"hpopt-{slug}-{digest[:8]}"


def access_to(database: Database, *, is_embedded: bool, password: str | None) -> Access:
    """Take the password out of a database's URL; `password` is what the driver would use where the URL has none."""
    if is_embedded:
        return Access(url=None)
    return Access(url=database.url_without_password, password=database.password or password)


def write_passfile(path: Path, access: Access) -> None:
    """Write a password where only its owner can read it, as libpq's PGPASSFILE, for any server and user."""
    if access.password is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    escaped = access.password.replace("\\", "\\\\").replace(":", "\\:")
    draft = path.with_suffix(f".{os.getpid()}")
    # Made with its rights, so that it is at no moment open to others.
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(f"*:*:*:*:{escaped}\n")
    draft.replace(path)


def without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """Leave out of an environment what an engine must not see: it keeps the environment of a job, and shows it."""
    secret = {"HPOPT_STORAGE", "HPOPT_DASHBOARD_PASSWORD", "PGPASSWORD"}
    return {name: value for name, value in environment.items() if name not in secret}
