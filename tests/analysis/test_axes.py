import pytest

from hpopt.analysis.axes import build_axis
from hpopt.search.space import Categorical, Float, Int


@pytest.mark.parametrize(
    ("range_", "value", "coordinate"),
    [
        (Float(low=0.0, high=0.2), 0.05, 0.25),
        (Float(low=1e-3, high=0.1, log=True), 0.01, 0.5),
        (Int(low=1, high=9), 3, 0.25),
        (Int(low=1, high=64, log=True), 8, 0.5),
        (Categorical(choices=(64, 16, 32)), 32, 0.5),
        (Float(low=1e-3, high=0.1, log=True), 1.0, 1.5),
    ],
)
def test_a_value_has_its_coordinate_on_the_scale_of_its_range(range_, value, coordinate):
    """0.01 lies halfway between 0.001 and 0.1 on the logarithmic scale; 1.0 lies outside of the range."""
    axis = build_axis("x", range_)
    assert axis.coordinate(value) == pytest.approx(coordinate)
    assert axis.value_at(coordinate) == pytest.approx(value)


def test_nodes_are_values_that_the_search_could_try():
    """A curve over an integer must not have a value at 2.5."""
    for range_ in (Int(low=1, high=9), Int(low=1, high=1000, log=True), Float(low=0.0, high=1.0, step=0.25)):
        axis = build_axis("x", range_)
        assert all(range_.contains(axis.value_at(node)) for node in axis.nodes)
    assert [build_axis("x", Int(low=2, high=4)).value_at(node) for node in (0, 0.5, 1)] == [2, 3, 4]


def test_choices_of_strings_have_no_order():
    axis = build_axis("x", Categorical(choices=("cosine", "linear")), tried=["cosine", "constant"])
    assert not axis.is_ordered
    assert axis.levels == ("cosine", "linear", "constant")
    assert len(axis.nodes) == 2  # "constant" was tried outside of the range, so averages leave it out.


def test_choices_of_numbers_are_ordered():
    """Grids are written as choices, and their optimum can lie at an edge, too."""
    axis = build_axis("x", Categorical(choices=(0.001, 0.005, 0.01, 0.02, 0.05)))
    assert (axis.is_ordered, axis.is_log) == (True, True)
