"""Internals of JAX are used in three modules only: traced programs, lowered programs, private modules."""

import ast
from collections.abc import Iterator

import pytest
from test_imports import FILES, module_of

from xlstm_hydra._jax_internals import is_whole_program

READERS = {"plan._jaxpr", "parallel._collectives", "_jax_internals"}
MODULES = ("jax._src", "jax.core", "jax.extend", "jax.interpreters", "jaxlib")
ATTRIBUTES = frozenset(
    "aval call_jaxpr compiler_ir constvars eqns in_avals invars jaxpr make_jaxpr mat out_avals outvars primitive "
    "source_info vma".split()
)
"""Attributes of traced and lowered programs, and of values in them."""

BY_NAME = ("getattr", "hasattr", "import_module", "__import__")
"""Functions that take a name as text."""


def is_internal(name: str) -> bool:
    """True for a private module of JAX, and for anything in one."""
    return any(name == module or name.startswith(f"{module}.") for module in MODULES)


def accesses(source: str) -> Iterator[str]:
    """Uses of JAX internals in a module."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names):
                yield from (alias.name for alias in names if is_internal(alias.name))
            case ast.ImportFrom(str(module), names, 0):
                yield from (f"{module}.{each.name}" for each in names if is_internal(f"{module}.{each.name}"))
            case ast.Attribute(_, name) if name in ATTRIBUTES or is_internal(ast.unparse(node)):
                yield ast.unparse(node)
            case ast.Subscript(ast.Attribute(_, "params"), ast.Constant(str())):
                yield ast.unparse(node)
            case ast.Call(ast.Attribute(ast.Attribute(_, "params"), "get")):
                yield ast.unparse(node)
            case ast.Call(function, arguments) if ast.unparse(function).rpartition(".")[2] in BY_NAME:
                texts = [each.value for each in arguments if isinstance(each, ast.Constant)]
                yield from (text for text in texts if text in ATTRIBUTES or is_internal(str(text)))


@pytest.mark.parametrize("file", [file for file in FILES if module_of(file) not in READERS], ids=module_of)
def test_other_modules_use_no_internals_of_jax(file):
    assert list(accesses(file.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("name", sorted(READERS))
def test_the_listed_modules_exist_and_use_internals(name):
    (file,) = (file for file in FILES if module_of(file) == name)
    assert list(accesses(file.read_text(encoding="utf-8")))


WRONG = {
    "from jax._src import distributed": ["jax._src.distributed"],
    "import jax._src.xla_bridge as bridge": ["jax._src.xla_bridge"],
    "def f():\n    from jax.extend.core import jaxprs_in_params": ["jax.extend.core.jaxprs_in_params"],
    "import jaxlib.mlir.ir": ["jaxlib.mlir.ir"],
    "jax.extend.backend.clear_backends()": ["jax.extend.backend.clear_backends", "jax.extend.backend", "jax.extend"],
    "importlib.import_module('jax._src.core')": ["jax._src.core"],
    "closed.jaxpr": ["closed.jaxpr"],
    "[eqn.primitive for eqn in program.eqns]": ["eqn.primitive", "program.eqns"],
    "eqn.params['num_carry']": ["eqn.params['num_carry']"],
    "eqn.params.get('axes')": ["eqn.params.get('axes')"],
    "getattr(var, 'aval')": ["aval"],
    "hasattr(jax.typeof(x), 'vma')": ["vma"],
    "jax.make_jaxpr(f)(x)": ["jax.make_jaxpr"],
    "lowered.compiler_ir('stablehlo').body": ["lowered.compiler_ir"],
}


@pytest.mark.parametrize("source", WRONG)
def test_an_access_to_internals_is_detected(source):
    assert list(accesses(source)) == WRONG[source]


def test_parameters_of_a_model_are_not_taken_for_internals():
    assert list(accesses("state.params.items(), jax.tree.leaves(state.params), 'jax._src.numpy.scalar_types'")) == []


def test_a_renamed_function_of_jax_does_not_make_a_program_look_truncated(monkeypatch):
    monkeypatch.delattr("jax._src.compilation_cache.decompress_executable")
    with pytest.raises(AttributeError, match="decompress_executable"):
        is_whole_program(b"whole")
