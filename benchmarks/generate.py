"""Milliseconds per generated token after 64 tokens and after 4096, for each family: what a recurrent state is for.

    python benchmarks/generate.py [REPEATS]

The prompts are read at once, then tokens follow one by one. With a state of fixed size the ratio of the two is 1, up to
noise; attention looks at all that came before, so that its cost grows. The lengths take turns, and the least time
counts, which a busy machine disturbs least.
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
    """Measure every family and print the least times and ratios."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    print(f"{jax.devices()[0].device_kind}, {STEPS} tokens at a time, {repeats} times")
    for name, model in MODELS.items():
        runs = [Run(model, length, length + STEPS * (repeats + 1)) for length in LENGTHS]
        times = [[run.milliseconds() for run in runs] for _ in range(repeats + 1)][1:]  # the first compiles
        short, long = (min(column) for column in zip(*times, strict=True))
        print(
            f"{name:<9} {short:7.3f} ms after {LENGTHS[0]}, {long:7.3f} ms after {LENGTHS[1]}, ratio {long / short:.2f}"
        )


class Run:
    """A model that has read a prompt."""

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
        """Per token, over the next ones."""
        start = time.perf_counter()
        for _ in range(STEPS):
            self._token, self._cache = self._step(self._params, self._cache, self._token)
        jax.block_until_ready(self._token)
        return 1000 * (time.perf_counter() - start) / STEPS


if __name__ == "__main__":
    main()
