"""`from_dict(cls, json.loads(json.dumps(config.to_dict()))) == config`, one annotation at a time."""

# ruff: noqa: UP007, UP045 (typing's spelling of unions here, the new one in test_reading.py)

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Final, Generic, Literal, NewType, Optional, TypeVar, Union

import jax.numpy as jnp
import numpy as np
import pytest
from conversions import assert_alike, holding, through_json

from xlstm_hydra.codec import Flags, decode
from xlstm_hydra.configs import ConfigDict, ConfigError, register_class

NAN, INF = math.nan, math.inf
T = TypeVar("T")
Steps = NewType("Steps", int)


class Color(enum.Enum):
    RED = 1
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Mode(enum.StrEnum):
    FAST = "fast"
    SAFE = "safe"


class Right(enum.Flag):
    READ = 1
    WRITE = 2


@dataclass
class A(ConfigDict):
    x: int = 0


@dataclass
class B(ConfigDict):
    x: int = 0


@dataclass
class SubA(A):
    y: float = 0.5


@dataclass
class Plain:
    """A dataclass that knows nothing of ConfigDict."""

    a: A = field(default_factory=A)
    loss: float = NAN


@dataclass(frozen=True)
class Point:
    x: int = 0


@dataclass
class Box(Generic[T]):
    content: T


@dataclass
class Tree(ConfigDict):
    left: Tree | Leaf | None = None
    right: Tree | Leaf | None = None


@dataclass
class Leaf(ConfigDict):
    value: float = 0.0


@register_class
class Known:
    pass


@register_class
def known_function():
    pass


register_class(Mode)


CASES = [
    (int, 3),
    (float, 1e-300),
    (float, NAN),
    (float, -INF),
    (bool, False),
    (str, "nan"),
    (str, "\ud800 ünïcode\n"),
    (None, None),
    (Optional[int], None),
    (Optional[float], NAN),
    (Steps, Steps(3)),
    (Annotated[int, "a note"], 3),
    (Final[int], 3),
    (Path, Path("a/b")),
    (PurePosixPath, PurePosixPath("a/b")),
    (Color, Color.BLUE),
    (Level, Level.HIGH),
    (Mode, Mode.SAFE),
    (Right, Right.READ | Right.WRITE),
    (Literal["a", 1, True, Color.RED, None], "a"),
    (Literal["a", 1, True, Color.RED, None], 1),
    (Literal["a", 1, True, Color.RED, None], True),
    (Literal["a", 1, True, Color.RED, None], Color.RED),
    (Optional[Literal["a", "b"]], "b"),
    (list[int], [1, 2]),
    (list, [1, "a", [None], (2,)]),
    (tuple[int, str], (1, "a")),
    (tuple[float, ...], (0.9, INF)),
    (tuple[()], ()),
    (tuple, (1, (2, [3]))),
    (set[int], {3, 1, 2}),
    (frozenset[Color], frozenset({Color.RED})),
    (set[Point], {Point(1), Point(2)}),
    (Sequence[A], [A(1)]),
    (Mapping[str, A], {"a": A(1)}),
    (dict[str, float], {"a": NAN, "b": 1.0}),
    (dict[int, A], {1: A(2), -1: A(3)}),
    (dict[bool, int], {True: 1, False: 0}),
    (dict[float, int], {0.1: 1, INF: 2}),
    (dict[Color, int], {Color.RED: 1, Color.BLUE: 2}),
    (dict[tuple[int, int], str], {(1, 2): "a"}),
    (dict[int | str, str], {5: "int", "5": "str"}),
    (dict[str | None, int], {None: 1, "None": 2}),
    (dict[str, list[A]], {"a": [A(1), A(2)], "b": []}),
    (dict[str, int], {"_type_": 1, "value": 2, "": 3, "/a.b[0]": 4}),
    (tuple[A, ...], (A(1), A(2))),
    (list[Plain], [Plain(), Plain(A(2), 1.0)]),
    (Plain, Plain(A(1))),
    (Optional[A], A(1)),
    (A, SubA(1, 2.0)),
    (Optional[A], SubA(1, 2.0)),
    (ConfigDict, A(1)),
    (ConfigDict, ConfigDict()),
    (list[ConfigDict], [A(1), B(1), ConfigDict()]),
    (Union[A, B], A(1)),
    (Union[A, B], B(1)),
    (Union[A, B, None], B(1)),
    (Union[B, A], SubA(1)),
    (Optional[dict], {"_type_": 1}),
    (Union[A, dict], {"x": 1}),
    (Union[A, dict], {1: 1}),
    (Union[dict, A], A(1)),
    (Union[A, dict[str, int]], A(1)),
    (Union[A, list[A | B]], [B(1), A(2)]),
    (Union[list[A], list[B]], [B(1)]),
    (Union[list[A], dict[str, B]], {"a": B(1)}),
    (Union[int, str], "5"),
    (Union[int, str], 5),
    (Union[int, float], 5.0),
    (Union[float, int], 5),
    (Union[bool, int], 1),
    (Union[int, bool], True),
    (Union[float, str], NAN),
    (Union[float, str], "nan"),
    (Union[Path, str], Path("a")),
    (Union[Path, str], "a"),
    (Union[int, Path], Path("5")),
    (Union[Color, str], "RED"),
    (Union[str, Color], Color.RED),
    (Union[list[int], list[str]], ["1"]),
    (Union[tuple[int, ...], list[int]], [1]),
    (Union[list[int], tuple[int, ...], set[int]], {1}),
    (Union[dict[int, str], dict[str, str]], {"1": "a"}),
    (Union[str, Any], (1, 2)),
    (Union[float, np.float32], np.float32(0.5)),
    (Union[float, np.float32], 0.5),
    (Union[np.float16, np.float32], np.float32(NAN)),
    (Tree, Tree(Tree(Leaf(1.0), None), Leaf(NAN))),
    (Box[int], Box(3)),
    (Any, None),
    (Any, 1.5),
    (Any, NAN),
    (Any, "nan"),
    (Any, Path("a")),
    (Any, (1, (NAN, [Path("b")]))),
    (Any, {"a": {"b": (1, -INF)}}),
    (Any, {1: "a", "1": "b", (1, 2): "c"}),
    (Any, {"_type_": "tuple", "value": [1]}),
    (Any, {1, 2}),
    (Any, frozenset({"a"})),
    (Any, A(1)),
    (Any, [SubA(1), {"b": B(2)}]),
    (Any, Mode.FAST),
    (Any, np.dtype("float32")),
    (object, (1,)),
    (type, Known),
    (type[Known], Known),
    (Optional[type], Known),
    (Callable[[int], int], known_function),
    (Callable, Known),
    (np.dtype, np.dtype("float32")),
    (np.dtype, np.dtype(jnp.bfloat16)),
    (np.dtype, np.dtype(">f4")),
    (np.dtype, np.dtype("datetime64[ns]")),
    (Optional[np.dtype], np.dtype("int8")),
    (Union[str, np.dtype], np.dtype("int8")),
    (list[np.dtype], [np.dtype("int8"), np.dtype(jnp.bfloat16)]),
    (np.float32, np.float32(0.1)),
    (np.float32, np.float32(NAN)),
    (np.int64, np.int64(2**62)),
    (np.bool_, np.bool_(False)),
    (np.str_, np.str_("a")),
]


@pytest.mark.parametrize(
    ("annotation", "value"), CASES, ids=[f"{hint}-{value!r}".partition(" at 0x")[0][:90] for hint, value in CASES]
)
def test_a_value_keeps_its_type_in_a_json_round_trip(annotation, value):
    config = holding(annotation, value)
    for back in (through_json(config), decode(type(config), config.to_dict(), Flags(as_written=True))):
        assert back == config
        assert_alike(back.v, value)


LOOSE = [
    (int, np.int64(3), 3),
    (int, Level.HIGH, 2),
    (float, np.float32(0.5), 0.5),
    (float, np.float64(0.1), 0.1),
    (float, jnp.float32(0.5), 0.5),
    (float, 1, 1.0),
    (bool, np.bool_(True), True),
    (str, np.str_("a"), "a"),
    (str, Mode.FAST, "fast"),
    (Any, np.int32(3), 3),
    (Union[float, int], np.int64(3), 3),
    (Optional[float], np.float32(NAN), NAN),
    (tuple[float, float], [0.5, 1], (0.5, 1.0)),
    (list[int], (1, 2), [1, 2]),
    (np.dtype, jnp.bfloat16, np.dtype(jnp.bfloat16)),
    (np.dtype, np.float32, np.dtype("float32")),
    (Any, Known, f"{__name__}.Known"),
]


@pytest.mark.parametrize(("annotation", "value", "expected"), LOOSE, ids=[f"{h}-{v!r}"[:80] for h, v, _ in LOOSE])
def test_a_value_of_a_similar_type_gets_the_annotated_type_and_stays_equal(annotation, value, expected):
    config = holding(annotation, value)
    back = through_json(config)
    assert back == config
    assert_alike(back.v, expected)


def test_a_default_of_none_allows_none_whatever_the_annotation_says():
    @dataclass
    class Careless(ConfigDict):
        x: int = None  # pyright: ignore[reportAssignmentType]

    assert through_json(Careless()).x is None
    assert through_json(Careless(3)).x == 3


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (A(1), A(2)),
        (A(1), B(1)),
        (A(1), SubA(1)),
        (holding(Any, (1,)), holding(Any, [1])),
        (holding(Union[float, str], NAN), holding(Union[float, str], "nan")),
    ],
    ids=["value", "class", "subclass", "tuple and list", "nan and its name"],
)
def test_configs_that_mean_different_things_differ(left, right):
    assert left != right


def test_fields_without_comparison_or_init_do_not_prevent_a_round_trip():
    @dataclass
    class Counter(ConfigDict):
        steps: int
        note: str = field(default="", compare=False)
        double: int = field(init=False)

        def __post_init__(self):
            self.double = 2 * self.steps

    assert "double" not in Counter(2).to_dict()
    assert through_json(Counter(2, "a")).double == 4
    assert Counter(2, "a") == Counter(2, "b")


def test_only_ambiguous_values_are_tagged():
    assert holding(Optional[A], A(1)).to_dict() == {"v": {"x": 1}}
    assert holding(Union[int, str], "5").to_dict() == {"v": "5"}
    assert holding(Union[A, B], A(1)).to_dict() == {"v": {"_type_": f"{__name__}.A", "x": 1}}
    assert holding(Union[Path, str], Path("a")).to_dict() == {"v": {"_type_": "Path", "value": "a"}}


@pytest.mark.parametrize("value", [b"", np.zeros(2), lambda: 0, object()], ids=["bytes", "array", "lambda", "object"])
def test_a_value_without_a_plain_form_is_refused_with_its_path(value):
    config = holding(dict[str, list[Any]], {"a": [1, value]})
    with pytest.raises(ConfigError, match=r"^v\.a\[1\]: an? \w+ cannot be stored as JSON"):
        config.to_dict()
    assert config == config


def test_get_returns_only_fields_and_properties():
    class WithProperty(A):
        @property
        def twice(self):
            return 2 * self.x

    config = WithProperty(2)
    assert [config.get(key, "none") for key in ("x", "twice", "y", "to_dict")] == [2, 4, "none", "none"]
