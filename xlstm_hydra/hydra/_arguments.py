"""What is typed otherwise than in Hydra's grammar: `--from RUN[@STEP]`, which stands for a config source and the choice
of all that it has, and text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser

from xlstm_hydra.configs import ConfigError, Problem

from ._quote import as_override
from ._refusals import REFUSED

FLAG = "--from"
SEARCH_PATH = "hydra.searchpath"
TEXTS = ("task.prompt",)
"""Keys whose values are text, which people write without a thought of Hydra's grammar."""
_SCHEME = "ckpt://"
_PLACE = "from@_global_"
"""Where the primary config has its place for `from`: before the recipes, which may change what it gives."""


def expand_from(arguments: Sequence[str], primary_search_path: Callable[[Any], list[str]]) -> list[str]:
    """The arguments of the command with overrides in place of `--from RUN[@STEP]`.

    Args:
        arguments: what was typed.
        primary_search_path: given the parsed arguments, the `hydra.searchpath` of the primary config, which an override
            replaces.

    Raises:
        ConfigError: the flag names no checkpoint, or a config source on the command line cannot be read.
    """
    place, rest = _take_flag(list(arguments))
    if place is None and not any(text.startswith(f"{SEARCH_PATH}=") for text in rest):
        return rest
    from ._from_checkpoint import NAME, SavedOptions  # 20 ms, not for other commands

    args = get_args_parser().parse_intermixed_args(rest)
    typed = [text for text in args.overrides if text.startswith(f"{SEARCH_PATH}=")]
    sources = _sources(typed[0]) if typed else None
    for source in sources or []:
        if source.startswith(_SCHEME):
            SavedOptions(source.removeprefix(_SCHEME), SEARCH_PATH)
    if place is None:
        return rest
    saved = SavedOptions(place, FLAG)
    first = rest.index(args.overrides[0]) if args.overrides else len(rest)
    before, others = rest[:first], [text for text in rest[first:] if text not in typed]
    searched = sources if sources is not None else primary_search_path(args)
    others = [_in_place(text) for text in others]
    chosen = [] if any(text.startswith(f"{_PLACE}=") for text in others) else [f"{_PLACE}={NAME}"]
    return [*before, as_override(SEARCH_PATH, [*searched, saved.address]), *chosen, *others]


def _take_flag(arguments: list[str]) -> tuple[str | None, list[str]]:
    """What stands behind the flag, and the other arguments."""
    places, rest, texts = [], [], iter(arguments)
    for text in texts:
        if text == FLAG:
            places.append(next(texts, ""))
        elif text.startswith(f"{FLAG}="):
            places.append(text.removeprefix(f"{FLAG}="))
        else:
            rest.append(text)
    if len(places) > 1:
        raise ConfigError([Problem.about(FLAG, "given more than once", "Choose one run.")])
    if places and (not places[0] or places[0].startswith("-")):
        raise ConfigError([Problem.about(FLAG, "needs a run folder", "For example --from outputs/my_run@200.")])
    return (places[0] if places else None), rest


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


def quote_texts(arguments: Sequence[str]) -> list[str]:
    """The arguments of the command, in which what stands behind `task.prompt=` is text as it is, whatever it would mean
    to Hydra. Where it is quoted for Hydra, and in a sweep, it is left alone."""
    args = get_args_parser().parse_intermixed_args(list(arguments))
    if args.multirun or any(text.startswith("hydra.mode=MULTI") for text in args.overrides):
        return list(arguments)
    return [_quoted_text(text) if text in args.overrides else text for text in arguments]


def _quoted_text(text: str) -> str:
    key, _, value = text.partition("=")
    quoted = len(value) > 1 and value[0] in "'\"" and value[0] == value[-1]
    return text if key not in TEXTS or quoted else as_override(key, value)
