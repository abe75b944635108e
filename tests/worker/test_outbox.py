"""The outbox keeps what it can on a disk that fails."""

from datetime import UTC, datetime
from types import SimpleNamespace

from hpopt.storage.attempts import Attempt
from hpopt.training.run import Evaluation
from hpopt.worker import outbox


def test_an_incomplete_line_does_not_lose_the_next_one(tmp_path):
    """As a disk leaves it that was full for a moment."""
    study = SimpleNamespace(name="s", created_at=datetime(2026, 11, 27, tzinfo=UTC))
    attempt = Attempt(attempt_id=1, study_id=1, trial_id=1, optuna_trial_id=1, number=0, params={})
    box = outbox.Outbox(tmp_path, study, attempt)
    evaluations = [Evaluation(step=k, n_steps=3, tokens=k, seconds=1.0, metrics={"loss": 1.0}) for k in (1, 2, 3)]
    for evaluation in evaluations[:2]:
        box.add_evaluation(evaluation)
    box.path.write_text(box.path.read_text().rstrip()[:-9])
    box.add_evaluation(evaluations[2])
    assert outbox.read(box.path).evaluations == (evaluations[0], evaluations[2])
