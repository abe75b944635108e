"""Owns what a running attempt says and is told: evaluations and its end go out, verdicts come back, perhaps later.

Leaves the way to the database to courier.py and the disk to storage/journal.py.
"""

import time
from collections import deque
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

from hpopt.storage import attempts, evaluations
from hpopt.storage.attempts import Attempt
from hpopt.storage.database import Database
from hpopt.storage.evaluations import Verdict
from hpopt.storage.studies import Study
from hpopt.study import plan
from hpopt.training.run import Evaluation
from hpopt.worker import outbox
from hpopt.worker.database_thread import Courier
from hpopt.worker.outbox import Journal

# How long training waits for a verdict from a database that answers slowly.
_PATIENCE_S = 5.0
_POLL_S = 0.1


class Delivery:
    """The line from one attempt to the database."""

    def __init__(self, courier: Courier, database: Database, study: Study, attempt: Attempt, folder: Path) -> None:
        self._courier = courier
        self._database = database
        self.study = study
        self.folder = folder
        self._attempt = attempt
        self._steps = set(attempt.earlier_steps)
        self._rungs = plan.rungs_of(study.file)
        # Copied here with the checkpoint of the go before, whose worker did not get it delivered.
        self.inherited = outbox.read_if_whole(folder / outbox.NAME)
        self._journal = Journal(folder, study, attempt, self.inherited)
        self._sent: deque[Future[Verdict]] = deque()

    def hand_on(self) -> None:
        """Send what the go before this one could not."""
        for evaluation in self.inherited.evaluations if self.inherited else ():
            self._send_evaluation(evaluation)

    def evaluation(self, evaluation: Evaluation) -> Verdict | None:
        """Send an evaluation, and give the newest verdict that has come back, if one has. Raises Fenced."""
        self._journal.evaluation(evaluation)
        self._send_evaluation(evaluation)
        deadline = time.monotonic() + _PATIENCE_S
        while self._courier.is_waited_for and time.monotonic() < deadline and wait(self._sent, _POLL_S).not_done:
            continue
        verdict = None
        while self._sent and self._sent[0].done():
            newest = self._sent.popleft().result()
            if verdict is None or newest.is_hopeless or newest.limit or newest.is_paused:
                verdict = newest
        return verdict

    def end(self, **end: Any) -> None:  # noqa: ANN401 - kind, value and reason, as attempts.finish takes them.
        """Send how the attempt ended and wait until it is known. Raises Fenced and DatabaseLostError."""
        if self.inherited is None or not self.inherited.is_final:
            self._journal.end(**end)
        self._courier.wait_for(self._send(lambda: attempts.finish(self._database, self._attempt, **end)))
        while self._sent:
            self._sent.popleft().result()

    def _send_evaluation(self, evaluation: Evaluation) -> None:
        step = evaluation.step
        rung = self._rungs.reached(step, evaluation.n_steps, max((s for s in self._steps if s < step), default=0))
        self._steps.add(step)
        self._sent.append(
            self._send(lambda: evaluations.record(self._database, self.study, self._attempt, evaluation, rung))
        )

    def _send(self, errand: Any) -> "Future[Any]":  # noqa: ANN401 - what the errand gives.
        future = self._courier.send(errand, is_beat=True)
        future.add_done_callback(self._is_through)
        return future

    def _is_through(self, future: "Future[Any]") -> None:
        # What was fenced stays there: the next go may have the checkpoint that lies behind it.
        if not future.cancelled() and future.exception() is None:
            self._journal.delivered()
