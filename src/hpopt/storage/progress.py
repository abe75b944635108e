"""Records of where a study stands."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from hpopt.analysis.answer import Answer, AnswerKind, ConfirmedCandidate
from hpopt.analysis.trials import ExternalTrials, Outcome
from hpopt.hyperparameters import Scalar


@dataclass(frozen=True, kw_only=True)
class StudyState:
    """Whether a study is open, paused or stopped, why and since when, and how many trials run, wait or have failed."""

    state: str
    reason: str | None
    since: datetime
    n_running: int
    n_pending_retry: int
    n_failed: int


@dataclass(frozen=True, kw_only=True)
class Enqueued:
    """The trials of a configuration: whether they are new, how many come before them, what ends the study before them.

    `seeds` are those that were asked for.
    """

    trials: tuple[int, ...]
    seeds: tuple[int, ...] = ()
    is_new: bool
    n_ahead: int = 0
    blocked_by: str | None = None


@dataclass(frozen=True, kw_only=True)
class BudgetUsage:
    """What a study has spent: trials, device hours, hours in which a trial was running, and its best value.

    `family_hours`, `family_wall_hours` and `family_tokens` are those of the study and of what follows it, which limits
    bound together; `reserved_hours`, device hours, and `reserved_tokens` are those that its confirmation is expected to
    take. `n_enqueued` trials wait for their first attempt. `state` is open, paused or stopped.
    """

    state: str
    state_reason: str | None
    n_finished: int
    n_running: int
    n_pending_retry: int
    n_enqueued: int
    device_hours: float
    wall_hours: float
    best_value: float | None
    family_hours: float = 0.0
    family_wall_hours: float = 0.0
    reserved_hours: float = 0.0
    family_tokens: int = 0
    reserved_tokens: float = 0.0

    @property
    def n_waiting(self) -> int:
        """Trials that wait for an attempt, their first or a further one."""
        return self.n_enqueued + self.n_pending_retry

    @property
    def n_started(self) -> int:
        """Trials that were started, finished or not."""
        return self.n_finished + self.n_running + self.n_pending_retry


@dataclass(frozen=True, kw_only=True)
class Best:
    """A row of the view hpopt.best_params: the answer of a confirmation, or the best configuration by its mean.

    Of a comparison it is the better `arm`, else the first one; `params` has what any of its arms sets.

    From value_low to value_high is the 95% interval of the mean over its n_seeds seeds: None for a value of a single
    run. `folder` on `host` has the files of the trial, such as its checkpoint, if the study keeps them. `optimism`,
    `noise_std`, `candidates` and `test_metrics` are those of a confirmation, as in hpopt.analysis.answer.Answer.
    """

    study_name: str
    value: float
    value_low: float | None
    value_high: float | None
    n_seeds: int
    source: str
    params: Mapping[str, Scalar]
    trial: int
    finished_at: datetime
    host: str | None = None
    folder: str | None = None
    answer: AnswerKind = AnswerKind.UNCONFIRMED
    optimism: float | None = None
    noise_std: float | None = None
    candidates: tuple[ConfirmedCandidate, ...] | None = None
    test_metrics: Mapping[str, float] | None = None
    arm: str | None = None

    @property
    def confirmed(self) -> Answer | None:
        """The answer of the confirmation, or None if there is none."""
        if self.optimism is None or self.noise_std is None:
            return None
        return Answer(
            kind=self.answer,
            trial=self.trial,
            optimism=self.optimism,
            noise_std=self.noise_std,
            candidates=self.candidates or (),
            test_metrics=self.test_metrics,
        )


@dataclass(frozen=True, kw_only=True)
class WorkerRow:
    """A worker of the fleet and its last evaluation; the fields of its trial are None between trials.

    `engine` started it on the node `host` as `job`, which is None on this machine. `seconds` is the duration of the
    attempt, `trial_device_seconds` that of all attempts at the trial, on any worker.
    """

    worker_id: int
    host: str
    pid: int
    engine: str
    job: str | None
    device: str
    started_at: datetime
    seconds_since_heartbeat: float
    is_stale: bool
    device_seconds: float | None
    trial: int | None
    attempt_number: int | None
    trial_started_at: datetime | None
    seconds: float | None
    trial_device_seconds: float | None
    step: int | None
    tokens: int | None
    value: float | None
    tokens_per_second: float | None


@dataclass(frozen=True, kw_only=True)
class FinishedTrial:
    """A finished trial: its outcome, value and reason."""

    trial: int
    outcome: Outcome
    value: float | None
    reason: str | None
    device_seconds: float
    finished_at: datetime


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a study stands: its budget, the outcomes of its trials, its workers, and its best against the defaults.

    `finished_reason` is None while the study goes on, or what follows it: its `confirmation`, which is None before it
    starts. `n_by_outcome` counts finished trials by outcome and the others as `running` and `waiting`. `recent_seconds`
    are the device seconds of the trials that finished last.
    """

    name: str
    metric: str
    state_since: datetime
    planned_trials: int | None
    n_steps: int | None
    finished_reason: str | None
    usage: BudgetUsage
    n_by_outcome: Mapping[str, int]
    tokens: int
    workers: tuple[WorkerRow, ...]
    best: Best | None
    default_value: float | None
    recent_seconds: tuple[float, ...] = ()
    external: ExternalTrials = field(default_factory=ExternalTrials)
    confirmation: "Progress | None" = None
    is_comparison: bool = False

    @property
    def n_failed(self) -> int:
        """The number of failed trials that are not to be retried."""
        return self.n_by_outcome.get(Outcome.FAILED, 0)
