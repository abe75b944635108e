"""The promises that every engine keeps. An engine's test file subclasses a suite and provides the fixture `engine`."""

import os
import re
import signal
from pathlib import Path
from urllib.parse import urlsplit

NAME = "paced"
# The last step is the one that `Workplace.hold` stretches.
STEPS = 3


class Engine:
    """How the suites drive an engine. `n_workers` is as many as it runs at a time."""

    name: str
    n_workers: int
    # What `hpopt launch` needs beside the study and the number of workers, and what `--stop` needs.
    launch_options: tuple[str, ...] = ()
    stop_options: tuple[str, ...] = ()
    # What `--stop` says that it cancelled after one launch.
    cancelled: str

    def __init__(self, workplace):
        self.workplace = workplace

    def launch_command(self, n_workers=None, *options):
        """Return the arguments of hpopt that launch workers."""
        number = str(n_workers or self.n_workers)
        shared = (*self.launch_options, *self.workplace.heartbeat_options, *options)
        return ("launch", self.name, NAME, "--workers", number, *shared)

    def launch(self, n_workers=None):
        """Launch workers and return what was printed."""
        return self.workplace.hpopt(*self.launch_command(n_workers))

    def stop(self):
        """Cancel what was launched and return what was printed."""
        return self.workplace.hpopt("launch", self.name, NAME, *self.stop_options, "--stop")

    def wait_until_started(self):
        """Wait until all workers train."""
        self.workplace.wait_for_workers(NAME, self.n_workers)

    def list_jobs(self):
        """Return what the engine runs or keeps in its queue."""
        raise NotImplementedError

    def read_records(self):
        """Return everything but logs in which the engine could show a password."""
        return []

    def expected_jobs(self, printed):
        """Return the jobs that the fleet view shows after a launch printed this."""
        raise NotImplementedError

    def expected_nodes(self):
        """Return the nodes on which workers run."""
        raise NotImplementedError

    def preempt(self, workers):
        """Ask workers to stop, as the engine does when it needs their resources."""
        for worker in workers:
            os.kill(worker["pid"], signal.SIGTERM)


class LaunchConformance:
    """What an engine promises of a launch."""

    def test_a_dry_run_starts_nothing_and_shows_no_password(self, engine):
        engine.workplace.create(NAME, trials=4, steps=STEPS)
        printed = engine.workplace.hpopt(*engine.launch_command(None, "--dry-run"))
        assert re.search(rf"worker['\s-]*{NAME}", printed)
        assert password_of(engine) not in printed
        assert not engine.list_jobs()
        assert not engine.workplace.query("select from hpopt.worker")

    def test_a_finished_study_is_refused(self, engine):
        engine.workplace.create(NAME, trials=4, steps=STEPS)
        engine.workplace.hpopt("stop", NAME)
        completed = engine.workplace.try_hpopt(*engine.launch_command())
        assert completed.returncode == 2, completed
        assert completed.stderr.startswith(f"hpopt: study '{NAME}' is finished: stopped")
        assert completed.stderr.endswith(f"; `hpopt resume {NAME}` continues it\n")
        assert not engine.list_jobs()

    def test_the_password_is_in_no_command_line_record_or_log(self, engine):
        engine.workplace.hold()
        engine.workplace.create(NAME, trials=50, steps=STEPS)
        printed = engine.launch()
        engine.wait_until_started()
        shown = [printed, *engine.read_records(), *engine.workplace.logs().values(), *command_lines()]
        # The texts are those of this launch.
        assert any(NAME in text for text in shown)
        assert not [text for text in shown if password_of(engine) in text]

    def test_a_stop_cancels_what_was_launched(self, engine):
        engine.workplace.hold()
        engine.workplace.create(NAME, trials=50, steps=STEPS)
        engine.launch()
        engine.wait_until_started()
        assert engine.stop() == f"{NAME}: {engine.cancelled} cancelled\n"
        engine.workplace.wait_until(lambda: not engine.list_jobs())
        assert engine.stop().startswith(f"{NAME}: 0 ")


class WorkerConformance:
    """What an engine promises of the workers that it runs."""

    def launch_and_hold(self, engine, *, trials):
        """Launch all workers and wait until each is in a last step; return what was printed, and the workers."""
        engine.workplace.hold()
        engine.workplace.create(NAME, trials=trials, steps=STEPS)
        printed = engine.launch()
        return printed, engine.workplace.wait_for_held_trials(NAME, engine.n_workers, steps=STEPS)

    def test_workers_appear_in_the_fleet_with_engine_job_and_node(self, engine):
        printed, workers = self.launch_and_hold(engine, trials=50)
        assert {worker["engine"] for worker in workers} == {engine.name}
        assert {worker["job"] for worker in workers} == engine.expected_jobs(printed)
        assert {worker["host"] for worker in workers} == engine.expected_nodes()
        assert len({worker["pid"] for worker in workers}) == engine.n_workers

    def test_a_budget_of_trials_is_spent_exactly_and_nothing_stays(self, engine):
        """With more workers than GPUs, and fewer trials than workers."""
        trials = engine.n_workers - 1
        engine.workplace.create(NAME, trials=trials, steps=STEPS)
        engine.launch(engine.n_workers + 2)
        engine.workplace.wait_until_finished(NAME, trials=trials, steps=STEPS)
        engine.workplace.wait_until(lambda: not engine.list_jobs())
        engine.workplace.wait_until_finished(NAME, trials=trials, steps=STEPS)
        assert engine.workplace.outcomes(NAME) == {"complete": trials}
        assert not engine.workplace.workers(NAME)

    def test_a_killed_worker_loses_no_trial(self, engine):
        """Its trial is retried from the checkpoint and counted once."""
        trials = engine.n_workers + 2
        _, workers = self.launch_and_hold(engine, trials=trials)
        os.kill(workers[0]["pid"], signal.SIGKILL)
        engine.workplace.release()
        engine.workplace.wait_until_finished(NAME, trials=trials, steps=STEPS)
        assert engine.workplace.outcomes(NAME) == {"complete": trials, "lost": 1}
        assert first_steps(engine) in ([1] * trials + [STEPS - 1], [1] * trials + [STEPS])

    def test_preempted_workers_return_their_trials_with_checkpoints_and_exit_with_75(self, engine):
        """And the engine runs them again."""
        trials = engine.n_workers + 2
        _, workers = self.launch_and_hold(engine, trials=trials)
        engine.preempt(workers)
        engine.workplace.wait_for_attempts(NAME, preempted=engine.n_workers)
        engine.workplace.release()
        engine.workplace.wait_until_finished(NAME, trials=trials, steps=STEPS)
        assert engine.workplace.outcomes(NAME) == {"complete": trials, "preempted": engine.n_workers}
        assert first_steps(engine) == [1] * trials + [STEPS] * engine.n_workers
        logs = "".join(engine.workplace.logs().values())
        assert logs.count("worker exited with code 75") == engine.n_workers

    def test_stopped_workers_return_their_trials_and_another_launch_continues_them(self, engine):
        trials = engine.n_workers
        self.launch_and_hold(engine, trials=trials)
        engine.stop()
        engine.workplace.wait_until(lambda: not engine.list_jobs())
        assert engine.workplace.outcomes(NAME) == {"preempted": trials}
        assert not engine.workplace.workers(NAME)
        engine.workplace.release()
        engine.launch()
        engine.workplace.wait_until_finished(NAME, trials=trials, steps=STEPS)
        assert engine.workplace.outcomes(NAME) == {"complete": trials, "preempted": trials}
        assert first_steps(engine) == [1] * trials + [STEPS] * trials


class ClusterConformance(WorkerConformance):
    """What an engine of several nodes promises of its workers.

    Its adapter has `lost_outcomes`, `restore_node`, and `lose_node`, which returns how many of the workers have ended.
    """

    def test_a_lost_node_loses_no_trial(self, engine):
        trials = engine.n_workers + 4
        _, workers = self.launch_and_hold(engine, trials=trials)
        n_lost = engine.lose_node(workers)
        try:
            engine.workplace.release()
            engine.workplace.wait_until_finished(NAME, trials=trials, steps=STEPS)
        finally:
            engine.restore_node()
        outcomes = engine.workplace.outcomes(NAME)
        assert outcomes.pop("complete") == trials
        assert outcomes.total() == n_lost
        assert outcomes.keys() <= engine.lost_outcomes


def password_of(engine):
    """Return the password of the database."""
    password = urlsplit(engine.workplace.url).password
    assert password
    return password


def first_steps(engine):
    """Return the steps at which attempts started, in order of size."""
    return sorted(start["first_step"] for start in engine.workplace.starts())


def command_lines():
    """Return the command lines of all processes of this study."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if "hpopt" in line and NAME in line:
            lines.append(line)
    return lines
