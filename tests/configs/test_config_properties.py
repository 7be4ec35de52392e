"""Property tests: values of all types survive a round trip, and junk is refused with a message."""

# ruff: noqa: UP007, UP045 (typing's spelling of unions here, the new one in test_reading.py)

import dataclasses
import enum
import itertools
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import make_dataclass
from pathlib import Path
from typing import Any, Literal, Optional, Union

import jax.numpy as jnp
import numpy as np
import pytest
from conversions import assert_alike, holding, through_json
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xlstm_hydra import configs
from xlstm_hydra.configs import ConfigDict, ConfigError, ModelConfig, RunConfig

MANY = settings(
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def few_or_many(few, many):
    """Parametrize a test by the number of its examples: few, and many in a slow test."""
    return pytest.mark.parametrize("examples", [few, pytest.param(many, marks=pytest.mark.slow)])


def check(examples, **strategies):
    """Return a decorator that checks a property at once, for that many examples of the strategies."""
    return lambda holds: settings(MANY, max_examples=examples)(given(**strategies)(holds))()


class Color(enum.Enum):
    RED = 1
    BLUE = "b"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Right(enum.Flag):
    READ = 1
    WRITE = 2


# ---- random types: each is a pair of an annotation and a strategy for its values

words = st.sampled_from(["", "a", "5", "true", "nan", "RED", "_type_", "value", "a.b[0]", "null"]) | st.text(max_size=3)
numbers = st.floats(width=32) | st.sampled_from([math.nan, math.inf, -math.inf, 1.0])
dtypes = st.sampled_from([np.dtype("float32"), np.dtype("int8"), np.dtype(jnp.bfloat16)])

KEYS = [
    (str, words),
    (int, st.integers()),
    (bool, st.booleans()),
    (Color, st.sampled_from(Color)),
    (Level, st.sampled_from(Level)),
    (Optional[str], st.none() | words),
    (Union[int, str], st.integers(0, 9) | words),
    (tuple[int, str], st.tuples(st.integers(0, 3), words)),
    (Path, st.sampled_from([Path("a"), Path("5")])),
]

ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | numbers | words | dtypes | st.sampled_from([Path("a")]),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(words | st.integers(0, 9), inner, max_size=3),
    ),
    max_leaves=6,
)

LEAVES = [
    *KEYS,
    (float, numbers),
    (Right, st.sampled_from([Right.READ, Right.READ | Right.WRITE, Right(0)])),
    (Literal["a", 1, True, Color.RED, None], st.sampled_from(["a", 1, True, Color.RED, None])),
    (Any, ANY),
    (dict, st.dictionaries(words, ANY, max_size=2)),
    (list, st.lists(ANY, max_size=2)),
    (np.dtype, dtypes),
    (np.float32, numbers.map(np.float32)),
    (np.int64, st.integers(-(2**63), 2**63 - 1).map(np.int64)),
]

_count = itertools.count()


@st.composite
def dataclass_types(draw, fields):
    """A new dataclass, sometimes with a subclass that its values may be of."""
    names = ["x", "y", "z"][: draw(st.integers(0, 3))]
    specs = [draw(fields) for _ in names]
    bases = (ConfigDict,) if draw(st.booleans()) else ()
    cls = make_dataclass(
        f"C{next(_count)}", [(n, hint) for n, (hint, _) in zip(names, specs, strict=True)], bases=bases
    )
    values = st.builds(cls, **{name: strategy for name, (_, strategy) in zip(names, specs, strict=True)})
    if draw(st.booleans()):
        hint, strategy = draw(fields)
        sub = make_dataclass(f"S{next(_count)}", [("w", hint)], bases=(cls,))
        own = {name: strategy for name, (_, strategy) in zip(names, specs, strict=True)}
        values |= st.builds(sub, w=strategy, **own)
    return cls, values


@st.composite
def unions(draw, inner):
    """A union of two or three types."""
    specs = draw(st.lists(inner, min_size=2, max_size=3))
    return Union[tuple(hint for hint, _ in specs)], st.one_of([values for _, values in specs])


def containers(inner):
    """Types made of other types."""
    keys = st.sampled_from(KEYS)
    return st.one_of(
        inner.map(lambda t: (list[t[0]], st.lists(t[1], max_size=3))),
        inner.map(lambda t: (Sequence[t[0]], st.lists(t[1], max_size=2))),
        inner.map(lambda t: (tuple[t[0], ...], st.lists(t[1], max_size=3).map(tuple))),
        st.tuples(inner, inner).map(lambda t: (tuple[t[0][0], t[1][0]], st.tuples(t[0][1], t[1][1]))),
        inner.map(lambda t: (Optional[t[0]], st.none() | t[1])),
        keys.map(lambda t: (set[t[0]], st.sets(t[1], max_size=3))),
        keys.map(lambda t: (frozenset[t[0]], st.frozensets(t[1], max_size=3))),
        st.tuples(keys, inner).map(lambda t: (dict[t[0][0], t[1][0]], st.dictionaries(t[0][1], t[1][1], max_size=3))),
        st.tuples(keys, inner).map(
            lambda t: (Mapping[t[0][0], t[1][0]], st.dictionaries(t[0][1], t[1][1], max_size=2))
        ),
        unions(inner),
        dataclass_types(inner),
    )


TYPES = st.recursive(st.sampled_from(LEAVES), containers, max_leaves=6)


@few_or_many(75, 300)
def test_any_value_of_any_type_survives_a_json_round_trip(examples):
    @check(examples, spec=TYPES, data=st.data())
    def holds(spec, data):
        annotation, values = spec
        config = holding(annotation, data.draw(values))
        back = through_json(config)
        assert back == config
        assert_alike(back.v, config.v)
        assert back.to_dict() == config.to_dict()


@few_or_many(75, 300)
def test_what_is_written_is_also_read_with_strict_fields(examples):
    @check(examples, spec=TYPES, data=st.data())
    def holds(spec, data):
        config = holding(spec[0], data.draw(spec[1]))
        assert through_json(config, ignore_extensive_attributes=False) == config


# ---- our own classes

POOLS = {
    "name": None,
    "model_class": st.sampled_from(["my.Model", "xlstm_hydra.models.mLSTM"]),
    "weight_decay_include": st.lists(st.sampled_from([".*kernel", "a|b"]), max_size=2),
    "weight_decay_exclude": st.lists(st.sampled_from([".*bias", "^x"]), max_size=2),
    "path": st.sampled_from(["a.txt", "books/**/*.txt"]),
    "slstm_at": st.sampled_from([[], [0], [2, 0]]),
    "slstm_fgate_bias_init_range": st.sampled_from([[3.0, 6.0], [0.0, 0.0]]),
    "igate_bias_init_range": st.sampled_from([None, -10.0, [0.0, 1.0], [1, 2]]),
    "fgate_bias_init_range": st.sampled_from([[3.0, 6.0], [0.0, 0.0]]),
    "embedding_dim": st.sampled_from([64, 128]),
    "num_heads": st.sampled_from([1, 2, 4]),
    "chunk_size": st.sampled_from([16, 32, 64]),
    "context_length": st.sampled_from([64, 128]),
    "vocab_size": st.sampled_from([256, 512]),
    "dtype": st.sampled_from(["float32", "bfloat16"]),
    "restore": st.sampled_from([None, "outputs/run@20"]),
}


LAYOUTS = st.sampled_from(
    [
        {},
        {"fsdp_axis_size": 2, "fsdp_modules": ["mLSTMBlock"], "fsdp_gather_dtype": "bfloat16"},
        {"data_axis_size": 1, "fsdp_axis_size": -1, "remat": ["xLSTMResBlock"], "data_axis_name": "data"},
    ]
)


@st.composite
def models(draw):
    """A model that fits every layout and every source of data."""
    cls = draw(st.sampled_from([configs.mLSTMConfig, configs.mLSTMv1Config, configs.xLSTMConfig]))
    return ModelConfig("my.Model", configs.ParallelConfig(**draw(LAYOUTS)), draw(configs_of(cls)))


POOLS["model"] = models()


def fields_of(cls):
    """A strategy for some of the keyword arguments of a config class, not all of them valid together."""
    hints = typing.get_type_hints(cls)
    is_open = {f.name for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING}
    pools = {name: st.just("outputs/run@20") for name in is_open if hints[name] is str}
    for field in dataclasses.fields(cls):
        strategy = POOLS[field.name] if field.name in POOLS else by_hint(hints[field.name])
        if strategy is not None:
            pools[field.name] = strategy
    needed = {name: strategy for name, strategy in pools.items() if name in is_open}
    return st.fixed_dictionaries(needed, optional={n: s for n, s in pools.items() if n not in is_open})


def by_hint(hint):
    """Values of a field that is known only by its type; None where it is better left alone."""
    simple = {int: st.integers(0, 8), float: st.floats(0, 1), bool: st.booleans()}
    if typing.get_origin(hint) in (Union, types.UnionType):
        members = [by_hint(member) for member in typing.get_args(hint) if member is not type(None)]
        return st.none() | st.one_of([member for member in members if member is not None])
    if dataclasses.is_dataclass(hint):
        return st.sampled_from(family(hint)).flatmap(configs_of) if family(hint) else None
    return simple.get(hint)


def family(cls):
    """The classes that stand for a declared one."""
    if cls is ConfigDict:
        return [configs.mLSTMConfig, configs.mLSTMv1Config, configs.xLSTMConfig]
    return [member for member in CLASSES if issubclass(member, cls)]


def configs_of(cls):
    """A strategy for valid configs: keyword arguments that break rules are dropped, by the key that the rule names."""
    return fields_of(cls).map(lambda values: build(cls, values)).filter(lambda config: config is not None)


def build(cls, values):
    try:
        return cls(**values)
    except ConfigError as error:
        wrong = {re.split(r"[.\[]", key)[0] for problem in error.problems for key in problem.keys}
        rest = {name: value for name, value in values.items() if name not in wrong}
        if rest == values:
            return None
        try:
            return build(cls, rest)
        except TypeError:  # a field without default broke a rule
            return None


CLASSES = [
    cls
    for name, cls in vars(configs).items()
    if isinstance(cls, type) and issubclass(cls, ConfigDict) and not re.fullmatch("(ConfigDict|SubModelConfig)", name)
    if not ({"name"} & {f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING})
]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
@few_or_many(8, 25)
def test_every_config_class_survives_a_json_round_trip(cls, examples):
    @check(examples, data=st.data())
    def holds(data):
        config = data.draw(configs_of(cls))
        back = through_json(config, ignore_extensive_attributes=False)
        assert back == config
        assert through_json(holding(Any, config)).v == config
        assert through_json(holding(ConfigDict, config)).v == config


# ---- junk

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("bfloat16"),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.just("_type_"), inner, max_size=3)
    ),
    max_leaves=8,
)


def damage(draw, value):
    """The same JSON value with some of its parts replaced by junk."""
    if draw(st.integers(0, 15)) == 0:
        return draw(JSON)
    if isinstance(value, dict):
        return {key: damage(draw, item) for key, item in value.items() if draw(st.integers(0, 15))}
    return [damage(draw, item) for item in value] if isinstance(value, list) else value


@st.composite
def damaged_runs(draw):
    """The JSON of a run, damaged; or no run at all."""
    sizes = {"embedding_dim": 64, "num_blocks": 2, "num_heads": 4}
    cls = draw(st.sampled_from([configs.mLSTMConfig, configs.mLSTMv1Config, configs.xLSTMConfig]))
    run = RunConfig(model=ModelConfig("a.Model", model_config=cls(**sizes)))
    return damage(draw, run.to_dict()) if draw(st.booleans()) else draw(JSON)


@few_or_many(75, 300)
def test_junk_is_read_or_refused_with_a_message(examples):
    @check(examples, data=damaged_runs(), flags=st.tuples(st.booleans(), st.booleans(), st.booleans()))
    def holds(data, flags):
        try:
            run = ConfigDict.from_dict(RunConfig, data, *flags)
        except ConfigError as error:
            assert error.problems and all(str(problem).strip() for problem in error.problems)
        else:
            assert ConfigDict.from_dict(RunConfig, run.to_dict()) == run


@few_or_many(75, 300)
def test_junk_for_any_type_is_read_or_refused_with_a_path(examples):
    @check(examples, spec=TYPES, data=JSON)
    def holds(spec, data):
        cls = make_dataclass("Holder", [("v", spec[0])], bases=(ConfigDict,))
        try:
            config = ConfigDict.from_dict(cls, {"v": data})
        except ConfigError as error:
            assert all(problem.keys[0].startswith("v") for problem in error.problems)
        else:
            assert through_json(config) == config
