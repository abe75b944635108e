"""The courier runs errands in order, again and again while the database is away, and never without a word."""

import threading
import time

import pytest

from hpopt.errors import DatabaseError, DatabaseLostError, Fenced
from hpopt.worker.database_thread import DatabaseThread, DatabaseThreadOptions


class Post:
    """A courier whose database is there or away as a test says."""

    def __init__(self, **changed):
        self.is_there = threading.Event()
        self.is_there.set()
        self.n_beats = 0
        self.n_released = 0
        self.done = []
        self.said = []
        self.stop = threading.Event()
        patience = {"heartbeat_every_s": 0.1, "give_up_after_s": 20.0, **changed}
        self.courier = DatabaseThread(
            DatabaseThreadOptions(
                beat=self.beat, release=self.release, say=self.said.append, stop=self.stop, **patience
            )
        )

    def heartbeat(self):
        self.reach()
        self.n_beats += 1

    def release(self):
        self.n_released += 1

    def reach(self):
        if not self.is_there.is_set():
            raise DatabaseError("nobody there")

    def errand(self, name):
        def run():
            self.reach()
            self.done.append(name)
            return name

        return run


@pytest.fixture
def post():
    post = Post()
    with post.courier:
        yield post


def wait_for(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_errands_wait_in_order_until_the_database_is_back(post):
    post.is_there.clear()
    futures = [post.courier.send(post.errand(k)) for k in range(5)]
    wait_for(lambda: post.courier.is_away)
    assert post.done == []
    post.is_there.set()
    assert [future.result(timeout=10) for future in futures] == list(range(5))
    assert post.done == list(range(5))
    assert not post.courier.is_away
    assert [line.split(":")[0].split(" after")[0] for line in post.said] == [
        "the database is away, going on without it",
        "the database is back",
    ]


def test_what_an_errand_raises_reaches_whoever_waits_and_the_next_one_runs(post):
    def fail():
        raise Fenced("trial 3 was handed on to another worker")

    with pytest.raises(Fenced):
        post.courier.call(fail)
    assert post.courier.call(post.errand("next")) == "next"


def test_heartbeats_go_on_between_errands_and_after_an_outage(post):
    wait_for(lambda: post.n_beats >= 2)
    post.is_there.clear()
    wait_for(lambda: post.courier.is_away)
    post.is_there.set()
    before = post.n_beats
    wait_for(lambda: post.n_beats > before + 1)


def test_an_errand_that_is_a_sign_of_life_spares_the_heartbeat():
    post = Post(heartbeat_every_s=0.5)
    with post.courier:
        for k in range(10):
            post.courier.send(post.errand(k), is_beat=True).result(timeout=5)
            time.sleep(0.1)
    assert post.n_beats == 0


def test_the_connection_is_given_up_when_nobody_needs_it():
    post = Post(heartbeat_every_s=60.0)
    with post.courier:
        post.courier.call(post.errand("one"))
        wait_for(lambda: post.n_released == 1)
        time.sleep(0.5)
        assert post.n_released == 1


def test_a_worker_that_gives_up_is_told(post):
    post = Post(give_up_after_s=0.5)
    with post.courier:
        post.is_there.clear()
        with pytest.raises(DatabaseLostError):
            post.courier.call(post.errand("lost"))
        assert post.courier.has_given_up


def test_a_worker_that_is_asked_to_stop_waits_a_few_seconds_only(post):
    post.is_there.clear()
    post.stop.set()
    began = time.monotonic()
    with pytest.raises(DatabaseLostError):
        post.courier.call(post.errand("lost"))
    assert time.monotonic() - began < 6
    assert post.done == []


def test_a_fault_of_the_courier_itself_is_not_silent():
    """A worker whose heartbeats had ended without a word would train on for nobody."""
    post = Post()
    post.courier._manners.__dict__["beat"] = lambda: 1 / 0
    with post.courier:
        time.sleep(0.5)
        with pytest.raises(ZeroDivisionError):
            post.courier.call(post.errand("one"))
