"""`[arms.NAME]` makes a study a comparison; what cannot be compared is refused when the file is read."""

import pytest

from hpopt.errors import StudyFileError
from hpopt.study.arms import data_by_arm, equal_arms
from hpopt.study.file import file_changes, space_difference
from hpopt.study.plan import count_runs, count_steps, defaults
from hpopt.study.reading import parse_study_file

HEAD = 'name = "ab"\nseeds = 3\n'
ARMS = "[arms.baseline]\n[arms.treatment]\nlearning_rate = 0.05\n"


def parse(text):
    return parse_study_file(text, "ab.toml").file


def refusal_of(text):
    with pytest.raises(StudyFileError) as refusal:
        parse(text)
    message = str(refusal.value)
    assert message.startswith("ab.toml: ")
    assert "\n" not in message
    return message.removeprefix("ab.toml: ")


def test_arms_need_neither_a_search_space_nor_a_budget_nor_a_pruner():
    file = parse(HEAD + ARMS)
    assert (file.pruner.name, file.is_fixed_design, count_runs(file)) == ("none", True, 6)
    assert file.config({}, seed=2, arm="treatment").learning_rate == 0.05
    assert file.config({}, seed=2, arm="baseline").learning_rate == 0.02
    assert file.config({}, seed=2, arm="treatment").seed == 2


def test_an_arm_goes_over_the_fixed_values_and_shows_what_any_arm_sets():
    file = parse(HEAD + ARMS + "[arms.third]\nmomentum = 0.9\n[fixed]\nlearning_rate = 0.03\n")
    assert file.arm_values(defaults(file)) == {
        "baseline": {"learning_rate": 0.03, "momentum": 0.95},
        "treatment": {"learning_rate": 0.05, "momentum": 0.95},
        "third": {"learning_rate": 0.03, "momentum": 0.9},
    }


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (HEAD + "[arms.a]\n", "arms.a: the only arm; a comparison needs at least two"),
        (HEAD + "[arms]\n", "arms: nothing to compare; write at least two sections [arms.NAME]"),
        (HEAD + "[arms.a]\n[arms.confirm]\n", "arms.confirm: an arm is not called confirm, compare, wider or a number"),
        (HEAD + "[arms.a]\n[arms.7]\n", "arms.7: an arm is not called confirm, compare, wider or a number"),
        (HEAD + '[arms.a]\n[arms."b@c"]\n', "arms: 'b@c' is not a name of letters, digits, '.', '_' and '-'"),
        (
            HEAD + "[arms.a]\nlearning_rat = 1\n[arms.b]\n",
            "arms.a.learning_rat: pretrain does not take it; did you mean",
        ),
        (HEAD + '[arms.a]\nlearning_rate = "x"\n[arms.b]\n', "arms.a.learning_rate: 'x' is not a number"),
        (HEAD + "[arms.a]\nseed = 1\n[arms.b]\n", "arms.a.seed: the seeds are the same for all arms; set seeds"),
        (
            HEAD + "[arms.a]\nlearning_rate = { low = 0.1, high = 0.2 }\n[arms.b]\n",
            "arms.a.learning_rate: a range is not supported yet in an arm; give one value",
        ),
        (HEAD + "[arms.a]\nd_model = 100\nn_heads = 3\n[arms.b]\n", "arms.a.d_model: "),
        (
            HEAD + ARMS + "[search_space]\nmomentum = { low = 0.8, high = 0.9 }\n",
            "search_space: not supported yet together with [arms]; give each parameter one value in each arm",
        ),
        (HEAD + ARMS + "[confirm]\n", "confirm: not with [arms], whose runs are replicates already; raise seeds"),
        (HEAD + ARMS + "[[enqueue]]\nmomentum = 0.9\n", "enqueue: not with [arms], which say what runs"),
        (HEAD + ARMS + "[sampler]\n", "sampler: not with [arms], which leave nothing to sample"),
        (HEAD + ARMS + "[pruner]\n", "pruner.name: 'asha' would end runs that are compared; write \"none\""),
        (
            HEAD + ARMS + "[budget]\ntrials = 5\n",
            "budget.trials: 5 is below the 6 trials of the design (2 arms with 3 seeds)",
        ),
        (
            HEAD + ARMS + "[budget]\ntrials = 6\ntarget = 1.0\n",
            "budget.target: it ends a search; a comparison runs all",
        ),
        (HEAD + ARMS + "[compare]\nindifference = 0.0\n", "compare.indifference: 0.0 is not above 0"),
        (
            HEAD + ARMS + "[compare]\nindiference = 0.1\n",
            "compare.indiference: unknown key; did you mean 'indifference'",
        ),
        ('name = "ab"\n' + ARMS, "seeds: 1 run of each arm says nothing about the noise; write seeds = 3 or more"),
        (
            'name = "s"\n[budget]\ntrials = 3\n[search_space]\nmomentum = { low = 0.8, high = 0.9 }\n[compare]\n',
            "compare: nothing to compare; write at least two sections [arms.NAME]",
        ),
        (
            HEAD + "[search_space]\nmomentum = { choices = [0.9] }\n[sampler]\nname = 'grid'\n[compare]\n",
            "compare: nothing to compare; write at least two sections [arms.NAME]",
        ),
        (
            'name = "s"\n[search_space]\nmomentum = { low = 0.8, high = 0.9 }\n',
            "budget: no limit; give at least one of trials, ",
        ),
        ('name = "s"\n[budget]\ntrials = 3\n', "search_space: missing"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(text, problem):
    assert refusal_of(text).startswith(problem)


def test_arms_with_different_data_run_with_one_seed():
    file = parse('name = "ab"\n[arms.a]\n[arms.b]\nsplit = "overlapping_windows"\n')
    first, second = data_by_arm(file, defaults(file)).values()
    assert first != second


def test_arms_that_resolve_to_one_config_are_found():
    file = parse(HEAD + "[arms.a]\n[arms.b]\nlearning_rate = 0.02\n[arms.c]\nlearning_rate = 0.03\n")
    assert list(equal_arms(file)) == [("a", "b")]


def test_the_length_of_runs_is_known_if_the_arms_have_one():
    assert count_steps(parse(HEAD + ARMS + "[fixed]\nmax_steps = 60\n")) == 60
    assert count_steps(parse(HEAD + ARMS + "max_steps = 70\n")) is None


def test_arms_of_a_study_do_not_change_and_seeds_and_indifference_do():
    old = parse(HEAD + ARMS)
    changed = parse(HEAD + ARMS.replace("0.05", "0.06"))
    assert space_difference(changed, old) == "arms.treatment.learning_rate: 0.06, was 0.05"
    assert space_difference(parse(HEAD + ARMS + "[arms.c]\n"), old) == (
        "arms: baseline, treatment, c, was baseline, treatment"
    )
    more = parse(HEAD.replace("3", "4") + ARMS + "[compare]\nindifference = 0.01\n")
    assert space_difference(more, old) is None
    assert file_changes(more, old) == {"seeds": ("4", "3"), "compare.indifference": ("0.01", "not given")}
