"""Command-line arguments that Hydra does not have: --from RUN[@STEP], resume=RUN[@STEP], and --lenient with either."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser

from xlstm_hydra.problems import ConfigError, Problem, either, near_name, show

from ._hydra_part import SEARCH_PATH
from ._omegaconf import REFUSED
from ._quote import as_override
from ._search_path import source_problems

FLAG = "--from"
LENIENT = "--lenient"
RESUME = "resume"
TRUST = "--trust"
SIMULATED = "trainer.simulated_devices"
_RESTORE = "checkpoint.restore"
_LENIENT_FIELD = "checkpoint.lenient"


def parse_known_flags(arguments: Sequence[str] | None = None) -> Any:
    """Parse Hydra's flags, and ignore unknown flags.

    Args:
        arguments: command-line arguments. None: `sys.argv[1:]`.

    Raises:
        ConfigError: the value of a flag is missing or invalid.
    """
    parser = get_args_parser()
    parser.error = _refuse_flag
    args = parser.parse_known_intermixed_args(arguments)[0]
    for name in ("config_dir", "config_name", "config_path"):
        if getattr(args, name) == "":
            _refuse_flag(f"argument --{name.replace('_', '-')}: expected one argument")
    return args


def _refuse_flag(message: str) -> NoReturn:
    """Raise a `ConfigError` for an argparse error message. argparse itself would also print the usage of all flags.

    Raises:
        ConfigError: always.
    """
    match = _FLAG_FAULT.fullmatch(message)
    flag, rule = (match[1] or "", match[2]) if match else ("", message)
    if wrong := _WRONG_CHOICE.fullmatch(rule):
        known = [name.strip("'") for name in wrong[2].split(", ")]
        raise ConfigError([Problem({flag: wrong[1]}, f"must be {either(known)}")])
    if extra := _NO_VALUE.fullmatch(rule):
        raise ConfigError([Problem({flag: extra[1]}, "does not take a value", f"Write {flag}.")])
    if rule == "expected one argument":
        raise ConfigError([Problem.about(flag, "requires a value", f"Write {flag}=...")])
    raise ConfigError([Problem.about(flag, rule) if flag else Problem({}, rule)])


_FLAG_FAULT = re.compile(r"(?:argument ([^/: ]+)\S*: )?(.*)")
_WRONG_CHOICE = re.compile(r"invalid choice: '(.*)' \(choose from (.*)\)")
_NO_VALUE = re.compile(r"ignored explicit argument '(.*)'")
"""argparse error messages."""


def expand_from(arguments: Sequence[str], primary_search_path: Callable[[Any], list[str]]) -> list[str]:
    """Replace `--from RUN[@STEP]` or `resume=RUN[@STEP]` with the equivalent overrides.

    `--from` starts a new run with the config of a saved run. `resume` continues a saved run, in its run folder unless
    `hydra.run.dir` is set. Parts of the saved config that are not used are reported on stderr. `--lenient` ignores
    unknown fields in the saved metadata.

    Args:
        arguments: command-line arguments.
        primary_search_path: returns the `hydra.searchpath` of the primary config. The returned overrides replace
            `hydra.searchpath`, so they must include these entries.

    Raises:
        ConfigError: the checkpoint does not exist, a config source on the command line cannot be read, or the flags
            are invalid.
    """
    key, source, rest = _take_source([text for text in arguments if text != LENIENT])
    lenient = LENIENT in arguments
    if lenient and source is None:
        rest = _restored_leniently(rest)
    _check_flags(rest)
    if source is None and not any(text.startswith(f"{SEARCH_PATH}=") for text in rest):
        _refuse_from_without_run(rest)
        return rest
    args = get_args_parser().parse_intermixed_args(rest)
    typed = [text for text in args.overrides if text.startswith(f"{SEARCH_PATH}=")]
    sources = _sources(typed[0]) if typed else None
    if problems := [*source_problems(sources or [])]:
        raise ConfigError(problems)
    if source is None:
        return rest
    if key == RESUME and is_sweep(args):
        fix = f"Remove -m. Use --from {source} to sweep over its config, or resume_sweep=DIR to continue a sweep."
        raise ConfigError([Problem({RESUME: source}, "continues a single run and cannot be combined with -m", fix)])
    from ._from_checkpoint import overrides_of  # takes 20 ms, so only imported if needed

    first = rest.index(args.overrides[0]) if args.overrides else len(rest)
    others = [text for text in rest[first:] if text not in typed]
    searched = sources if sources is not None else primary_search_path(args)
    return [*rest[:first], *overrides_of(key, source, others, searched, lenient=lenient)]


def _refuse_from_without_run(arguments: list[str]) -> None:
    """Reject `from=...` if no saved run is given, unless the user's config folders may contain a group `from`."""
    if any(text.startswith(("--config-", "-cd", "-cp", "-cn")) for text in arguments):
        return
    chosen = [text for text in arguments if text.lstrip("+").partition("=")[0] in ("from", "from@_global_")]
    problems = []
    for text in chosen:
        step = match[0] if (match := re.search(r"@\d+$", text)) else ""
        fix = f"Use {FLAG} RUN{step}, for example {FLAG} outputs/my_run{step}."
        problems.append(Problem.about(text, "selects a checkpoint of a saved run, but no run is given", fix))
    if problems:
        raise ConfigError(problems)


def _take_source(arguments: list[str]) -> tuple[str, str | None, list[str]]:
    """Split arguments into the key (`--from` or `resume`), the saved run (None: not given), and the other arguments."""
    sources: list[tuple[str, str]] = []
    rest, texts = [], iter(arguments)
    for text in texts:
        key, equals, value = text.partition("=")
        if text == FLAG:
            sources.append((FLAG, next(texts, "")))
        elif equals and key in (FLAG, RESUME):
            sources.append((key, value.strip("'\"") if key == RESUME else value))
        else:
            rest.append(text)
    if len(sources) > 1:
        keys = list(dict.fromkeys(key for key, _ in sources))
        text = "cannot be given together" if len(keys) > 1 else "given more than once"
        raise ConfigError([Problem.about(" and ".join(keys), text, "Name one run.")])
    key, source = sources[0] if sources else (FLAG, None)
    if source == "" or (source or "").startswith("-"):
        example = f"{key}{'=' if key == RESUME else ' '}outputs/my_run@200"
        raise ConfigError([Problem.about(key, "requires a run folder", f"For example {example}.")])
    return key, source, rest


def _restored_leniently(arguments: list[str]) -> list[str]:
    """Append `checkpoint.lenient=true`, the equivalent of --lenient for a run with `checkpoint.restore=...`.

    Raises:
        ConfigError: the arguments do not set `checkpoint.restore`.
    """
    if any(text.lstrip("+").startswith(f"{_RESTORE}=") for text in arguments):
        return [*arguments, as_override(_LENIENT_FIELD, True)]
    text = "only applies to commands that read a saved run"
    fix = f"Add {FLAG} RUN, {RESUME}=RUN or {_RESTORE}=RUN. In hydra.searchpath, use ckpt://RUN?lenient."
    raise ConfigError([Problem.about(LENIENT, text, fix)])


def _check_flags(arguments: list[str]) -> None:
    """Reject unknown flags.

    Raises:
        ConfigError: there are unknown flags. The error lists them, each with a suggested flag or override.
    """
    parser = get_args_parser()
    _, unknown = parser.parse_known_intermixed_args(arguments)
    known = [
        FLAG,
        LENIENT,
        *(text for action in parser._actions for text in action.option_strings if text.startswith("--")),
    ]
    names = {text.lstrip("-"): text for text in known}
    problems = []
    for text in unknown:
        key, equals, value = text.lstrip("-").partition("=")
        if text == TRUST:
            problems.append(Problem.about(text, "only applies to resume_sweep=DIR", "Remove it."))
            continue
        if near := near_name(key, names):
            fix = f"Did you mean {names[near]}?"
        elif equals or "." in key:
            fix = f"Write {key}={value if equals else '...'}, without dashes."
        else:
            fix = f"Known: {', '.join(known)}."
        problems.append(Problem.about(text, "no such flag", fix))
    if problems:
        raise ConfigError(problems)


def _sources(override: str) -> list[Any] | None:
    """Return the list in an override of `hydra.searchpath`; None if the value is null or will be rejected by Hydra.

    Raises:
        ConfigError: the value is not a list.
    """
    try:
        parsed = OverridesParser.create().parse_override(override)
        value = parsed.value()
    except REFUSED:
        return None
    if value is None or isinstance(value, list):
        return value
    if parsed.is_sweep_override():
        rule = "all jobs of a sweep share one search path"
        raise ConfigError([Problem.about(override, rule, "Write a single list.")])
    rule, fix = f"expected a list of folders, got {show(value)}", f"Write {SEARCH_PATH}=[{value}]."
    raise ConfigError([Problem.about(SEARCH_PATH, rule, fix)])


def is_sweep(args: Any) -> bool:
    """True if the parsed arguments request a sweep."""
    return args.multirun or any(text.startswith("hydra.mode=MULTI") for text in args.overrides)


def overrides_first(arguments: Sequence[str]) -> list[str]:
    """Move all overrides before the flags, because Hydra does not accept overrides on both sides of a flag."""
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
    """False if the arguments disable `checkpoint.verify`. Checkpoints named by `--from` or `resume` are read before the
    config is composed, so the override is parsed here without Hydra."""
    typed = {key: value for key, _, value in (text.lstrip("+").partition("=") for text in arguments)}
    return typed.get("checkpoint.verify", "").lower() not in ("false", "no", "off", "0", "n", "f")
