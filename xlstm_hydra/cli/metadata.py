"""The `xlstm-metadata` command: show, compare, check and convert checkpoints.

Exit status: 0: success, 1: differences were found or the check failed, 2: an argument or the metadata is invalid.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xlstm_hydra._printable import printable, shell_line
from xlstm_hydra.configs import KINDS
from xlstm_hydra.own_modules import find_own_modules
from xlstm_hydra.problems import ConfigError, Problem
from xlstm_hydra.problems import show as shown
from xlstm_hydra.runs import (
    ABSENT,
    Record,
    Verdict,
    checkpoints_of_run,
    diff,
    find_checkpoint,
    judge,
    not_compared,
    record_named,
    record_of,
    run_folders,
    to_path,
    verification,
)

from ._messages import command

if TYPE_CHECKING:
    from xlstm_hydra.checkpoint import Misfit

_SOURCE = "a run folder, RUN@STEP, a checkpoint folder, or a metadata file"
_COLORS = {"parameters": "bold red", "numerics": "yellow", "layout": "cyan", "bookkeeping": "dim"}


def main() -> None:
    """Entry point of the console command."""
    with command("xlstm-metadata"):
        arguments = _parser().parse_args()
        find_own_modules(run_folders([getattr(arguments, name, "") for name in ("RUN", "A", "B")]))
        with verification(getattr(arguments, "verify", True)):
            sys.exit(arguments.run(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="xlstm-metadata", description="Show, compare, check and convert checkpoints.")
    commands = parser.add_subparsers(required=True, metavar="command")

    def add(name: str, run: Callable[[argparse.Namespace], int], text: str, *sources: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        for source in sources:
            command.add_argument(source, help=_SOURCE)
        command.add_argument("--json", action="store_true", help="print the result as JSON")
        command.add_argument("--lenient", action="store_true", help="ignore unknown fields, and list them")
        if name != "check":
            text = "do not verify the files against the manifest of the checkpoint"
            command.add_argument("--no-verify", dest="verify", action="store_false", help=text)
        return command

    add("show", _show, "Print the config and the environment of the run as YAML.", "RUN")
    add("overrides", _overrides, "Print the shortest command line that composes to the same config.", "RUN")
    add("diff", _diff, "Print the differences between two configs, grouped by their effect.", "A", "B")
    text = "Verify the files and the parameter shapes of one checkpoint, or of all checkpoints of a run."
    add("check", _check, text, "RUN")
    take = add("import", _import, "Convert an xlstm-jax or Hugging Face checkpoint to an xlstm-hydra run.", "RUN")
    take.add_argument("OUT", help="run folder to create")
    take.add_argument(
        "--format", choices=("xlstm_jax", "hf"), help="format of the checkpoint (default: detected from the files)"
    )
    give = add("export", _export, "Convert a checkpoint to a model that transformers can load.", "RUN")
    give.add_argument("OUT", help="folder to create")
    give.add_argument("--format", choices=("hf",), required=True, help="hf: the Hugging Face class xLSTMForCausalLM")
    text = "allow models with reset_at_document_boundaries; each input row must then contain a single document"
    give.add_argument("--one-document-per-row", action="store_true", help=text)
    return parser


def _read(arguments: argparse.Namespace, key: str = "RUN") -> Record:
    """Return the `Record` of the checkpoint or metadata file named by the argument `key`."""
    return record_named(getattr(arguments, key), key, lenient=arguments.lenient)


# ---- the commands


def _show(arguments: argparse.Namespace) -> int:
    record = _read(arguments)
    content = _summary(record)
    _print_json(content) if arguments.json else _print_yaml(content)
    return 0


def _summary(record: Record) -> dict[str, Any]:
    """Return the content of a record to print: the program that wrote it, metadata, and the config of each group."""
    groups = {name: config.to_dict() for name, config in record.groups.items()}
    groups["model"].pop("parallel", None)
    made = {name: value for name, value in record.content.items() if name not in ("config", "parameters", "format")}
    parameters = record.content.get("parameters") if record.writer == "xlstm_hydra" else None
    if isinstance(parameters, dict):
        size = sum(math.prod(entry["shape"]) for entry in parameters.values())
        made["parameters"] = f"{size:,} in {len(parameters)} arrays"
    if isinstance(origin := made.get("imported"), dict):
        made["imported"] = {name: value for name, value in origin.items() if name != "metadata"}
    made = made if record.writer == "xlstm_hydra" else {}
    found: dict[str, Any] = {"writer": record.writer, **made, "config": groups}
    lists = {"notes": list(record.notes), "unknown": list(record.unknown)}
    return found | {name: texts for name, texts in lists.items() if texts}


def _overrides(arguments: argparse.Namespace) -> int:
    from xlstm_hydra.configs import RunConfig
    from xlstm_hydra.hydra import shortest_overrides
    from xlstm_hydra.runs import without_unused

    record = _read(arguments)
    overrides, notes = shortest_overrides(record), without_unused(record.groups)[1]
    groups = {field.name for field in dataclasses.fields(RunConfig) if field.default is not None}
    if missing := sorted(groups - record.groups.keys()):
        notes = [*notes, f"not recorded: {', '.join(missing)}"]
    command = shell_line(["xlstm-hydra", *overrides])
    if arguments.json:
        _print_json({"command": command, "overrides": overrides, "notes": notes})
        return 0
    for note in notes:
        print(f"# {printable(note)}", file=sys.stderr)
    print(command)
    return 0


def _diff(arguments: argparse.Namespace) -> int:
    before, after = _read(arguments, "A"), _read(arguments, "B")
    found, left_out = diff(before, after), not_compared(before, after)
    if arguments.json:
        plain = [
            {"key": each.key, "kind": each.kind}
            | {name: value for name, value in (("before", each.before), ("after", each.after)) if value is not ABSENT}
            for each in found
        ]
        _print_json({"differences": plain, "not_compared": left_out})
        return 1 if found else 0
    lines: list[tuple[str, str]] = [] if found else [("no differences", "green")]
    for kind, title in KINDS.items():
        of_kind = [each for each in found if each.kind == kind]
        lines += [(title, _COLORS[kind])] if of_kind else []
        lines += [(f"  {each.key}: {shown(each.before)} -> {shown(each.after)}", "") for each in of_kind]
    if left_out:
        lines.append((f"not compared, because only one config has these groups: {', '.join(left_out)}", "dim"))
    _print_lines(lines)
    return 1 if found else 0


def _check(arguments: argparse.Namespace) -> int:
    saved = checkpoints_of_run(arguments.RUN, "RUN")
    checkpoints = saved.values() or [_checkpoint_of(arguments.RUN)]
    found = [each for path in checkpoints if (each := _checked_if_kept(path, arguments.lenient))]
    if not found:
        text = "all checkpoints of this run were deleted while they were being read"
        raise ConfigError([Problem({"RUN": arguments.RUN}, text, "If the run is still training, try again.")])
    if arguments.json:
        listed = [each.content() for each in found]
        newest = {key: listed[-1][key] for key in ("checkpoint", "misfits")}
        _print_json(newest | {"checkpoints": listed})
    else:
        _print_lines(line for each in found for line in each.lines())
    for each in found:
        if each.error is not None:
            print(f"xlstm-metadata: {each.error}", file=sys.stderr)
    return max(each.status for each in found)


@dataclasses.dataclass
class _Checked:
    """Result of `xlstm-metadata check` for a single checkpoint."""

    checkpoint: Path
    verdict: Verdict
    misfits: list[Misfit] = dataclasses.field(default_factory=list)
    """Parameters whose shape on disk differs from the expected shape."""
    against: str = "the model"
    """Source of the expected shapes, for messages."""
    error: ConfigError | None = None
    """Reason why the shapes could not be compared. None: they were compared, or the files are damaged."""

    @property
    def status(self) -> int:
        """Exit status."""
        return 2 if self.error else 1 if self.misfits or self.verdict.damage else 0

    def content(self) -> dict[str, Any]:
        """Return the result as plain data, for `--json`."""
        verdict = {key: [each._asdict() for each in getattr(self.verdict, key)] for key in ("damage", "notes")}
        misfits = [each._asdict() for each in self.misfits]
        error = {"error": str(self.error)} if self.error else {}
        return {
            "checkpoint": str(self.checkpoint),
            "files": self.verdict.num_files,
            "misfits": misfits,
            **verdict,
            **error,
        }

    def lines(self) -> Iterator[tuple[str, str]]:
        """Yield the lines to print, as (text, Rich style)."""
        verdict, path = self.verdict, self.checkpoint
        yield from ((f"{path}: {each}", "bold red") for each in verdict.damage)
        yield from ((f"{path}: {each}", "yellow") for each in verdict.notes)
        if verdict.num_files and not verdict.damage:
            yield f"{path}: all {verdict.num_files} files are intact", "green"
        if verdict.damage or self.error:
            return
        if not self.misfits:
            yield f"{path}: all parameter shapes on disk match {self.against}", "green"
        by = {"model": "according to the model", "parameters": "according to the metadata"}
        for each in self.misfits:
            expected, found = _shape(each.expected), _shape(each.found)
            yield f"{each.leaf}: expected {expected} {by[each.source]}, found {found}", ""


def _checked_if_kept(checkpoint: Path, lenient: bool) -> _Checked | None:
    """Check a checkpoint. Return None if a run in progress deletes the checkpoint during the check."""
    try:
        found = _checked(checkpoint, lenient)
    except FileNotFoundError:
        if checkpoint.exists():
            raise
        return None
    return found if checkpoint.exists() else None


def _checked(checkpoint: Path, lenient: bool) -> _Checked:
    """Verify the files of a checkpoint. If they are intact, compare the shapes of its parameters."""
    verdict = judge(checkpoint)
    if verdict.damage:
        return _Checked(checkpoint, verdict)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # shapes need no accelerator
    try:
        record = record_of(checkpoint, "RUN", lenient=lenient)
        from xlstm_hydra.checkpoint import check_params
        from xlstm_hydra.configs import resolve_classes

        recorded = record.content.get("parameters") if record.writer == "xlstm_hydra" else None
        misfits = check_params(checkpoint, resolve_classes(record.model), recorded)
    except ConfigError as error:
        return _Checked(checkpoint, verdict, error=error)
    return _Checked(checkpoint, verdict, misfits, "the model" + " and the metadata" * (recorded is not None))


def _import(arguments: argparse.Namespace) -> int:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # no computation, so no accelerator is needed
    from xlstm_hydra.checkpoint import import_checkpoint

    return _wrote(
        arguments, import_checkpoint(arguments.RUN, arguments.OUT, arguments.format, lenient=arguments.lenient)
    )


def _export(arguments: argparse.Namespace) -> int:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from xlstm_hydra.checkpoint import export_checkpoint

    settings = {"one_document_per_row": arguments.one_document_per_row, "lenient": arguments.lenient}
    return _wrote(arguments, export_checkpoint(arguments.RUN, arguments.OUT, **settings))


def _wrote(arguments: argparse.Namespace, folder: Path) -> int:
    _print_json({"written": str(folder)}) if arguments.json else _print_lines([(f"written: {folder}", "green")])
    return 0


def _checkpoint_of(source: str) -> Path:
    """Return the checkpoint folder, given the folder itself or its metadata file."""
    file = to_path(source)
    if not file.is_file():
        return find_checkpoint(source, "RUN")
    if (file.parent.parent / "params").is_dir():
        return file.absolute().parents[1]
    raise ConfigError(
        [Problem({"RUN": source}, "there are no parameters next to this file", "Name the checkpoint folder instead.")]
    )


def _shape(shape: tuple[int, ...] | None) -> str:
    return "no array" if shape is None else str(tuple(shape))


# ---- printing


def _print_json(content: Any) -> None:
    print(json.dumps(content, indent=2, allow_nan=False))


def _print_yaml(content: Any) -> None:
    import yaml  # a dependency of OmegaConf

    class Dumper(yaml.SafeDumper):
        """Puts strings with unprintable characters in double quotes, and escapes these characters."""

        def represent_str(self, data: str) -> yaml.ScalarNode:
            return self.represent_scalar("tag:yaml.org,2002:str", data, style=None if data.isprintable() else '"')

    Dumper.add_representer(str, Dumper.represent_str)
    text = yaml.dump(content, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)
    text = printable(text, keep="\n")
    if not _colored():
        print(text, end="")
        return
    from rich.console import Console
    from rich.syntax import Syntax

    Console().print(Syntax(text, "yaml", background_color="default", word_wrap=True))


def _print_lines(lines: Any) -> None:
    """Print (text, Rich style) lines. Styles are only used if the output is a terminal and NO_COLOR is not set."""
    if not _colored():
        for text, _ in lines:
            print(printable(text))
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    for text, style in lines:
        console.print(Text(printable(text), style=style), soft_wrap=True)


def _colored() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")
