"""The structure of the package: no cycles, no way around a package's interface, short ways from a key to its effect."""

import pytest
from architecture import EFFECTS, STAGES, Tree, names_twice, private_test_files, read_tree

TREE = read_tree()


def test_no_modules_import_each_other():
    assert TREE.cycles() == []


def test_no_package_imports_what_is_private_in_another():
    assert TREE.private_imports() == []


def test_every_file_has_a_name_of_its_own():
    assert names_twice() == []


def test_nearly_all_tests_use_public_interfaces():
    assert len(private_test_files()) < 15


@pytest.mark.parametrize("key", EFFECTS)
def test_few_modules_lie_between_a_key_and_its_effect(key):
    assert 0 < len(TREE.chain(*STAGES, EFFECTS[key])) <= 5


def test_a_lazy_import_that_closes_a_cycle_is_seen():
    sources = {"a": "def f():\n    import b", "b": "import c", "c": "from a import f"}
    assert Tree(sources, frozenset()).cycles() == [["a", "b", "c"]]


@pytest.mark.parametrize(
    "text",
    ["from p._m import f", "from p import _m", "import p._m", "from p.q import _f", "def g():\n    from p._m import f"],
)
def test_an_import_of_something_private_is_seen(text):
    sources = {"p": "", "p._m": "f = 1", "p.q": "_f = 1", "r": "", "r.s": text}
    assert len(Tree(sources, frozenset({"p", "r"})).private_imports()) == 1


def test_the_way_to_a_function_leads_to_the_module_that_defines_it():
    sources = {
        "xlstm_hydra.cli.main": "from p import f",
        "p": "from ._m import f as f",
        "p._m": "from q import g\ndef f(): g()",
        "q": "from ._n import g as g",
        "q._n": "def g(): ...",
    }
    ways = Tree(sources, frozenset({"p", "q"})).chain(("p", "f"), ("q", "g"))
    assert ways == ["xlstm_hydra.cli.main", "p._m", "q._n"]
