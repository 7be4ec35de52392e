"""Arguments that Hydra does not have: --from RUN[@STEP] and resume=RUN[@STEP]."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser

from xlstm_hydra.configs import ConfigError, Problem
from xlstm_hydra.configs._problems import _near as near_name
from xlstm_hydra.metadata import refuse_to_continue, run_of, step_of
from xlstm_hydra.metadata._find import checkpoints_of_run

from ._quote import as_override
from ._refusals import REFUSED

FLAG = "--from"
RESUME = "resume"
SEARCH_PATH = "hydra.searchpath"
SIMULATED = "trainer.simulated_devices"
_SCHEME = "ckpt://"
_TYPED_FLAG = re.compile(rf" {FLAG}[= ]\S*")
_PLACE = "from@_global_"
"""Where the primary config has its place for `from`: before the recipes, which may change what it gives."""


def expand_from(arguments: Sequence[str], primary_search_path: Callable[[Any], list[str]]) -> list[str]:
    """The arguments of the command with overrides in place of `--from RUN[@STEP]` or `resume=RUN[@STEP]`.

    The first is a new run with the config of the old one. The second goes on with the old run, in its folder unless
    `hydra.run.dir` names another. What is left out of the saved config, because it has no effect, is told on stderr.

    Args:
        arguments: what was typed.
        primary_search_path: given the parsed arguments, the `hydra.searchpath` of the primary config, which an override
            replaces.

    Raises:
        ConfigError: no checkpoint is named, or a config source on the command line cannot be read.
    """
    if {"-sc", "--shell-completion"} & {*arguments}:
        os.environ["COMP_LINE"] = _TYPED_FLAG.sub("", os.environ.get("COMP_LINE", ""))  # Hydra knows no such flag
        return list(arguments)
    key, place, rest = _take_place(list(arguments))
    _check_flags(rest)
    if place is None and not any(text.startswith(f"{SEARCH_PATH}=") for text in rest):
        return rest
    from ._from_checkpoint import NAME, SavedOptions  # 20 ms, not for other commands

    args = get_args_parser().parse_intermixed_args(rest)
    typed = [text for text in args.overrides if text.startswith(f"{SEARCH_PATH}=")]
    sources = _sources(typed[0]) if typed else None
    for source in sources or []:
        if source.startswith(_SCHEME):
            SavedOptions(source.removeprefix(_SCHEME), SEARCH_PATH)
        elif (source.startswith("file://") or "://" not in source) and not Path(
            source.removeprefix("file://")
        ).is_dir():
            where = f"The current folder is {os.getcwd()}."
            raise ConfigError([Problem({SEARCH_PATH: source}, "the folder does not exist", where)])
    if place is None:
        return rest
    saved = SavedOptions(place, key)
    for note in saved.notes:
        print(f"xlstm-hydra: {key} {place}: {note}", file=sys.stderr)
    first = rest.index(args.overrides[0]) if args.overrides else len(rest)
    before, others = rest[:first], [text for text in rest[first:] if text not in typed]
    searched = sources if sources is not None else primary_search_path(args)
    others = [_in_place(text) for text in others]
    chosen = [] if any(text.startswith(f"{_PLACE}=") for text in others) else [f"{_PLACE}={NAME}"]
    continued = _planned(others)
    if key == RESUME:
        refuse_to_continue(saved.writer, place, key)
        continued = _continued(saved.checkpoint, others, names_run=bool(checkpoints_of_run(place, key)))
    return [*before, as_override(SEARCH_PATH, [*searched, saved.address]), *chosen, *continued, *others]


def _take_place(arguments: list[str]) -> tuple[str, str | None, list[str]]:
    """What names a checkpoint, the place that it names, and the other arguments."""
    places: list[tuple[str, str]] = []
    rest, texts = [], iter(arguments)
    for text in texts:
        key, equals, value = text.partition("=")
        if text == FLAG:
            places.append((FLAG, next(texts, "")))
        elif equals and key in (FLAG, RESUME):
            places.append((key, value.strip("'\"") if key == RESUME else value))
        else:
            rest.append(text)
    if len(places) > 1:
        keys = list(dict.fromkeys(key for key, _ in places))
        text = "cannot be given together" if len(keys) > 1 else "given more than once"
        raise ConfigError([Problem.about(" and ".join(keys), text, "Choose one run.")])
    key, place = places[0] if places else (FLAG, None)
    if place == "" or (place or "").startswith("-"):
        example = f"{key}{'=' if key == RESUME else ' '}outputs/my_run@200"
        raise ConfigError([Problem.about(key, "needs a run folder", f"For example {example}.")])
    return key, place, rest


def _check_flags(arguments: list[str]) -> None:
    """Refuse flags that there are not.

    Raises:
        ConfigError: with each, and with the override that it may stand for.
    """
    parser = get_args_parser()
    _, unknown = parser.parse_known_intermixed_args(arguments)
    known = [FLAG, *(text for action in parser._actions for text in action.option_strings if text.startswith("--"))]
    names = {text.lstrip("-"): text for text in known}
    problems = []
    for text in unknown:
        key, equals, value = text.lstrip("-").partition("=")
        if near := near_name(key, names):
            fix = f"Did you mean {names[near]}?"
        elif equals or "." in key:
            fix = f"Write {key}={value if equals else '...'}, without dashes."
        else:
            fix = f"Known: {', '.join(known)}."
        problems.append(Problem.about(text, "no such flag", fix))
    if problems:
        raise ConfigError(problems)


def _continued(checkpoint: Path, others: list[str], names_run: bool) -> list[str]:
    """What makes a run go on where another has stopped, beside its config. The first `.hydra` of its folder stays.

    If no step was named, the run starts at its newest checkpoint, or at an earlier one if that turns out to be damaged.
    """
    typed = {text.lstrip("+").partition("=")[0] for text in others}
    if "checkpoint.restore" in typed:
        fix = f"Leave one away: {RESUME} takes the config of the run too."
        raise ConfigError([Problem.about(f"{RESUME} and checkpoint.restore", "cannot be given together", fix)])
    run = run_of(checkpoint)
    place = checkpoint if run is None or not names_run else run
    settings: dict[str, Any] = {"checkpoint.restore": str(place), "checkpoint.init_from": None}
    if "hydra.run.dir" not in typed:
        if run is None:
            text = f"{checkpoint} is not in the folder of a run, so it is not known where the run continues"
            fix = "Name a folder: hydra.run.dir=DIR."
            raise ConfigError([Problem.about(RESUME, text, fix)])
        settings["hydra.run.dir"] = str(run)
        settings["hydra.output_subdir"] = f".hydra/resumed_at_{step_of(checkpoint, RESUME)}"
    return [as_override(key, value) for key, value in settings.items()]


def _planned(others: list[str]) -> list[str]:
    """What a plan leaves away of a saved run: where it ran."""
    keys = {text.partition("=")[0] for text in others}
    is_left = "task=plan" in others and SIMULATED not in keys
    return [f"{SIMULATED}=null"] if is_left else []


def _sources(override: str) -> list[str] | None:
    """The list that was typed; None where it is no list, which Hydra tells."""
    try:
        value = OverridesParser.create().parse_override(override).value()
    except REFUSED:
        return None
    return [str(item) for item in value] if isinstance(value, list) else None


def _in_place(text: str) -> str:
    """A choice of `from`, such as of another step, moved to its place."""
    key, equals, value = text.partition("=")
    return f"{_PLACE}={value}" if equals and key in ("from", "+from") else text


def overrides_first(arguments: Sequence[str]) -> list[str]:
    """The arguments with all overrides before the flags: Hydra takes no second group of overrides behind a flag."""
    overrides = get_args_parser().parse_intermixed_args(list(arguments)).overrides
    rest, flags = iter(overrides), []
    expected = next(rest, None)
    for text in arguments:
        if text == expected:
            expected = next(rest, None)
        else:
            flags.append(text)
    return [*overrides, *flags]


def verifies(arguments: Iterable[str]) -> bool:
    """False if arguments turn `checkpoint.verify` off. That holds for the config of `--from` and `resume` too, which is
    read before anything is composed."""
    typed = {key: value for key, _, value in (text.lstrip("+").partition("=") for text in arguments)}
    return typed.get("checkpoint.verify", "").lower() not in ("false", "no", "off", "0", "n", "f")
