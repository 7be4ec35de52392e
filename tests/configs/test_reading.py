"""Values that `from_dict` accepts and refuses, with its messages."""

from __future__ import annotations

import enum
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
import pytest

from xlstm_hydra.codec import collect
from xlstm_hydra.configs import (
    ConfigDict,
    ConfigError,
    ModelConfig,
    ParallelConfig,
    Problem,
    RunConfig,
    mLSTMConfig,
    register_class,
)


class Color(enum.Enum):
    RED = 1
    BLUE = 2


@dataclass(kw_only=True)
class Optim(ConfigDict):
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    groups: dict[str, list[int]] = field(default_factory=dict)
    color: Color = Color.RED

    def rules(self):
        if self.lr <= 0:
            yield Problem({"lr": self.lr}, "must be above 0", "Raise {lr}, see {/trainer.steps}.")


@dataclass(kw_only=True)
class Model:
    """A plain dataclass with a rule of its own."""

    width: int
    dtype: np.dtype = np.dtype("float32")

    def __post_init__(self):
        if self.width == 13:
            raise ValueError("13 brings bad luck")


@dataclass(kw_only=True)
class Run(ConfigDict):
    model: Model
    optim: Optim = field(default_factory=Optim)
    extra: dict[str, Model] = field(default_factory=dict)
    pair: Model | Optim | None = None


@dataclass
class Shape(ConfigDict):
    pass


@dataclass
class Circle(Shape):
    radius: float = 1.0


@dataclass(kw_only=True)
class Sampler(ConfigDict):
    name: str


@dataclass(kw_only=True)
class Greedy(Sampler):
    name: str = "greedy"


@dataclass(kw_only=True)
class TopK(Sampler):
    name: str = "top_k"
    k: int = 5


@dataclass(kw_only=True)
class MyTopK(TopK):
    extra: int = 0


@dataclass
class Ahead(ConfigDict):
    next: Ahead | Behind | None = None
    x: int = 0


@dataclass
class Behind(ConfigDict):
    next: Ahead | Behind | None = None
    x: str = ""


@register_class
class Linear:
    pass


class Unknown:
    pass


def read(annotation, data, **flags):
    """The value read for a field `v` of the annotated type."""
    cls = make_dataclass("Holder", [("v", annotation)], bases=(ConfigDict,))
    return ConfigDict.from_dict(cls, {"v": data}, **flags).v


def problems(cls, data, **flags):
    """The problems of `from_dict`, as the user reads them."""
    with pytest.raises(ConfigError) as caught:
        ConfigDict.from_dict(cls, data, **flags)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("annotation", "data", "expected"),
    [
        (int, "5", 5),
        (int, 3.0, 3),
        (float, "1e-3", 1e-3),
        (float, "inf", float("inf")),
        (float, 3, 3.0),
        (bool, "False", False),
        (bool, "true", True),
        (int | str, "5", "5"),
        (int | float, "5", 5),
        (float | int | None, "0.5", 0.5),
        (bool | str, "True", "True"),
        (Color, "RED", Color.RED),
        (Color, 2, Color.BLUE),
        (Literal[1, "a"], "1", 1),
        (tuple[int, ...], [1, "2"], (1, 2)),
        (set[int], [1, 1], {1}),
        (list[float], np.array([1.0, 2.0]), [1.0, 2.0]),
        (dict[int, bool], {"1": "true", 2: False}, {1: True, 2: False}),
        (Path, "a", Path("a")),
        (np.float32, "0.5", np.float32(0.5)),
        (np.bool_, "False", np.bool_(False)),
        (np.dtype, "<class 'jax.numpy.bfloat16'>", np.dtype(jnp.bfloat16)),
        (np.dtype, "bfloat16", np.dtype(jnp.bfloat16)),
        (np.dtype, jnp.bfloat16, np.dtype(jnp.bfloat16)),
        (type, f"{__name__}.Linear", Linear),
        (type[Linear] | None, f"<class '{__name__}.Linear'>", Linear),
        (Any, Linear, Linear),
    ],
    ids=str,
)
def test_a_similar_form_is_converted(annotation, data, expected):
    value = read(annotation, data)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("annotation", "data", "message"),
    [
        (int, "abc", "v: expected int, got 'abc'"),
        (int, 2.5, "v: expected int, got 2.5"),
        (int, True, "v: expected int, got true"),
        (int, None, "v: expected int, got null"),
        (int, "{lr}", "v: expected int, got '{lr}'"),
        (int, float("nan"), "v: expected int, got nan"),
        (float, "x", "v: expected float, got 'x'"),
        (float, False, "v: expected float, got false"),
        (float, 10**400, "v: expected float, got "),
        (bool, "no", "v: expected bool, got 'no'"),
        (bool, 1, "v: expected bool, got 1"),
        (str, 5, "v: expected str, got 5"),
        (Path, 5, "v: expected Path, got 5"),
        (int | str, [1], "v: expected int or str, got [1]"),
        (int | None, "x", "v: expected int or null, got 'x'"),
        (Color, "GREEN", "v: expected Color (RED, BLUE), got 'GREEN'"),
        (Color, True, "v: expected Color (RED, BLUE), got true"),
        (Literal["a", 1], "b", "v: expected 'a' or 1, got 'b'"),
        (Literal[1], True, "v: expected 1, got true"),
        (list[int], "12", "v: expected list[int], got '12'"),
        (list[int], {"a": 1}, "v: expected list[int], got {'a': 1}"),
        (list[int], [1, "x"], "v[1]: expected int, got 'x'"),
        (list[int] | int, [1, "x"], "v[1]: expected int, got 'x'"),
        (tuple[int, int], [1], "v: expected tuple[int, int] with 2 elements, got [1]"),
        (tuple[int, ...], 5, "v: expected tuple[int, ...], got 5"),
        (set[Any], [[1]], "v: expected set[Any], got [[1]]"),
        (dict[str, int], [1], "v: expected dict[str, int], got [1]"),
        (dict[str, int], {"a": {"b": 1}}, "v.a: expected int, got {'b': 1}"),
        (dict[str, int], {5: 1}, "v.5: expected str, got 5"),
        (dict[int, int], {"x": 1}, "v.x: expected int, got 'x'"),
        (Mapping[str, list[int]], {"/a": ["x"]}, "v./a[0]: expected int, got 'x'"),
        (np.int8, 300, "v: expected int8, got 300"),
        (np.int64, 1.5, "v: expected int64, got 1.5"),
        (np.float16, 1e300, "v: expected float16, got 1e+300"),
        (np.dtype, "bfloat17", "v: expected dtype, got 'bfloat17'"),
        (np.dtype, 5, "v: expected dtype, got 5"),
        (type[int], "os.system", "v: expected a registered type[int], got 'os.system'"),
        (type[int], f"{__name__}.Linear", "v: expected a registered type[int], got "),
        (type, f"{__name__}.Unknown", "v: expected a registered type, got "),
        (Callable[[int], str], "os.system", "v: expected a registered Callable[[int], str], got 'os.system'"),
        (Circle, 5, "v: expected Circle, got 5"),
        (Circle | None, 5, "v: expected Circle or null, got 5"),
        (Circle | None, {"radius": "x"}, "v.radius: expected float, got 'x'"),
        (Shape, {"radius": 1}, "v: ambiguous: could be Circle. Add _type_ with the dotted path of its class."),
        (Circle, {"_type_": "os.system"}, "v: _type_ 'os.system' is not a loaded subclass of Circle"),
        (Any, {"_type_": "os.system"}, "v: _type_ 'os.system' is not a config class that this program has loaded"),
        (Any, {"_type_": ["x"]}, "v: _type_ ['x'] is not a config class"),
        (Any, [{"_type_": "float", "value": "x"}], "v[0]: expected float, got 'x'"),
        (Any, {"_type_": "items", "value": 5}, "v: expected dict, got "),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_wrong_value_is_refused_with_its_path(annotation, data, message):
    with pytest.raises(ConfigError) as caught:
        read(annotation, data)
    assert str(caught.value).startswith(message)


def test_all_problems_are_reported_at_once_with_full_paths():
    data = {
        "model": {"width": "abc"},
        "optim": {"lr": -1.0},
        "extra": {"a": {"width": 13}, "b": {}, "c": {"width": 1, "dtype": "x"}},
    }
    data["pair"] = {"betas": [0.9, "x"], "groups": {"g": [1, None]}}
    assert problems(Run, data) == [
        "model.width: expected int, got 'abc'",
        "optim.lr=-1.0: must be above 0. Raise optim.lr, see trainer.steps.",
        "extra.a: 13 brings bad luck",
        "extra.b.width: missing, expected int",
        "extra.c.dtype: expected dtype, got 'x'",
        "pair.betas[1]: expected float, got 'x'",
        "pair.groups.g[1]: expected int, got null",
    ]


def test_a_wrong_value_deep_in_a_run_is_refused_with_the_key_of_the_run():
    layout = ParallelConfig(remat=["Embed"])
    config = mLSTMConfig(embedding_dim=64, num_blocks=1, num_heads=1)
    data = RunConfig(model=ModelConfig("a.Model", layout, config)).to_dict()
    data["model"]["model_config"]["embedding_dim"] = "abc"
    data["model"]["parallel"]["remat"][0] = 5
    data["optimizer"]["name"] = "adam"
    assert problems(RunConfig, data) == [
        "model.parallel.remat[0]: expected str, got 5",
        "model.model_config.embedding_dim: expected int, got 'abc'",
        "optimizer.name='adam': not a known value. Did you mean 'adamw'?",
    ]


def test_collect_returns_an_unchecked_instance_with_the_problems():
    run, found = collect(Run, {"model": {"width": "abc"}, "optim": {"lr": -1.0, "betas": 5}})
    assert [problem.keys[0] for problem in found] == ["model.width", "optim.betas", "optim.lr"]
    assert isinstance(run, Run) and isinstance(run.model, Model) and isinstance(run.model.width, int)
    assert (run.optim.lr, run.optim.betas, run.pair) == (-1.0, (0.9, 0.95), None)


@pytest.mark.parametrize("data", [5, None, [], "x"], ids=str)
def test_collect_returns_an_instance_even_if_the_data_is_not_a_mapping(data):
    run, found = collect(Run, data)
    assert isinstance(run, Run)
    assert [str(problem) for problem in found] == [f"expected Run, got {'null' if data is None else repr(data)}"]


# ---- flags


def test_unknown_fields_are_skipped_at_every_level_by_default():
    data = {"model": {"width": 1, "wide": 2}, "optims": 3, "extra": {"a": {"width": 2, "z": 1}}}
    assert ConfigDict.from_dict(Run, data) == Run(model=Model(width=1), extra={"a": Model(width=2)})


def test_unknown_fields_are_refused_at_every_level_on_demand_and_name_the_nearest():
    data = {"model": {"width": 1, "Widht": 2}, "optims": 3, "pair": {"lr": 1.0, "bettas": 1}}
    data["extra"] = {"a": {"width": 2, "zzz": 1}}
    assert problems(Run, data, ignore_extensive_attributes=False) == [
        "model.Widht: no such field in Model. Did you mean 'width'?",
        "extra.a.zzz: no such field in Model. Known: width, dtype.",
        "pair.bettas: no such field in Optim. Did you mean 'betas'?",
        "optims: no such field in Run. Did you mean 'optim'?",
    ]


def test_none_becomes_zero_only_on_demand_and_only_for_ints():
    assert read(list[dict[str, int]], [{"a": None}], none_to_zero_for_ints=True) == [{"a": 0}]
    assert ConfigDict.from_dict(Model, {"width": None}, none_to_zero_for_ints=True).width == 0
    assert read(int | None, None, none_to_zero_for_ints=True) is None
    assert read(Any, None, none_to_zero_for_ints=True) is None
    with pytest.raises(ConfigError, match="v: expected float, got null"):
        read(float, None, none_to_zero_for_ints=True)


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "lenient"])
def test_strict_classnames_hold_at_every_level_for_dtypes_and_classes(strict):
    data = {"extra": {"a": {"width": 1, "dtype": "<class 'jax.numpy.bfloat16'>"}}, "model": {"width": 1}}
    assert ConfigDict.from_dict(Run, data, strict_classname_parsing=strict).extra["a"].dtype == jnp.bfloat16
    name = f"{__name__}.Linear"
    assert read(list[type], [f"<class '{name}'>"], strict_classname_parsing=strict) == [Linear]
    if strict:
        data["extra"]["a"]["dtype"] = "bfloat16"
        assert problems(Run, data, strict_classname_parsing=True) == ["extra.a.dtype: expected dtype, got 'bfloat16'"]
        with pytest.raises(ConfigError, match="expected a registered type"):
            read(type, name, strict_classname_parsing=True)


# ---- choosing a class


def test_an_open_name_chooses_the_subclass_that_has_it_as_default():
    assert ConfigDict.from_dict(Sampler, {"name": "top_k", "k": 7}) == TopK(k=7)
    assert problems(Sampler, {"name": "topk"}) == ["name='topk': not a known value. Did you mean 'top_k'?"]
    assert problems(Sampler, {}) == ["name: missing. Known: greedy, top_k."]
    assert read(Sampler | None, {"name": "greedy"}) == Greedy()


@pytest.mark.parametrize(
    "value", [MyTopK(extra=1), TopK(name="mine"), Sampler(name="top_k"), Sampler(name="own")], ids=repr
)
def test_a_class_without_a_name_of_its_own_is_tagged(value):
    holder = make_dataclass("Holder", [("v", Sampler)], bases=(ConfigDict,))(value)
    assert ConfigDict.from_dict(type(holder), holder.to_dict()) == holder
    assert ConfigDict.from_dict(type(value), value.to_dict()) == value


def test_any_name_is_allowed_if_the_class_has_a_default():
    @dataclass(kw_only=True)
    class Base(ConfigDict):
        name: str = "base"

    @dataclass(kw_only=True)
    class Derived(Base):
        name: str = "derived"

    assert type(ConfigDict.from_dict(Base, {"name": "derived"})) is Base
    assert ConfigDict.from_dict(Base, {"name": "my run"}).name == "my run"
    assert isinstance(ConfigDict.from_dict(Base, {"_type_": Derived.__module__ + "." + Derived.__qualname__}), Derived)


def test_a_class_that_was_defined_again_is_read_as_the_new_one():
    def define():
        @dataclass
        class Again(Shape):
            x: int = 0

        return Again

    _, new = define(), define()
    assert type(read(Shape, {"_type_": f"{new.__module__}.{new.__qualname__}", "x": 1})) is new


def test_a_union_chooses_the_member_with_the_fewest_unknown_fields():
    assert read(Circle | Optim, {"lr": "0.5", "unknown": 1}) == Optim(lr=0.5)


# ---- robustness


def deep(levels, make):
    data = {}
    for _ in range(levels):
        data = make(data)
    return data


@pytest.mark.parametrize(
    ("annotation", "make"),
    [(Any, lambda d: [d]), (Ahead, lambda d: {"next": d}), (Ahead | Behind, lambda d: {"next": d, "x": 1.5})],
    ids=["lists", "configs", "unions"],
)
def test_data_that_is_nested_too_deeply_is_one_problem(annotation, make):
    cls = make_dataclass("Holder", [("v", annotation)], bases=(ConfigDict,))
    assert problems(cls, {"v": deep(100_000, make)}) == ["nested too deeply to be a config"]


def test_data_that_contains_itself_is_one_problem():
    data = {}
    data["v"] = data
    assert problems(make_dataclass("Holder", [("v", Any)]), data) == ["nested too deeply to be a config"]


@pytest.mark.parametrize("x", ["word", None], ids=["right", "wrong"])
def test_nested_ambiguous_unions_are_read_in_linear_time(x):
    start = time.process_time()
    data = deep(40, lambda d: {"next": d or None, "x": x})
    collect(Ahead | Behind, data)
    assert time.process_time() - start < 20  # not 2**40 times as long as a value of depth 0


def test_a_huge_value_is_shown_shortened():
    with pytest.raises(ConfigError) as caught:
        read(int, {"a": list(range(10**5))})
    assert len(str(caught.value)) < 120


def test_reading_and_writing_import_nothing():
    code = """
import sys, json
from xlstm_hydra.configs import *
before = set(sys.modules)
config = RunConfig(model=ModelConfig("antigravity.Model", model_config=mLSTMConfig(
    embedding_dim=64, num_blocks=1, num_heads=1)))
assert ConfigDict.from_dict(RunConfig, json.loads(json.dumps(config.to_dict()))) == config
print(sorted(set(sys.modules) - before), [m for m in ("numpy", "jax", "hydra", "omegaconf") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] []"
