"""Report the evaluations and the result of an attempt, through an outbox on disk, and return the decisions."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from functools import partial
from pathlib import Path
from typing import Any

from hpopt.storage import attempts, evaluations
from hpopt.storage.attempts import Attempt
from hpopt.storage.database import Database
from hpopt.storage.evaluations import Decision
from hpopt.storage.studies import Study
from hpopt.study.plan import rungs_of
from hpopt.training.run import Evaluation
from hpopt.worker import outbox
from hpopt.worker.database_thread import DatabaseThread, Task
from hpopt.worker.objective import TrialResult
from hpopt.worker.outbox import Outbox

# How long training waits for the decision of a database that responds slowly.
_DECISION_TIMEOUT_S = 5.0
_POLL_S = 0.1
# All waiting of a trial takes at most this long, and this share of its time.
_WAIT_S = 0.5
_WAIT_SHARE = 0.05


class TrialReporter:
    """Reports one attempt to the database."""

    def __init__(
        self,
        thread: DatabaseThread,
        database: Database,
        study: Study,
        attempt: Attempt,
        folder: Path,
        *,
        on_pause: Callable[[], None],
    ) -> None:
        """Report from the outbox in `folder`; `on_pause` is called when the study was paused."""
        self._thread = thread
        self._database = database
        self.study = study
        self.folder = folder
        self._attempt = attempt
        self._on_pause = on_pause
        # Copied here with the checkpoint of the previous attempt, which could not send it.
        self._inherited = outbox.read_or_none(folder / outbox.NAME)
        self._outbox = Outbox(folder, study, attempt, self._inherited)
        self._rungs = rungs_of(study.file)
        self._rung: float | None = None
        # The batch of evaluations that the database thread has not begun to record.
        self._open_batch: list[Evaluation] | None = None
        self._lock = threading.Lock()
        self._pending: deque[Future[Decision]] = deque()
        self._began = time.monotonic()
        self._waited_s = 0.0

    def resend(self) -> TrialResult | None:
        """Send the evaluations that the previous attempt could not; return its result if the trial had finished."""
        if self._inherited is None:
            return None
        for evaluation in self._inherited.evaluations:
            self._send_evaluation(evaluation)
        return self._inherited.final_result

    def report(self, evaluation: Evaluation) -> Decision:
        """Send an evaluation and return the decision on the trial. Raises Fenced.

        The trial goes on, and the decision comes with a later evaluation, while the database is unreachable or slow,
        and where waiting for it would take more than a twentieth of the time of the trial.
        """
        self._outbox.add_evaluation(evaluation)
        self._send_evaluation(evaluation)
        now = time.monotonic()
        if self._waited_s <= _WAIT_S + _WAIT_SHARE * (now - self._began):
            deadline = now + _DECISION_TIMEOUT_S
            while self._thread.is_responsive and time.monotonic() < deadline and wait(self._pending, _POLL_S).not_done:
                continue
            self._waited_s += time.monotonic() - now
        decision = Decision()
        while self._pending and self._pending[0].done():
            newest = self._pending.popleft().result()
            if newest.should_pause:
                self._on_pause()
            if newest.prune_reason is not None:
                decision = newest
        return decision

    def finish(self, result: TrialResult, *, retry_after_s: float | None = None) -> None:
        """Send the result and wait until it is recorded. Raises Fenced and DatabaseLostError."""
        if self._inherited is None or self._inherited.final_result is None:
            self._outbox.add_result(result)
        finish = partial(
            attempts.finish,
            self._database,
            self._attempt,
            result.outcome,
            value=result.value,
            reason=result.reason,
            test_metrics=result.test_metrics,
            retry_after_s=retry_after_s,
        )
        self._thread.wait_for(self._send(finish, [result]))
        while self._pending:
            self._pending.popleft().result()

    def _send_evaluation(self, evaluation: Evaluation) -> None:
        """Queue an evaluation. Those that wait while the database is busy are recorded in one statement.

        A statement compares the trial at a rung by its last evaluation, so the first evaluation at a rung ends a batch.
        """
        rung = self._rungs.reached(evaluation.step, evaluation.n_steps)
        is_first_at_rung, self._rung = rung is not None and rung != self._rung, rung
        with self._lock:
            batch = self._open_batch
            is_new = batch is None or evaluation.step <= batch[-1].step
            if batch is None or is_new:
                batch = []
            batch.append(evaluation)
            self._open_batch = None if is_first_at_rung else batch
        if is_new:
            self._pending.append(self._send(partial(self._record, batch), batch))

    def _record(self, batch: list[Evaluation]) -> Decision:
        with self._lock:
            if self._open_batch is batch:
                self._open_batch = None
        *earlier, last = batch
        return evaluations.record(self._database, self.study, self._attempt, last, earlier=earlier)

    def _send(self, task: Task[Any], lines: Sequence[object]) -> "Future[Any]":
        future = self._thread.submit(task, is_heartbeat=True)
        future.add_done_callback(partial(self._on_sent, lines))
        return future

    def _on_sent(self, lines: Sequence[object], future: "Future[Any]") -> None:
        # What a fenced attempt could not send stays in its outbox: the next attempt can have an older checkpoint.
        if not future.cancelled() and future.exception() is None:
            self._outbox.mark_sent(len(lines))
