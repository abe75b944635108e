"""The plan and the answer of a study are rendered for people."""

import io
from dataclasses import replace
from datetime import UTC, datetime

from rich.console import Console

from hpopt.analysis.trials import Outcome
from hpopt.search.space import Categorical, Float, Int
from hpopt.storage.progress import BudgetUsage, FinishedTrial, Progress
from hpopt.study.reading import parse_study_file
from hpopt.terminal.answer import format_cost, format_finished, format_range, render_plan, render_rows

PLAN = """
name = "small"
[budget]
trials = 4
wall_hours = 1.5
[search_space]
learning_rate = { low = 0.001, high = 0.3, log = true }
split = { choices = ["documents", "overlapping_windows"] }
[fixed]
max_steps = 90
eval_steps = 10
batch_size = 8
sequence_length = 128
"""


def text_of(renderable):
    console = Console(file=io.StringIO(), width=200)
    console.print(renderable)
    return console.file.getvalue()


def test_a_range_is_formatted_with_its_scale_and_a_choice_with_its_values():
    assert format_range(Float(low=0.001, high=0.3, log=True)) == "0.001 to 0.3 (log)"
    assert format_range(Int(low=1, high=9)) == "1 to 9"
    assert format_range(Categorical(choices=("muon", 3))) == "muon, 3"


def test_a_plan_has_space_budget_rungs_and_cost():
    text = text_of(render_plan(parse_study_file(PLAN, "small.toml").file))
    for part in (
        "small: minimize val_loss (objective: pretrain)",
        "0.001 to 0.3 (log)",
        "sampler tpe, pruner asha at steps 10, 30 of 90",
        "budget: trials 4, wall hours 1.5",
        "a complete trial trains on 92.2k tokens, about ",
        "cost: at most 369k tokens, about ",
        " TFLOP; less with pruning",
    ):
        assert part in text


def test_a_plan_of_a_fixed_design_says_how_many_trials_run_and_what_they_can_show():
    text = """
name = "ofat"
seeds = 3
[sampler]
name = "one_at_a_time"
base = { optimizer = "adamw" }
[search_space]
optimizer = { choices = ["muon", "adamw"] }
momentum = { low = 0.9, high = 0.98, num = 3, when = { optimizer = "muon" } }
n_layers = { low = 2, high = 6, type = "int" }
[derived]
adamw_learning_rate = "0.1 * 0.02 / n_layers"
[confirm]
top = 3
seeds = 4
"""
    plan = text_of(render_plan(parse_study_file(text, "ofat.toml").file))
    assert "one at a time: base and 5 changes x 3 seeds: 18 trials" in plan
    assert "base: optimizer = adamw, n_layers = 6" in plan
    assert "momentum is inactive in the base: its values are not tested" in plan
    assert "confirmation of the best 3 with 4 seeds: at most 12 runs more" in plan
    assert "4 seeds show a difference of 3 run-to-run standard deviations with 80% power" in plan
    assert "budget" not in plan
    grid = text.replace("one_at_a_time", "grid").replace('base = { optimizer = "adamw" }', "")
    assert "grid of 20 points x 3 seeds: 60 trials" in text_of(render_plan(parse_study_file(grid, "ofat.toml").file))


def test_a_plan_warns_of_a_split_that_leaks():
    text = text_of(render_plan(parse_study_file(PLAN, "small.toml").file))
    assert 'leak: split = "overlapping_windows" trains on its validation text' in text
    clean = PLAN.replace('split = { choices = ["documents", "overlapping_windows"] }\n', "")
    assert "leak" not in text_of(render_plan(parse_study_file(clean, "small.toml").file))


OWN = """
name = "own"
objective = "unlike_lengths:train"
metric = "eval/loss"
[budget]
trials = 4
[search_space]
num_train_epochs = { low = 1, high = 5, type = "int" }
warmup_steps = { low = 1, high = 5, type = "int" }
"""


def test_a_plan_names_the_first_rung_and_why_where_warmup_is_searched():
    text = PLAN.replace("[search_space]", "[search_space]\nwarmup_ratio = { low = 0.0, high = 0.2 }")
    plan = text_of(render_plan(parse_study_file(text, "small.toml").file))
    assert "pruner asha at steps 30 of 90" in plan
    assert "warmup is searched: the first rung is step 30, not within the longest (warmup_ratio up to 0.2)" in plan


def test_a_plan_says_that_trials_of_unlike_length_are_compared(tmp_path, monkeypatch):
    (tmp_path / "unlike_lengths.py").write_text(
        "from dataclasses import dataclass\n"
        "@dataclass(frozen=True)\n"
        "class C:\n"
        "    num_train_epochs: int = 3\n"
        "    warmup_steps: int = 1\n"
        "    seed: int = 0\n"
        "def train(config: C, run):\n"
        "    yield\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    text = text_of(render_plan(parse_study_file(OWN, "own.toml").file))
    assert "pruner asha at the first evaluation from 11% and 33% of a trial's steps on" in text
    assert "cost: at most 4 trials; less with pruning" in text
    assert "num_train_epochs changes the length of a trial: the pruner compares trials at the same fractions of" in text
    pruner = OWN.replace("[search_space]", '[pruner]\nname = "none"\n[search_space]')
    assert "length of a trial" not in text_of(render_plan(parse_study_file(pruner, "own.toml").file))


def test_a_finished_trial_is_one_line_with_value_or_reason():
    trial = FinishedTrial(
        trial=7,
        outcome=Outcome.COMPLETE,
        value=3.25,
        reason=None,
        device_seconds=125.0,
        finished_at=datetime(2026, 11, 22, tzinfo=UTC),
    )
    assert format_finished(trial, "val_loss") == "trial   7  complete  val_loss 3.2500  2 min 05 s"


def test_one_row_is_a_list_of_columns_and_several_are_a_table():
    names = ["trial", "params"]
    assert text_of(render_rows(names, [[1, {"x": 0.5}]])).split() == ["trial", "1", "params", '{"x":', "0.5}"]
    lines = text_of(render_rows(names, [[1, None], [2, None]])).splitlines()
    assert [line.split() for line in lines if line.split() and line.split()[0].isdigit()] == [["1"], ["2"]]


def test_rows_that_are_too_wide_for_a_table_are_lists_of_columns():
    names = [f"column_{i}" for i in range(30)]
    lines = text_of(render_rows(names, [[f"value {row}.{i}" for i in range(30)] for row in range(2)])).splitlines()
    assert [line for line in lines if "record" in line] == ["-[ record 1 ]-", "-[ record 2 ]-"]
    assert "column_29  value 1.29" in [line.rstrip() for line in lines]


def test_the_cost_counts_finished_trials_by_outcome_and_the_others_beside_them():
    usage = BudgetUsage(
        state="open", state_reason=None, n_finished=3, n_running=1, n_pending_retry=0, n_enqueued=2,
        device_hours=0.4, wall_hours=0.5, best_value=None, family_hours=0.5,
    )  # fmt: skip
    progress = Progress(
        name="small", metric="val_loss", state_since=datetime(2026, 11, 22, tzinfo=UTC), planned_trials=9, n_steps=9,
        finished_reason=None, usage=usage, n_by_outcome={"complete": 1, "pruned": 2, "running": 1, "waiting": 2},
        tokens=10_800_000, workers=(), best=None, default_value=None,
    )  # fmt: skip
    counts = "3 trials (1 complete, 2 pruned), 1 running, 2 waiting"
    assert format_cost(progress) == f"{counts}, 10.8M tokens, 30 min 00 s of device time"
    assert format_cost(replace(progress, tokens=0)) == f"{counts}, 30 min 00 s of device time"


def test_a_cell_with_brackets_is_no_markup():
    assert "[red]" in text_of(render_rows(["reason", "trial"], [["[red] alert", 1], ["[/]", 2]]))
