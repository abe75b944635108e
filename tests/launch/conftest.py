"""An order of workers, as the engines get it."""

from pathlib import Path

import pytest

from hpopt.launch.job import Access, Order


@pytest.fixture
def order(tmp_path: Path) -> Order:
    """Three workers with a GPU each, whose database has a password that is awkward to write down."""
    return Order(
        name="hpopt-tiny-0123abcd",
        study="tiny",
        n_workers=3,
        gpus_per_worker=1,
        command=["worker", "tiny", "--stale-after", "60"],
        home=tmp_path / "ho me",
        access=Access(url="postgresql+psycopg2://ann@db.example:5432/studies?sslmode=require", password="p:a\\ss w"),
    )
