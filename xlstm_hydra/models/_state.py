"""What a model keeps of the tokens that it has read, in order to continue them: the Flax collection `cache`.

Training keeps nothing. Where `Context.capacity` is set, every layer whose output depends on earlier tokens begins from
what an earlier call has left there, and leaves there what the next one needs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flax import linen as nn

from ._inputs import Context

CACHE = "cache"
"""Name of the collection."""


def kept(module: nn.Module, context: Context, name: str, start: Callable[[], Any]) -> Any:
    """What a module keeps under a name, as a variable that begins as `start()`; None where nothing is kept."""
    return None if context.capacity is None else module.variable(CACHE, name, start)
