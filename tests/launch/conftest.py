"""A job as the engines get it."""

from pathlib import Path

import pytest

from hpopt.launch.job import Credentials, JobSpec


@pytest.fixture
def job_spec(tmp_path: Path) -> JobSpec:
    """Three workers with a GPU each, whose database password and home need quoting."""
    return JobSpec(
        name="hpopt-tiny-0123abcd",
        study="tiny",
        n_workers=3,
        gpus_per_worker=1,
        command=["worker", "tiny", "--stale-after", "60"],
        home=tmp_path / "ho me",
        credentials=Credentials(
            url="postgresql+psycopg2://ann@db.example:5432/studies?sslmode=require", password="p:a\\ss w"
        ),
    )
