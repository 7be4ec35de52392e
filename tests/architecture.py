"""Measures of the package's structure, from its syntax trees. `python tests/architecture.py` prints them."""

from __future__ import annotations

import ast
import collections
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("xlstm_hydra", "hydra_plugins")

EFFECTS = {
    "parallel.fsdp_axis_size": ("xlstm_hydra.parallel", "build_mesh"),
    "optimizer.beta2": ("xlstm_hydra.optim", "build_optimizer"),
    "data.path": ("xlstm_hydra.data", "open_corpus"),
}
"""Where a value of the command line takes effect in a training run: the package, and the function in it."""

STAGES = (("xlstm_hydra.cli._run", "run_single"), ("xlstm_hydra.train", "train"))
"""The functions that every single training run goes through."""

FIRST = "xlstm_hydra.cli.main"
"""The module that a command begins in."""


@dataclass
class Tree:
    """The modules of a source tree and what each imports, lazy imports included.

    Attributes:
        sources: text by dotted name of the module; a package has the text of its `__init__`.
    """

    sources: Mapping[str, str]
    packages: frozenset[str]
    _exports: dict[str, dict[str, str]] = field(default_factory=dict)
    _imported: dict[str, list[tuple[str, str]]] = field(default_factory=dict)

    def imported(self, module: str) -> list[tuple[str, str]]:
        """Each name that a module imports from this tree: the dotted path as it stands, and the module that has it."""
        if module not in self._imported:
            self._imported[module] = [*self._read(module)]
        return self._imported[module]

    def _read(self, module: str) -> Iterator[tuple[str, str]]:
        for node in ast.walk(ast.parse(self.sources[module])):
            if isinstance(node, ast.Import):
                yield from ((alias.name, alias.name) for alias in node.names if alias.name in self.sources)
            elif isinstance(node, ast.ImportFrom):
                base = self._base(module, node)
                for alias in node.names:
                    path = f"{base}.{alias.name}"
                    if path in self.sources:
                        yield path, path
                    elif base in self.sources:
                        yield path, self._home(base, alias.name)

    def _base(self, module: str, node: ast.ImportFrom) -> str:
        """The dotted name of the module that an import statement names."""
        if not node.level:
            return node.module or ""
        parts = module.split(".")
        kept = parts[: len(parts) - node.level + (module in self.packages)]
        return ".".join([*kept, *filter(None, [node.module])])

    def _home(self, package: str, name: str) -> str:
        """The module that defines what a package exports; the package itself for what it defines."""
        if package not in self.packages:
            return package
        if package not in self._exports:
            self._exports[package] = {}
            for path, home in self.imported(package):
                self._exports[package][path.rpartition(".")[2]] = home
        return self._exports[package].get(name, package)

    def graph(self, *, through_exports: bool = False) -> dict[str, set[str]]:
        """The modules that each module imports.

        Args:
            through_exports: name the module that defines a name, not the package that exports it.
        """
        found: dict[str, set[str]] = {}
        for module in self.sources:
            homes = (
                (path if path in self.sources else path.rpartition(".")[0], home)
                for path, home in self.imported(module)
            )
            found[module] = {home if through_exports else named for named, home in homes} - {module}
        return found

    def cycles(self) -> list[list[str]]:
        """Groups of modules that import each other, directly or not."""
        graph = self.graph()
        reached = {module: _reachable(graph, module) for module in graph}
        groups = {frozenset({other for other in reached[m] if m in reached[other]}) for m in graph if m in reached[m]}
        return sorted(sorted(group) for group in groups)

    def private_imports(self) -> list[str]:
        """Imports of another package's private module, or of another module's private name."""
        found = []
        for module in self.sources:
            own = module if module in self.packages else module.rpartition(".")[0]
            for path, _ in self.imported(module):
                holder = _private_holder(path)
                inside = own == holder or own.startswith(f"{holder}.")
                if holder is not None and not (holder in self.packages and inside):
                    found.append(f"{module}: {path}")
        return found

    def chain(self, *functions: tuple[str, str]) -> list[str]:
        """The shortest way of imports from the command through the modules that have these functions, in this order.
        Packages, which only pass names on, are left out. Empty where there is none."""
        graph, way = self.graph(through_exports=True), [FIRST]
        for package, name in functions:
            further = _shortest(graph, way[-1], self._home(package, name), self.packages)
            if not further:
                return []
            way += further[1:]
        return way


def read_tree(root: Path = ROOT) -> Tree:
    """The tree of the package and its Hydra plugin."""
    files = [file for package in PACKAGES for file in sorted((root / package).rglob("*.py"))]
    names = {file: ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__") for file in files}
    packages = frozenset(names[file] for file in files if file.name == "__init__.py")
    return Tree({names[file]: file.read_text(encoding="utf-8") for file in files}, packages)


def names_twice(root: Path = ROOT) -> list[str]:
    """File names that stand in more than one folder of the package."""
    files = [file.name for file in (root / "xlstm_hydra").rglob("*.py") if not file.name.startswith("__")]
    return sorted(name for name, count in collections.Counter(files).items() if count > 1)


def private_test_files(root: Path = ROOT) -> list[str]:
    """Files of the tests that import a private module of the package."""
    found = []
    for file in sorted((root / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            base = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            paths = [".".join([*base, name]) for name in names]
            if any(path.startswith("xlstm_hydra.") and _private_holder(path) for path in paths):
                found.append(file.relative_to(root).as_posix())
                break
    return found


def _private_holder(path: str) -> str | None:
    """What holds the first private part of a dotted path; None where no part is private."""
    parts = path.split(".")
    private = [number for number, part in enumerate(parts) if part.startswith("_") and not part.startswith("__")]
    return ".".join(parts[: private[0]]) if private else None


def _shortest(graph: Mapping[str, set[str]], start: str, goal: str, passed_over: frozenset[str]) -> list[str]:
    ways, queue = {start: [start]}, collections.deque([start])
    while queue:
        module = queue.popleft()
        for other in sorted(graph.get(module, set()) - ways.keys() - passed_over):
            ways[other] = [*ways[module], other]
            queue.append(other)
    return ways.get(goal, [])


def _reachable(graph: Mapping[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            waiting.extend(graph.get(module, ()))
    return found


def main() -> None:
    """Print every measure."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT
    tree = read_tree(root)
    print(f"modules: {len(tree.sources)}, lines: {sum(text.count(chr(10)) for text in tree.sources.values())}")
    print(f"cycles: {[len(group) for group in tree.cycles()]}")
    print(f"private imports between packages: {len(tree.private_imports())}")
    print(f"file names twice: {names_twice(root)}")
    print(f"test files that import private modules: {len(private_test_files(root))}")
    for key, effect in EFFECTS.items():
        way = tree.chain(*STAGES, effect)
        print(f"{key}: {len(way)} modules: {' -> '.join(part.removeprefix('xlstm_hydra.') for part in way)}")


if __name__ == "__main__":
    main()
