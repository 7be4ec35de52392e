"""Overrides with several values where one is needed."""

from __future__ import annotations

from hydra.core.override_parser.types import ChoiceSweep, Override

from xlstm_hydra.problems import Problem

from ._field_kinds import list_keys, text_keys
from ._refusals import PARAMS, of_params
from ._unreadable import quoted_argument


def several_values(override: Override) -> Problem:
    """A sweep where one value is needed."""
    key, _, values = str(override.input_line).partition("=")
    name, is_choice = override.key_or_group, isinstance(override.value(), ChoiceSweep)
    fix = "Add -m to run one job for each"
    if is_choice and name in text_keys():
        fix += f", or write {quoted_argument(key, values)} for one text"
    elif is_choice and (name in list_keys() or override.is_add()):
        fix += f", or write {key}=[{values}] for a list"
    return Problem.about(str(override.input_line), "several values for one run", f"{fix}.")


def several_for_hydra(override: Override) -> Problem:
    """Return the problem with a sweep over a key of Hydra's own."""
    text = str(override.input_line)
    if override.key_or_group.startswith(PARAMS):
        return of_params(override.key_or_group, text)
    return Problem.about(text, "Hydra's own part is the same for all jobs of a sweep", "Give it one value.")
