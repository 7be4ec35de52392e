"""Wording of problems."""

import enum
import pickle
from dataclasses import dataclass
from pathlib import Path

import pytest

from xlstm_hydra.configs import ConfigDict, ConfigError, Problem, at_least, below, one_of
from xlstm_hydra.problems import divisors, either, nearest, show


def test_a_problem_shows_the_keys_their_values_the_rule_and_the_fix():
    problem = Problem({"width": 10, "num_heads": 3}, "{num_heads} must divide {width}", "Set {num_heads} to 2.")
    assert str(problem) == "width=10, num_heads=3: num_heads must divide width. Set num_heads to 2."


def test_a_problem_moves_with_the_config_that_holds_it():
    problem = Problem({"lr": 1, "/trainer.steps": 2}, "{lr} must fit {/trainer.steps}").at("optimizer").at("runs[3]")
    assert str(problem) == "runs[3].optimizer.lr=1, trainer.steps=2: runs[3].optimizer.lr must fit trainer.steps"
    assert problem.keys == ("runs[3].optimizer.lr", "trainer.steps")


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (["[0]", "betas"], "betas[0]: wrong"),
        (["/usr", "paths"], "paths./usr: wrong"),
        (["", "a"], "a: wrong"),
        ([], "wrong"),
    ],
    ids=["index", "slash in data", "empty", "nowhere"],
)
def test_a_path_is_joined_as_it_is_typed(steps, expected):
    problem = Problem.about("", "wrong")
    for step in steps:
        problem = problem.at(step)
    assert str(problem) == expected


def test_braces_in_a_value_are_not_replaced():
    assert str(Problem.about("lr", "expected float, got '{lr}'").at("a")) == "a.lr: expected float, got '{lr}'"


def test_an_error_numbers_all_of_its_problems():
    problems = [Problem({"a": 1}, "bad"), Problem.about("b", "worse")]
    assert str(ConfigError(problems)) == "2 problems:\n  1. a=1: bad\n  2. b: worse"
    assert str(ConfigError(problems[:1])) == "a=1: bad"
    assert isinstance(ConfigError([]), ValueError)


def test_an_error_can_be_pickled():
    error = ConfigError([Problem({"a": 1}, "bad"), Problem.about("b", "{c}").at("d")])
    back = pickle.loads(pickle.dumps(error))
    assert back.problems == error.problems and str(back) == str(error)


def test_a_config_refuses_values_that_break_its_rules():
    @dataclass
    class Rate(ConfigDict):
        low: int = 0
        high: int = 1
        name: str = "a"

        def rules(self):
            yield from at_least(self, 0, "low", "high")
            yield from below(self, 10, "high")
            yield from one_of(self, "name", ("apple", "pear"))

    with pytest.raises(ConfigError) as caught:
        Rate(-1, 10, "appel")
    assert list(map(str, caught.value.problems)) == [
        "low=-1: must be 0 or more",
        "high=10: must be less than 10",
        "name='appel': not a known value. Choose apple or pear (did you mean apple?).",
    ]


class Color(enum.Enum):
    RED = 1


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        ([None, False], "[null, false]"),
        ("a", "'a'"),
        (0.1, "0.1"),
        (Color.RED, "RED"),
        (Path("a/b"), "a/b"),
        (10**5000, "<int>"),
    ],
    ids=lambda value: show(value)[:20],
)
def test_values_are_shown_as_they_are_typed(value, text):
    assert show(value) == text


@pytest.mark.parametrize("value", ["x" * 10**6, [["x" * 50] * 50] * 50, {i: i for i in range(999)}, ConfigError])
def test_long_values_are_cut(value):
    assert len(show(value)) <= 80


def test_recursive_values_can_be_shown():
    value = []
    value.append(value)
    assert len(show(value)) <= 80


def test_nearest_offers_one_name_or_all():
    assert nearest("Betas", ["beta1", "betas"]) == "Did you mean 'betas'?"
    assert nearest("zzz", ["a", "b"]) == "Known: a, b."
    assert nearest("zzz", []) == "None are available."


def test_divisors_are_all_of_them():
    assert divisors(12) == [1, 2, 3, 4, 6, 12]
    assert divisors(-7) == [1, 7]
    assert divisors(0) == []
    assert divisors(10**18)[-1] == 10**18


@pytest.mark.parametrize(
    ("options", "text"),
    [([], ""), ([1], "1"), ([1, 2], "1 or 2"), ([1, 2, 3], "1, 2 or 3")],
    ids=["none", "one", "two", "three"],
)
def test_either_lists_options(options, text):
    assert either(options) == text


def test_either_cuts_the_middle_of_a_long_list():
    assert either(range(100)) == "0, 1, 2, 3, 4, 5, ..., 95, 96, 97, 98 or 99"
