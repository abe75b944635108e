"""Connections and what an address says."""

import pytest

from hpopt.storage.database import is_loopback


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.5", "gpu-node-7", "localhost.evil.example"])  # noqa: S104 - that is the point.
def test_what_others_may_reach_is_no_loopback(host: str):
    assert not is_loopback(host)
