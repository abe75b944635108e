"""Check a training function as a worker runs it, without a database: for tests of users and `hpopt check --try`."""

import inspect
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hpopt.analysis.trials import Outcome
from hpopt.storage.evaluations import Decision
from hpopt.training.run import Evaluation, Run, never
from hpopt.worker.objective import TrainingFunction, TrialResult, run_trial

# A function is stopped and pruned at its second evaluation.
_N_EVALUATIONS = 2


def check(
    function: TrainingFunction,
    config: Any = None,  # noqa: ANN401 - the function's.
    *,
    metric: str = "val_loss",
    device: str = "cpu",
    can_resume: bool = True,
) -> None:
    """Run a training function up to its second evaluation, prune it there, stop it, and let it resume.

    Args:
        function: The training function.
        config: Its config, small enough for a test. Default: the defaults of the class that annotates its first
            parameter.
        metric: The metric that the study optimizes.
        device: Where to compute, as for `hpopt.Run`.
        can_resume: Whether a stopped run continues from its checkpoint. With False, beginning again is right.

    Raises:
        AssertionError: What a worker would refuse, warn about or lose, a line each.

    """
    config = _default_config(function) if config is None else config
    lines: list[str] = []
    problems, losses = rehearse(lambda: function, metric, config, device=device, log=lines.append)
    if can_resume:
        problems += losses
    if problems:
        raise AssertionError("\n".join([*problems, *lines]))


def rehearse(
    load: Callable[[], TrainingFunction],
    metric: str,
    config: Any,  # noqa: ANN401 - the function's.
    *,
    device: str,
    log: Callable[[str], None],
    on_evaluation: Callable[[Evaluation], None] = lambda _evaluation: None,
) -> tuple[list[str], list[str]]:
    """Prune a run, stop another, and return what a worker would refuse or warn about, and what a stop would lose.

    `on_evaluation` takes the evaluations of the first of them. `log` takes tracebacks.
    """
    problems: list[str] = []
    losses: list[str] = []

    def train(folder: Path, should_stop: Callable[[], bool], seen: _Seen) -> TrialResult:
        run = Run(folder=folder, cache=folder.parent / "cache", device=device, should_stop=should_stop)
        # A traceback explains a result that is a problem itself; a line is a warning.
        result = run_trial(
            load, metric, config, run, seen, log=lambda text: (log if "\n" in text else problems.append)(text)
        )
        if result.outcome in {Outcome.FAILED, Outcome.LOST, Outcome.DIVERGED}:
            problems.append(f"{result.outcome}: {result.reason}")
        return result

    with TemporaryDirectory() as home:
        pruned, stopped = Path(home, "pruned"), Path(home, "stopped")
        pruned.mkdir()
        stopped.mkdir()
        first = _Seen(on_evaluation, n_until_pruned=_N_EVALUATIONS)
        train(pruned, never, first)
        if not problems:
            problems += _find_problems(first.evaluations)
        if not problems and len(first.evaluations) > 1:
            has_evaluated = threading.Event()
            before = _Seen(lambda _evaluation: has_evaluated.set(), n_until_pruned=_N_EVALUATIONS)
            result = train(stopped, has_evaluated.is_set, before)
            after = _Seen(n_until_pruned=1)
            if result.outcome is Outcome.PREEMPTED:
                train(stopped, never, after)
            losses = _find_lost_steps(before.evaluations, after.evaluations)
    return list(dict.fromkeys(problems)), losses


@dataclass
class _Seen:
    """The evaluations of a run, which is pruned at the one with number `n_until_pruned`."""

    on_evaluation: Callable[[Evaluation], None] = lambda _evaluation: None
    n_until_pruned: int = 1
    evaluations: list[Evaluation] = field(default_factory=list)

    def __call__(self, evaluation: Evaluation) -> Decision:
        self.evaluations.append(evaluation)
        self.on_evaluation(evaluation)
        return Decision(step=evaluation.step, should_prune=len(self.evaluations) >= self.n_until_pruned)


def _find_problems(evaluations: list[Evaluation]) -> list[str]:
    """Return what a pruner cannot use."""
    problems = []
    if len({evaluation.n_steps for evaluation in evaluations}) > 1:
        problems.append("n_steps differs between evaluations: it is the number of steps of the whole run")
    problems += [
        f"step {evaluation.step} is beyond n_steps {evaluation.n_steps}"
        for evaluation in evaluations
        if evaluation.step > evaluation.n_steps
    ]
    return problems


def _find_lost_steps(before: list[Evaluation], after: list[Evaluation]) -> list[str]:
    if not before or not after or after[0].step > before[0].step or after[0].step == after[0].n_steps:
        return []
    begins = f"a run that was stopped after step {before[-1].step} begins again and reports step {after[0].step}"
    return [f"{begins}: save to run.checkpoint before each evaluation, and start from it if it exists"]


def _default_config(function: Callable[..., Any]) -> Any:  # noqa: ANN401 - the function's.
    parameters = list(inspect.signature(function, eval_str=True).parameters.values())
    if not parameters or not isinstance(parameters[0].annotation, type):
        raise AssertionError("the first parameter is not annotated with a frozen dataclass")
    return parameters[0].annotation()
