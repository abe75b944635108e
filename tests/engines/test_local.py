"""`hpopt launch local`: worker processes of this machine."""

import os
import platform
import signal
import subprocess

import pytest
from conformance import NAME, Engine, LaunchConformance, WorkerConformance
from workplace import WAIT_S

pytestmark = pytest.mark.timeout(300)


class Local(Engine):
    """The processes of `hpopt launch local`, which runs for as long as its workers."""

    name = "local"
    n_workers = 2
    cancelled = "1 local run"

    def __init__(self, workplace):
        super().__init__(workplace)
        self.launches: list[subprocess.Popen[str]] = []

    def launch(self, n_workers=None):
        self.launches.append(self.workplace.start(*self.launch_command(n_workers)))
        return ""

    def list_jobs(self):
        return [launch for launch in self.launches if launch.poll() is None]

    def expected_jobs(self, _printed):
        return {None}

    def expected_nodes(self):
        return {platform.node()}


@pytest.fixture
def engine(workplace):
    """The machine that the tests run on."""
    engine = Local(workplace)
    yield engine
    for launch in engine.list_jobs():
        launch.terminate()
        launch.communicate(timeout=WAIT_S)


class TestLaunch(LaunchConformance):
    """In the fast suite."""


@pytest.mark.long
class TestWorkers(WorkerConformance):
    """With workers that are killed and preempted."""


@pytest.mark.long
def test_a_launch_ends_with_its_study_and_prints_the_answer(engine):
    engine.workplace.create(NAME, trials=2, steps=3)
    assert "best val_loss" in engine.workplace.hpopt(*engine.launch_command())


@pytest.mark.long
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_launch_that_is_interrupted_exits_with_75(engine, sent):
    engine.workplace.hold()
    engine.workplace.create(NAME, trials=50, steps=3)
    engine.launch()
    engine.wait_until_started()
    (launch,) = engine.launches
    os.kill(launch.pid, sent)
    _, err = launch.communicate(timeout=WAIT_S)
    assert launch.returncode == 75, err
    assert engine.workplace.outcomes(NAME) == {"preempted": 2}
