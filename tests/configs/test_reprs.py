"""Parsing of `repr` texts without evaluation, and their use in `from_dict`."""

import enum
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xlstm_hydra.codec import Instance, ReprError, parse_repr
from xlstm_hydra.configs import ConfigDict, ConfigError, ParallelConfig, mLSTMv1Config, register_class


class Color(enum.Enum):
    RED = "r>e'd"


@dataclass(kw_only=True)
class A(ConfigDict):
    a: int = 1


@dataclass(kw_only=True)
class H(A):
    h: tuple[int, ...] = (1,)


@dataclass(kw_only=True)
class Other(ConfigDict):
    a: int = 1


@register_class
@dataclass(kw_only=True)
class Holder(ConfigDict):
    one: A = field(default_factory=A)
    maybe: A | None = None
    many: list[A] = field(default_factory=list)
    named: dict[str, A] = field(default_factory=dict)
    either: A | Other | None = None
    words: Sequence[str] = ()
    options: Mapping[str, int] = field(default_factory=dict)
    number: int | None = None
    text: str = ""
    maybe_text: str | None = None
    text_or_list: str | list[int] = ""
    dtype: np.dtype = np.dtype("float32")
    cls: type | None = None
    function: Callable[..., Any] | None = None
    anything: Any = None


def read(**data):
    return ConfigDict.from_dict(Holder, data)


VALUES = {
    "dataclass": (A(a=5), Instance("A", {"a": 5})),
    "dataclass in one": (Other(a=-2), Instance("Other", {"a": -2})),
    "one-element tuple": ((("x",),), (("x",),)),
    "class": ([np.ndarray, int], ["<class 'numpy.ndarray'>", "<class 'int'>"]),
    "class as a value": ({"x": int, "y": [dict]}, {"x": "<class 'int'>", "y": ["<class 'dict'>"]}),
    "what looks like a class": ("a <class 'int'> (b", "a <class 'int'> (b"),
    "quotes": (["it's", 'say "x"', "\\'", "a\\", "<"], ["it's", 'say "x"', "\\'", "a\\", "<"]),
    "enum": ([Color.RED], ["RED"]),
    "dtype": ([np.dtype("int16")], ["int16"]),
    "path": ([PurePosixPath("/a/b")], ["/a/b"]),
    "not finite": ([math.inf, -math.inf], [math.inf, -math.inf]),
    "set": (frozenset({3}), [3]),
    "unicode": (["shärd", "\n\t", "\x1f"], ["shärd", "\n\t", "\x1f"]),
}


@pytest.mark.parametrize(("value", "expected"), VALUES.values(), ids=VALUES)
def test_the_repr_of_plain_values_classes_and_dataclasses_is_read_back(value, expected):
    assert parse_repr(repr(value)) == expected
    assert parse_repr(f"  {value!r} ") == expected


def test_a_class_of_a_function_is_known_by_its_qualified_name():
    @dataclass
    class Local:
        a: int

    assert parse_repr(repr(Local(a=1))) == Instance(Local.__qualname__, {"a": 1})


whole = st.integers(-(2**62), 2**62)
plain = st.none() | st.booleans() | whole | st.floats(allow_nan=False) | st.text()


@given(st.recursive(plain, lambda x: st.lists(x) | st.tuples(x) | st.dictionaries(st.text() | whole, x)))
def test_plain_values_round_trip(value):
    assert parse_repr(repr(value)) == value


REFUSED = {
    "call": "print('x')",
    "import": "__import__('os')",
    "operator": "1 + 1",
    "comprehension": "[x for x in (1, 2)]",
    "lambda": "lambda: 1",
    "f-string": "f'{1}'",
    "subscript": "a[0]",
    "called attribute of a value": "(1).real(a=1)",
    "star": "[*a]",
    "double star": "A(**{'a': 1})",
    "key twice": "A(a=1, a=2)",
    "dict key twice": "{1: 1, 1: 2}",
    "object": "<object object at 0x7f>",
    "function": "[<function f at 0x7f>]",
    "class with a call": "<class 'a.B()'>",
    "bytes": "b'x'",
    "complex": "1j",
    "assignment": "a = 1",
    "two": "1; 2",
    "cut off": "A(a=",
    "open string": "'abc",
    "null byte": "'\0'",
    "surrogate": "'\ud800'",
    "deep": "[" * 40 + "]" * 40,
    "very deep": "(" * 50_000,
    "signs": "-" * 50_000 + "1",
    "attributes": "a" + ".a" * 40_000,
    "long": "'" + "a" * 200_000 + "'",
    "huge number": "9" * 5000,
    "too large": "1e999",
    "nothing": "",
}


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED)
def test_other_texts_are_refused(text):
    with pytest.raises(ReprError):
        parse_repr(text)


@given(st.text(alphabet="()[]{}<>'\",=:.-+ aA1_\\\n") | st.text())
def test_no_text_raises_another_error(text):
    try:
        parse_repr(text)
    except ReprError:
        pass


TAKEN = {
    "dataclass": ({"one": "A(a=5)"}, A(a=5)),
    "subclass": ({"one": "H(h=(4, 4))"}, H(h=(4, 4))),
    "dataclass with its module": ({"one": "__main__.A(a=5)"}, A(a=5)),
    "nested in a list": ({"many": "[A(a=2), H(h=(4,))]"}, [A(a=2), H(h=(4,))]),
    "nested in a dict": ({"named": "{'x': A(a=2)}"}, {"x": A(a=2)}),
    "list of reprs": ({"many": ["A(a=2)"]}, [A(a=2)]),
    "optional": ({"maybe": "A(a=2)"}, A(a=2)),
    "one of two": ({"either": "Other(a=2)"}, Other(a=2)),
    "none": ({"maybe": "None"}, None),
    "no number": ({"number": "None"}, None),
    "list": ({"words": "['a', 'b']"}, ["a", "b"]),
    "tuple": ({"words": "('a',)"}, ["a"]),
    "dict": ({"options": "{'a': 1}"}, {"a": 1}),
    "dtype": ({"dtype": "<class 'jax.numpy.int16'>"}, np.dtype("int16")),
    "dtype by name": ({"dtype": "bfloat16"}, np.dtype(jnp.bfloat16)),
    "dotted dtype": ({"dtype": "jax.numpy.float16"}, np.dtype("float16")),
    "scalar type": ({"cls": "<class 'jax.numpy.int16'>"}, jnp.int16),
    "registered class": ({"cls": f"{__name__}.Holder"}, Holder),
    "registered class in angles": ({"cls": f"<class '{__name__}.Holder'>"}, Holder),
}


@pytest.mark.parametrize(("data", "expected"), TAKEN.values(), ids=TAKEN)
def test_a_published_text_is_read_where_the_type_of_the_field_calls_for_it(data, expected):
    config = read(**data)
    value = getattr(config, next(iter(data)))
    assert value == expected and type(value) is type(expected)


KEPT = ["None", "A(a=5)", "['a']", "<class 'int'>", "bfloat16", "(1,)"]


@pytest.mark.parametrize("text", KEPT)
def test_a_string_stays_a_string_where_strings_are_allowed(text):
    config = read(text=text, maybe_text=text, text_or_list=text, anything=text)
    assert config.text == config.maybe_text == config.text_or_list == config.anything == text
    assert ConfigDict.from_dict(Holder, config.to_dict()) == config


@pytest.mark.parametrize("text", ["bfloat16", "jax.numpy.bfloat16", "<class 'jax.numpy.bfloat16'>"])
def test_a_dtype_field_accepts_every_published_spelling(text):
    layout = ConfigDict.from_dict(ParallelConfig, {"fsdp_gather_dtype": text, "fsdp_grad_scatter_dtype": "None"})
    assert layout == ParallelConfig(fsdp_gather_dtype="bfloat16", fsdp_grad_scatter_dtype=None)
    sizes = {"embedding_dim": 64, "num_blocks": 1, "context_length": 64, "num_heads": 4}
    model = ConfigDict.from_dict(mLSTMv1Config, sizes | {"ff_dtype": text, "gate_dtype": text, "lm_head_dtype": "None"})
    assert (model.ff_dtype, model.gate_dtype, model.lm_head_dtype) == ("bfloat16", "bfloat16", None)


@pytest.mark.parametrize("text", ["<class 'evil.bfloat16'>", "evil.bfloat16", "jax.numpy.int8", ""])
def test_a_dtype_field_refuses_other_values(text):
    with pytest.raises(ConfigError, match="fsdp_gather_dtype=.*bfloat16"):
        ConfigDict.from_dict(ParallelConfig, {"fsdp_gather_dtype": text})


NOT_TAKEN = {
    "another class": ({"one": "Other(a=5)"}, r"one: expected A, got 'Other\(a=5\)'"),
    "unknown class": ({"one": "Nobody(a=5)"}, r"one: expected A, got"),
    "wrong field": ({"one": "A(a='x')"}, "one.a: expected int, got 'x'"),
    "call": ({"one": "A(a=open('x'))"}, "has a positional argument"),
    "evaluation": ({"words": "[x for x in 'ab']"}, "words: expected .* ListComp is not supported"),
    "cut off": ({"one": "A(a=5"}, "one: expected A, got"),
    "class that is loaded": ({"cls": "collections.OrderedDict"}, "cls: expected .* registered"),
    "member of numpy": ({"cls": "numpy.ndarray"}, "cls: expected .* registered"),
    "function that is loaded": ({"function": "os.system"}, "function: expected .* registered"),
    "dtype of another module": ({"dtype": "<class 'evil.int16'>"}, "dtype: expected"),
    "dataclass for anything": ({"anything": ["A(a=1)"], "many": "[1, A(a=1)]"}, r"many\[0\]: expected A, got 1"),
}


@pytest.mark.parametrize(("data", "words"), NOT_TAKEN.values(), ids=NOT_TAKEN)
def test_a_text_for_another_type_is_refused_with_its_path(data, words):
    with pytest.raises(ConfigError, match=words):
        read(**data)


def test_unknown_fields_of_a_repr_follow_the_flag_at_every_level():
    data = {"many": ["A(a=1, b=2)"]}
    assert read(**data).many == [A(a=1)]
    with pytest.raises(ConfigError, match=r"many\[0\]\.b: no such field in A"):
        ConfigDict.from_dict(Holder, data, ignore_extensive_attributes=False)


def test_none_in_a_repr_is_zero_for_an_int_if_requested():
    data = {"one": "A(a=None)", "many": [{"a": "None"}]}
    config = ConfigDict.from_dict(Holder, data, none_to_zero_for_ints=True)
    assert config.one == A(a=0) and config.many == [A(a=0)]
    with pytest.raises(ConfigError, match=r"one\.a: expected int, got null"):
        read(**data)


def test_strict_class_names_need_angle_brackets():
    def strict(**data):
        return ConfigDict.from_dict(Holder, data, strict_classname_parsing=True)

    assert strict(dtype="<class 'jax.numpy.int16'>", cls=f"<class '{__name__}.Holder'>").cls is Holder
    for name, text in {"dtype": "int16", "cls": f"{__name__}.Holder"}.items():
        with pytest.raises(ConfigError, match=f"{name}: expected"):
            strict(**{name: text})


def test_nothing_in_a_text_is_imported():
    with pytest.raises(ConfigError):
        read(cls="<class 'antigravity.Fly'>", one="antigravity.A(a=1)", dtype="<class 'antigravity.int16'>")
    assert "antigravity" not in sys.modules


def test_parsing_a_text_raises_no_warning(recwarn):
    assert parse_repr(r"['\d+']") == ["\\d+"]
    assert not recwarn.list


def test_a_config_prints_its_fields_as_any_dataclass_does():
    @dataclass(kw_only=True)
    class Plain(ParallelConfig):
        pass

    assert "__repr__" not in ParallelConfig.__dict__ and "__repr__" in Plain.__dict__
    assert repr(ParallelConfig()) == repr(Plain()).replace(Plain.__qualname__, "ParallelConfig")
