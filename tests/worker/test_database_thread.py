"""The database thread runs tasks in order, repeats them while the database is unreachable, and logs both."""

import threading
import time

import pytest

from hpopt.errors import DatabaseError, DatabaseLostError, Fenced
from hpopt.worker.database_thread import DatabaseThread, DatabaseThreadOptions


class Worker:
    """A database thread whose database is reachable or not, as a test decides."""

    def __init__(self, **options):
        self.is_reachable = threading.Event()
        self.is_reachable.set()
        self.heartbeat_error = None
        self.n_heartbeats = 0
        self.n_disconnects = 0
        self.finished_tasks = []
        self.log = []
        self.stop = threading.Event()
        times = {"heartbeat_every_s": 0.1, "give_up_after_s": 20.0, "retry_every_s": 0.05, **options}
        self.thread = DatabaseThread(
            DatabaseThreadOptions(
                heartbeat=self.heartbeat, disconnect=self.disconnect, log=self.log.append, stop=self.stop, **times
            )
        )

    def heartbeat(self):
        if self.heartbeat_error is not None:
            raise self.heartbeat_error
        self.reach()
        self.n_heartbeats += 1

    def disconnect(self):
        self.n_disconnects += 1

    def reach(self):
        if not self.is_reachable.is_set():
            raise DatabaseError("connection refused")

    def task(self, name):
        def run():
            self.reach()
            self.finished_tasks.append(name)
            return name

        return run


@pytest.fixture
def worker():
    worker = Worker()
    with worker.thread:
        yield worker


def wait_for(condition, timeout_s=10):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_tasks_wait_in_order_until_the_database_is_reachable_again(worker):
    worker.is_reachable.clear()
    futures = [worker.thread.submit(worker.task(k)) for k in range(5)]
    wait_for(lambda: worker.thread.is_unreachable)
    assert worker.finished_tasks == []
    worker.is_reachable.set()
    assert [future.result(timeout=10) for future in futures] == list(range(5))
    assert worker.finished_tasks == list(range(5))
    assert not worker.thread.is_unreachable
    assert worker.log == [
        "the database is unreachable, training goes on: connection refused",
        "the database is reachable again after 0 s",
    ]


def test_an_exception_of_a_task_is_raised_where_its_result_is_awaited_and_the_next_task_runs(worker):
    def fail():
        raise Fenced("trial 3 was reassigned to another worker")

    with pytest.raises(Fenced, match="trial 3 was reassigned to another worker"):
        worker.thread.call(fail)
    assert worker.thread.call(worker.task("next")) == "next"


def test_heartbeats_continue_between_tasks_and_after_an_outage(worker):
    wait_for(lambda: worker.n_heartbeats >= 2)
    worker.is_reachable.clear()
    wait_for(lambda: worker.thread.is_unreachable)
    worker.is_reachable.set()
    before = worker.n_heartbeats
    wait_for(lambda: worker.n_heartbeats > before + 1)


def test_only_a_task_that_renews_the_heartbeat_postpones_the_next_one():
    worker = Worker(heartbeat_every_s=3600.0)
    due = worker.thread._heartbeat_at
    with worker.thread:
        worker.thread.call(worker.task("first"))
        worker.thread.call(worker.task("second"))
        assert worker.thread._heartbeat_at == due
        worker.thread.submit(worker.task("evaluation"), is_heartbeat=True)
        wait_for(lambda: worker.thread._heartbeat_at > due)
    assert worker.n_heartbeats == 0


def test_an_idle_connection_is_closed_once():
    worker = Worker(heartbeat_every_s=60.0, disconnect_after_s=0.1)
    with worker.thread:
        worker.thread.call(worker.task("first"))
        wait_for(lambda: worker.n_disconnects == 1)
        worker.thread.call(worker.task("second"))
        wait_for(lambda: worker.n_disconnects == 2)
    assert worker.n_disconnects == 2


def test_a_connection_stays_open_between_tasks_in_short_succession():
    worker = Worker(heartbeat_every_s=60.0, disconnect_after_s=5.0)
    with worker.thread:
        for k in range(20):
            worker.thread.call(worker.task(k))
    assert worker.n_disconnects == 0


def test_a_call_fails_when_the_database_stays_unreachable():
    worker = Worker(give_up_after_s=0.2)
    with worker.thread:
        worker.is_reachable.clear()
        with pytest.raises(DatabaseLostError, match="lost the database"):
            worker.thread.call(worker.task("lost"))
        assert worker.thread.has_given_up
    assert worker.finished_tasks == []


def test_a_worker_that_was_asked_to_stop_does_not_wait_until_it_gives_up():
    worker = Worker(stop_timeout_s=0.1, give_up_after_s=3600.0)
    with worker.thread:
        worker.is_reachable.clear()
        worker.stop.set()
        with pytest.raises(DatabaseLostError):
            worker.thread.call(worker.task("lost"))
        assert not worker.thread.has_given_up
    assert worker.finished_tasks == []


def test_a_worker_that_was_asked_to_stop_still_waits_for_a_database_that_responds(worker):
    worker.stop.set()
    assert worker.thread.call(worker.task("last")) == "last"


def test_a_failure_of_the_thread_itself_is_raised_by_the_next_call(worker):
    """A worker without heartbeats would train a trial that other workers run again."""
    worker.heartbeat_error = ZeroDivisionError("in the heartbeat")
    wait_for(lambda: worker.thread.has_given_up)
    with pytest.raises(ZeroDivisionError, match="in the heartbeat"):
        worker.thread.call(worker.task("first"))
