"""Milliseconds per generated token after 64 and after 4096 tokens, for each family.

    python benchmarks/generate.py [REPEATS]

The prompt is processed in one call, then tokens are generated one by one. With a recurrent state of fixed size, the
ratio of both times is about 1. The cost of attention grows with the number of earlier tokens. The lengths alternate,
and the minimum counts, which is affected least by other load on the machine.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from xlstm_hydra.configs import LlamaConfig, ModelConfig, mLSTMConfig, mLSTMv1Config, xLSTMConfig
from xlstm_hydra.models import Llama, build_model, continue_model, init_model, mLSTM, mLSTMv1, xLSTM

SIZES: dict[str, Any] = {"vocab_size": 256, "embedding_dim": 256, "num_blocks": 4, "dtype": "float32"}
MODELS = {
    "mlstm": ModelConfig(mLSTM, model_config=mLSTMConfig(**SIZES, num_heads=4)),
    "mlstm_v1": ModelConfig(mLSTMv1, model_config=mLSTMv1Config(**SIZES, num_heads=4)),
    "xlstm": ModelConfig(xLSTM, model_config=xLSTMConfig(**SIZES, num_heads=4, slstm_at=[1, 3])),
    "llama": ModelConfig(Llama, model_config=LlamaConfig(**SIZES, head_dim=64)),
}
LENGTHS = (64, 4096)
STEPS = 50


def main() -> None:
    """Measure every family, and print the minimum times and their ratios."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    print(f"{jax.devices()[0].device_kind}, {STEPS} tokens at a time, {repeats} times")
    for name, model in MODELS.items():
        runs = [Run(model, length, length + STEPS * (repeats + 1)) for length in LENGTHS]
        times = [[run.milliseconds() for run in runs] for _ in range(repeats + 1)][1:]  # the first round compiles
        short, long = (min(column) for column in zip(*times, strict=True))
        print(
            f"{name:<9} {short:7.3f} ms after {LENGTHS[0]}, {long:7.3f} ms after {LENGTHS[1]}, ratio {long / short:.2f}"
        )


class Run:
    """A model after its prompt."""

    def __init__(self, model: ModelConfig, length: int, capacity: int) -> None:
        module = build_model(model)
        self._params = jax.jit(lambda: init_model(module, jax.random.key(0)))()
        advance = partial(continue_model, module, capacity=capacity)
        self._token = jnp.zeros((1, 1), jnp.int32)
        self._cache = jax.jit(lambda params, tokens: advance(params, {}, tokens)[1])(
            self._params, jnp.zeros((1, length), jnp.int32)
        )

        def step(params: Any, cache: Any, token: jax.Array) -> tuple[jax.Array, Any]:
            logits, cache = advance(params, cache, token)
            return logits.argmax(-1).astype(jnp.int32), cache

        self._step = jax.jit(step, donate_argnums=1)

    def milliseconds(self) -> float:
        """Return the milliseconds per token over the next tokens."""
        start = time.perf_counter()
        for _ in range(STEPS):
            self._token, self._cache = self._step(self._params, self._cache, self._token)
        jax.block_until_ready(self._token)
        return 1000 * (time.perf_counter() - start) / STEPS


if __name__ == "__main__":
    main()
