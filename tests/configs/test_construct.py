"""Configs constructed in Python have the annotated types. Every value of a wrong type is reported."""

import dataclasses
import enum
import itertools
import typing
from dataclasses import dataclass, field, make_dataclass
from decimal import Decimal
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xlstm_hydra import configs
from xlstm_hydra.codec import unchecked
from xlstm_hydra.configs import (
    AdamWConfig,
    ConfigDict,
    ConfigError,
    ModelConfig,
    ParallelConfig,
    RunConfig,
    SubModelConfig,
    TrainerConfig,
    mLSTMv1Config,
    xLSTMConfig,
)

MANY = settings(max_examples=60, deadline=None, derandomize=True)


@dataclass(kw_only=True)
class OwnConfig(SubModelConfig):
    """A config of a user's, which converts before it calls `super().__post_init__()`."""

    vocab_size: int = 256
    context_length: int = 64
    sizes: tuple[int, ...] = (3, 1)
    weights: dict[str, float] = field(default_factory=dict)
    inner: ParallelConfig | None = None
    layouts: list[ParallelConfig] = field(default_factory=list)
    kind: typing.Literal["a", "b"] = "a"
    folder: Path = Path("data")

    def __post_init__(self) -> None:
        self.sizes = tuple(sorted(self.sizes))
        super().__post_init__()


CLASSES = [
    *(cls for cls in vars(configs).values() if isinstance(cls, type) and issubclass(cls, ConfigDict)),
    OwnConfig,
]
SAMPLES = {int: 64, float: 1.0, str: "x", list[str]: [], ModelConfig: ModelConfig("a.Model"), typing.Any: "a.Model"}
POOL = [
    *(None, True, 0, 1, 7, 2**53 + 1, 2.0, 2.5, 1e-3, float("nan"), float("inf"), 1j, Decimal("1.5")),
    *("", "x", "3", "1e-3", "true", "None", "nan", "['a']", b"x", "a", Path("y")),
    *([], ["a"], [1], [1.0], [1.5], [True], [None], ["a", 1], (), ("a",), (1, 2.0), {"a"}, {1}, frozenset(), range(3)),
    *({}, {"a": 1}, {"a": "b"}, {1: 2.0}, {"_type_": "float", "value": 1}, {"data_axis_size": 2}),
    *(np.int64(3), np.float32(2.5), np.float64(2.0), np.bool_(True), np.str_("x"), np.array(4), np.array([1.0, 2.5])),
    *(int, ParallelConfig, ParallelConfig(), [ParallelConfig()], AdamWConfig(), object(), print, enum.Enum),
]
VALUES = st.sampled_from(POOL)


def without_rules(cls):
    """A subclass that checks and converts types, and has no rules."""
    return dataclass(kw_only=True)(type(cls.__name__, (cls,), {"__post_init__": lambda self: None}))


def allows(hint, value):
    """True if a value is of an annotated type, or becomes one without loss."""
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        value = value.item()
    origin, args = typing.get_origin(hint) or hint, typing.get_args(hint)
    if hint is typing.Any:
        return True
    if origin in (typing.Union, typing.get_origin(int | str)):
        return any(allows(member, value) for member in args)
    if origin is typing.Literal:
        return any(type(value) is type(option) and value == option for option in args)
    if hint is int:
        return type(value) is int or (type(value) is float and value.is_integer())
    if hint is float:
        return type(value) is float or (type(value) is int and float(value) == value)
    if hint is Path:
        return isinstance(value, str | Path)
    if origin in (list, tuple):
        return isinstance(value, list | tuple | range | np.ndarray) and all(allows(args[0], item) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(allows(args[0], k) and allows(args[1], v) for k, v in value.items())
    return isinstance(value, hint)


def hints(cls):
    """The annotations of the fields; a default of None allows None."""
    resolved = typing.get_type_hints(cls)
    return {
        field.name: resolved[field.name] | None if field.default is None else resolved[field.name]
        for field in dataclasses.fields(cls)
    }


def needed(cls):
    """Values of the right types for the fields that have no default."""
    is_open = [f.name for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING]
    return {name: SAMPLES[hints(cls)[name]] for name in is_open}


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
@MANY
@given(data=st.data())
def test_all_values_of_wrong_types_are_refused_by_name_and_nothing_else_is(cls, data):
    annotations = hints(cls)
    values = data.draw(st.fixed_dictionaries({}, optional=dict.fromkeys(annotations, VALUES)))
    wrong = {name for name, value in values.items() if not allows(annotations[name], value)}
    try:
        cls(**{**needed(cls), **values})
    except ConfigError as error:
        typed = [str(problem) for problem in error.problems if "expected " in str(problem)]
        assert {text.partition(":")[0].partition("[")[0].partition(".")[0] for text in typed} - {"model_class"} == wrong
    else:
        assert not wrong


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_conversion_keeps_the_value_and_gives_the_annotated_type(cls):
    unruled = without_rules(cls)
    for (name, hint), value in itertools.product(hints(cls).items(), POOL):
        if not allows(hint, value):
            continue
        found = getattr(unruled(**{**needed(cls), name: value}), name)
        if isinstance(found, list | tuple):
            assert list(found) == list(value)
        elif isinstance(found, Path):
            assert found == Path(value)
        else:
            assert found is value or found == value or found != found
        if hint in (int, float, bool, str):
            assert type(found) is hint
        if typing.get_origin(hint) is list:
            assert type(found) is list and all(
                type(item) in (typing.get_args(hint)[0], ParallelConfig) for item in found
            )


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_default_has_its_annotated_type(cls):
    before = vars(unchecked(cls, needed(cls)))
    config = without_rules(cls)(**before)
    assert all(vars(config)[name] is value for name, value in before.items())


MODEL = ModelConfig("a.B", model_config=OwnConfig())
WRONG = [
    (ParallelConfig, {"remat": "mLSTMBlock"}, "remat: expected list[str], got 'mLSTMBlock'"),
    (ParallelConfig, {"data_axis_size": 2.5}, "data_axis_size: expected int, got 2.5"),
    (ParallelConfig, {"data_axis_size": True}, "data_axis_size: expected int, got true"),
    (ParallelConfig, {"data_axis_size": "8"}, "data_axis_size: expected int, got '8'"),
    (ParallelConfig, {"data_axis_name": 3}, "data_axis_name: expected str, got 3"),
    (ParallelConfig, {"tp_async_dense": "yes"}, "tp_async_dense: expected bool, got 'yes'"),
    (ParallelConfig, {"remat": [1]}, "remat[0]: expected str, got 1"),
    (ParallelConfig, {"remat": {"A", "B"}}, "remat: expected list[str], got {'A', 'B'}"),
    (AdamWConfig, {"lr": "1e-3"}, "lr: expected float, got '1e-3'"),
    (AdamWConfig, {"lr": None}, "lr: expected float, got null"),
    (TrainerConfig, {"seed": float("inf")}, "seed: expected int, got inf"),
    (ModelConfig, {"model_class": None}, "model_class: expected a class or its dotted path, got null. For example "
                                         "my_package.MyModel."),
    (ModelConfig, {"model_class": "a.B", "parallel": 3}, "parallel: expected ParallelConfig, got 3"),
    (ModelConfig, {"model_class": "a.B", "parallel": {"data_axis_size": 2}}, "parallel: expected ParallelConfig, got "
                                                                            "{'data_axis_size': 2}"),
    (ModelConfig, {"model_class": "a.B", "parallel": AdamWConfig}, "parallel: expected ParallelConfig, got <class "),
    (RunConfig, {"model": MODEL, "trainer": None}, "trainer: expected TrainerConfig, got null"),
    (RunConfig, {"model": MODEL, "optimizer": TrainerConfig()}, "optimizer: expected OptimizerConfig, "),
]  # fmt: skip


@pytest.mark.parametrize(("cls", "values", "text"), WRONG, ids=[f"{c.__name__}-{[*v][-1]}-{t}" for c, v, t in WRONG])
def test_a_value_of_a_wrong_type_is_refused_in_the_words_of_from_dict(cls, values, text):
    with pytest.raises(ConfigError) as caught:
        cls(**values)
    [problem] = caught.value.problems
    expected = text.replace("{'A', 'B'}", str(problem).partition("got ")[2])
    assert str(problem).startswith(expected)


def test_all_wrong_types_are_reported_at_once_with_the_rules_that_other_values_break():
    with pytest.raises(ConfigError) as caught:
        mLSTMv1Config(vocab_size=10.5, embedding_dim="a", num_blocks=2, num_heads=4, bias=1, backend="fast")
    assert list(map(str, caught.value.problems)) == [
        "vocab_size: expected int, got 10.5",
        "embedding_dim: expected int, got 'a'",
        "bias: expected bool, got 1",
        "backend='fast': not a known value. Choose chunkwise, quadratic or recurrent.",
    ]


def test_replace_checks_types_too():
    with pytest.raises(ConfigError, match="max_steps: expected int, got 1.5"):
        dataclasses.replace(TrainerConfig(), max_steps=1.5)  # pyright: ignore[reportArgumentType]


def test_a_missing_or_unknown_argument_is_a_type_error_of_python():
    with pytest.raises(TypeError, match="embedding_dim"):
        mLSTMv1Config(num_blocks=2, num_heads=4)  # pyright: ignore[reportCallIssue]
    with pytest.raises(TypeError, match="max_step"):
        TrainerConfig(max_step=3)  # pyright: ignore[reportCallIssue]


def test_a_post_init_that_converts_first_sees_checked_values():
    with pytest.raises(ConfigError, match="slstm_at: expected list"):
        xLSTMConfig(embedding_dim=64, num_blocks=2, num_heads=4, slstm_at=3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="sizes: expected tuple"):
        OwnConfig(sizes=3)  # pyright: ignore[reportArgumentType]
    assert OwnConfig(sizes=[3.0, 1]).sizes == (1, 3)  # pyright: ignore[reportArgumentType]


def test_a_subclass_that_does_not_call_its_base_is_still_checked():
    @dataclass
    class Silent(ConfigDict):
        size: int = 1

        def __post_init__(self) -> None:
            pass

    with pytest.raises(ConfigError, match="size: expected int, got 'a'"):
        Silent("a")  # pyright: ignore[reportArgumentType]


EXOTIC = [
    (npt.NDArray[np.float64], np.ones(2)),
    (np.ndarray, np.array(1.0)),
    (np.float32, np.float32(0.1)),
    (typing.Sequence[int], (1, 2)),
    (typing.Mapping[str, int], {"_type_": 1}),
    (dict[int, str], {1: "a"}),
    (typing.Callable[[int], int], abs),
    (type[Exception], ValueError),
    (typing.SupportsInt, 3),
]


@pytest.mark.parametrize(("annotation", "value"), EXOTIC, ids=[str(hint) for hint, _ in EXOTIC])
def test_a_value_that_fits_a_rare_annotation_is_the_same_object(annotation, value):
    assert make_dataclass("Holder", [("v", annotation)], bases=(ConfigDict,))(value).v is value


def test_an_annotation_that_exists_for_type_checkers_only_is_not_checked():
    config = make_dataclass("Holder", [("v", "Nowhere")], bases=(ConfigDict,))  # pyright: ignore[reportArgumentType]
    assert config(3).v == 3


@dataclass(kw_only=True)
class PartlyUnknown(ConfigDict):
    """A config with an annotation that only a type checker can evaluate."""

    unknown: "NotThere" = 1  # noqa: F821  # pyright: ignore[reportUndefinedVariable]
    known: int = 1


def test_an_annotation_that_cannot_be_evaluated_leaves_the_other_fields_checked():
    assert PartlyUnknown(unknown="x", known=2.0).known == 2
    with pytest.raises(ConfigError, match="^known: expected int, got 'x'$"):
        PartlyUnknown(known="x")


def test_a_class_with_an_annotation_that_cannot_be_evaluated_is_read_and_does_not_disturb_other_classes():
    assert ConfigDict.from_dict(PartlyUnknown, {"unknown": "x", "known": 2.0}).known == 2  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ConfigError, match="colour: no such field"):
        ConfigDict.from_dict(PartlyUnknown, {"colour": "red"}, ignore_extensive_attributes=False)
    with pytest.raises(ConfigError, match="model_config.colour: no such field"):
        own = {"_type_": "xlstm_hydra.configs.xLSTMConfig", "colour": "red"}
        data = {"model_class": "own.Model", "parallel": {}, "model_config": own}
        ConfigDict.from_dict(ModelConfig, data, ignore_extensive_attributes=False)
