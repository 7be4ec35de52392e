"""Round trips of configs through JSON text, and comparison of the results."""

import dataclasses
import json
from dataclasses import make_dataclass

from xlstm_hydra.configs import ConfigDict


def holding(annotation, value):
    """A config with one field `v` of the annotated type, holding the value."""
    return make_dataclass("Holder", [("v", annotation)], bases=(ConfigDict,))(value)


def through_json(config, **flags):
    """What comes back from the config's JSON text, keys sorted."""
    text = json.dumps(config.to_dict(), allow_nan=False, sort_keys=True)
    return ConfigDict.from_dict(type(config), json.loads(text), **flags)


def assert_alike(left, right):
    """Equal to the type, all the way down."""
    assert type(left) is type(right)
    if dataclasses.is_dataclass(left):
        left, right = vars(left), vars(right)
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        left, right = list(left.values()), [right[key] for key in left]
    if isinstance(left, list | tuple):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_alike(one, other)
    elif not isinstance(left, type):
        assert left == right or left != left
