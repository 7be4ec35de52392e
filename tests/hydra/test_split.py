"""Points of a sweep: those of Hydra's own sweeper for countable values, and random ones for intervals."""

import math

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import assume, example, given
from hypothesis import strategies as st

from xlstm_hydra.configs import ConfigError
from xlstm_hydra.hydra import first_point, split


def points(line, **more):
    """The points of a command line."""
    return split(OverridesParser.create().parse_overrides(line.split(" ")), **more)


COUNTABLE = (
    *("a=1,2", "b=x", "a=range(0,3)", "c=range(0.1,0.5,step=0.1)", "c=choice(a,'b, c',1)", "+d=[1,2],[3]"),
    *("~e", "++f={a:1},{b:2}", "a=3", "g=sort(3,1,2)", "h=tag(x,choice(1,2))", "i=''", "k=range(3)", "g@h=x,y"),
)


@given(st.lists(st.sampled_from(COUNTABLE), max_size=5))
def test_countable_values_give_the_points_of_hydras_own_sweeper(texts):
    overrides = OverridesParser.create().parse_overrides(texts)
    assert split(overrides) == BasicSweeper.split_arguments(overrides, None)[0]


@given(st.lists(st.sampled_from(COUNTABLE), max_size=5))
def test_the_counted_number_of_jobs_is_exact(texts):
    overrides = OverridesParser.create().parse_overrides(texts)
    made = len(split(overrides))
    assert split(overrides, max_jobs=made) == split(overrides)
    with pytest.raises(ConfigError, match=f"the sweep has {made} job"):
        split(overrides, max_jobs=made - 1)


NUMBERS = st.integers(-50, 50) | st.decimals(-50, 50, places=2)


@example(0, 0.38, 0.38)  # the sum of two steps is rounded to less than the stop
@given(NUMBERS, NUMBERS, NUMBERS.filter(lambda step: abs(step) > 0.1))
def test_the_counted_length_of_a_range_is_exact(start, stop, step):
    [override] = OverridesParser.create().parse_overrides([f"a=range({start},{stop},{step})"])
    made = len(list(override.sweep_iterator()))
    assume(made)
    assert len(split([override], max_jobs=made)) == made
    with pytest.raises(ConfigError, match=f"the sweep has {made} job"):
        split([override], max_jobs=made - 1)


def test_the_first_point_is_found_without_listing_the_sweep():
    overrides = OverridesParser.create().parse_overrides(
        ["a=range(3,2000000000)", "b=x,y", "c=shuffle(range(9))", "d=1"]
    )
    assert first_point(overrides) == ["a=3", "b=x", "c=0", "d=1"]


def test_each_draw_of_the_intervals_is_combined_with_all_other_values():
    found = points("a=interval(0,1) b=x,y c=interval(5,6)", num_samples=3)
    assert [point[1] for point in found] == ["b=x", "b=y"] * 3
    draws = [(point[0], point[2]) for point in found]
    assert draws[0::2] == draws[1::2] and len(set(draws)) == 3


@given(st.integers(0, 99), st.integers(1, 20), st.integers(0, 20))
def test_more_samples_keep_the_first_ones_of_a_seed(seed, few, more):
    line = "a=interval(0,1) b=1,2"
    first, second = (points(line, num_samples=number, seed=seed) for number in (few, few + more))
    assert second[: len(first)] == first == points(line, num_samples=few, seed=seed)
    assert points(line, num_samples=few, seed=seed + 1) != first


@pytest.mark.parametrize(
    ("interval", "low", "high"),
    [
        ("interval(0,1)", 0, 1),
        ("interval(-1e-9,1e-9)", -1e-9, 1e-9),
        ("interval(1.23456789,1.23456790)", 1.23456789, 1.23456790),
        ("tag(log,interval(1e-5,1e-1))", 1e-5, 1e-1),
        ("int(interval(1,3))", 1, 3),
        ("tag(log,int(interval(1,1000)))", 1, 1000),
    ],
)
def test_draws_are_inside_the_interval(interval, low, high):
    drawn = [point[0].removeprefix("a=") for point in points(f"a={interval}", num_samples=300)]
    assert all(low <= float(value) <= high for value in drawn)
    middle = math.sqrt(low * high) if "log" in interval else (low + high) / 2
    assert 80 < sum(float(value) < middle for value in drawn) < 220
    if "int(" in interval:
        assert all(str(int(value)) == value for value in drawn)


def test_both_ends_of_an_interval_of_integers_are_drawn():
    drawn = [point[0] for point in points("a=int(interval(1,3))", num_samples=100)]
    assert set(drawn) == {"a=1", "a=2", "a=3"}


def test_shuffling_is_reproducible():
    first = points("a=shuffle(range(100))")
    assert first == points("a=shuffle(range(100))") != points("a=shuffle(range(100))", seed=1)
    assert first != points("a=range(100)")


BAD = [
    ("a=interval(0,1)", None, "an interval has infinitely many values. Set hydra.sweeper.num_samples=20 to draw"),
    ("a=1,2", 3, "hydra.sweeper.num_samples=3: there is no interval to draw values from"),
    ("a=interval(1,0)", 3, "a=interval(1,0): the end of an interval must be greater than its start"),
    ("a=tag(log,interval(0,1))", 3, "the start of a logarithmic interval must be greater than 0"),
    ("a=tag(lgo,interval(0,1))", 3, "no such tag: lgo. Known: log."),
    ("a=range(3,1)", None, "a=range(3,1): has no values. The stop of a range is excluded: range(1,3) is "),
    ("a=range(1,3),4", None, "a=range(1,3),4: sweeps cannot be nested. Write all values in one list: 1,2,3."),
    ("a=shuffle()", None, "a=shuffle(): has no values"),
    ("a=range(1,5,0)", None, "a=range(1,5,0): the step of a range must not be 0"),
    ("a=range(1,5,0.0)", None, "a=range(1,5,0.0): the step of a range must not be 0"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "number", "words"), BAD, ids=[line for line, _, _ in BAD])
def test_invalid_values_of_a_sweep_are_rejected(line, number, words):
    with pytest.raises(ConfigError) as error:
        points(line, num_samples=number)
    assert words in str(error.value)
