"""Print every text of the package that a user or the next developer reads: `python tests/messages.py [PART OF A PATH]`.

A message is a string with a space in it that is not a docstring; an f-string is shown with its expressions in braces.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PACKAGES = ("xlstm_hydra", "hydra_plugins")
HAS_DOCSTRING = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


class Text(NamedTuple):
    """A text and its place in the source."""

    path: str
    line: int
    text: str
    opens: bool = False  # a docstring of a module, class or function, not one under a field

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {' '.join(self.text.split())}"


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Path and syntax tree of every module."""
    for path in sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        yield str(path.relative_to(ROOT)), ast.parse(path.read_text(encoding="utf-8"))


def docstrings() -> list[Text]:
    """Every docstring, those under fields and constants included."""
    return [Text(path, node.lineno, text, opens) for path, tree in modules() for node, text, opens in _documented(tree)]


def messages() -> list[Text]:
    """Every string that may be shown: one with a space in it that is not a docstring."""
    return [Text(path, line, text) for path, tree in modules() for line, text in _shown(tree)]


def _documented(tree: ast.Module) -> Iterator[tuple[ast.Constant, str, bool]]:
    for node in ast.walk(tree):
        for index, statement in enumerate(node.body if isinstance(node, HAS_DOCSTRING) else ()):
            if isinstance(statement, ast.Expr) and isinstance(constant := statement.value, ast.Constant):
                if isinstance(constant.value, str):
                    yield constant, constant.value, index == 0


def _shown(tree: ast.Module) -> Iterator[tuple[int, str]]:
    skip = {id(node) for node, _, _ in _documented(tree)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            skip |= {id(part) for part in ast.walk(node) if part is not node}
            text = "".join(
                part.value if isinstance(part, ast.Constant) else f"{{{ast.unparse(part.value)}}}"  # type: ignore
                for part in node.values
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
        else:
            continue
        if id(node) not in skip and " " in text.strip():
            yield node.lineno, text


if __name__ == "__main__":
    part = sys.argv[1] if len(sys.argv) > 1 else ""
    print("\n".join(str(text) for text in [*messages(), *docstrings()] if part in text.path))
