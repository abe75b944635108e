"""The folder that tests launch from, and a Slurm of three nodes."""

import shutil
import tempfile
from pathlib import Path

import pytest
from slurm_cluster import SlurmCluster
from workplace import Workplace

pytest.register_assert_rewrite("conformance")


@pytest.fixture(scope="session")
def slurm():
    """A Slurm of three nodes."""
    missing = [program for program in ("slurmctld", "slurmd", "munged") if shutil.which(program) is None]
    if missing:
        pytest.skip(f"SKIPPED: no {', '.join(missing)} here; tests/engines/install.sh installs it")
    # Node names and sockets make long paths longer.
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder, SlurmCluster(Path(folder)) as cluster:
        yield cluster


@pytest.fixture
def workplace(tmp_path, database_url):
    """A folder with a training module, and a database of its own."""
    return Workplace(tmp_path, database_url)
