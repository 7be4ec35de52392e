"""Generation: continue a prompt with the parameters of a checkpoint."""

from __future__ import annotations

import codecs
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from xlstm_hydra._logging import log_fact
from xlstm_hydra._status import status
from xlstm_hydra.configs import GenerateTaskConfig, ModelConfig, RunConfig
from xlstm_hydra.configs.data import ByteDataConfig
from xlstm_hydra.data import SEPARATOR
from xlstm_hydra.devices import agree_on_folder, is_first, together
from xlstm_hydra.models import build_model, keeps_cache, param_shardings
from xlstm_hydra.parallel import build_mesh, describe_mesh
from xlstm_hydra.problems import ConfigError, Problem
from xlstm_hydra.runs import provenance, record_of, verification

from ._load_model import KEY, find, read_params, start, write_result
from ._sample import sample_tokens

Decode = Callable[[Iterable[int]], str]
"""Function that converts the next tokens of a sequence to the text to print."""

RESULT = "generated.json"
"""Name of the result file in the run folder."""


def generate(run: RunConfig, folder: Path | str = ".", overrides: list[str] | None = None) -> None:
    """Generate samples that continue a prompt. The first sample is printed token by token, and the other samples after
    it. All samples are written to `generated.json` in `folder`, even after Ctrl-C.

    With several processes, every process must call this. If one fails, all exit instead of raising (see `together`).

    Args:
        run: the config; its task is a `GenerateTaskConfig`.
        folder: the folder to which the result is written.
        overrides: the overrides on the command line, recorded in the result.

    Raises:
        ConfigError: the run does not fit the devices or the checkpoint, or the model does not support generation.
        KeyboardInterrupt: the user pressed Ctrl-C. The tokens generated so far have been written.
    """
    with verification(run.checkpoint.verify), together(run.distributed):
        _generate(run, Path(folder), overrides)


def _generate(run: RunConfig, folder: Path, overrides: list[str] | None) -> None:
    task = run.task
    assert isinstance(task, GenerateTaskConfig)
    checkpoint = find(run)
    run = start(run)
    _refuse_what_cannot_continue(run, task, checkpoint)
    folder = agree_on_folder(folder)
    mesh = build_mesh(run.parallel, order=run.distributed.device_order)
    shardings = param_shardings(run.model, mesh)
    log_fact("mesh", describe_mesh(mesh))
    params = read_params(run, checkpoint, shardings)
    samples = _Samples(task)
    try:
        samples.take(sample_tokens(build_model(run.model), params, task, mesh))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"the text generated so far is in {folder / RESULT}") from None
    finally:
        content = {"samples": samples.content(), "task": task.to_dict()} | provenance(overrides)
        write_result(folder / RESULT, checkpoint, content)
    log_fact("speed", samples.speed())


def _refuse_what_cannot_continue(run: RunConfig, task: GenerateTaskConfig, checkpoint: Path) -> None:
    if not keeps_cache(run.model.model_class):
        text = (
            "this model cannot generate: its `__call__` has no `capacity` argument, so it keeps no state between calls"
        )
        fix = "Derive the class from xlstm_hydra.models.LanguageModel, or see xlstm_hydra.models.continue_model."
        raise ConfigError([Problem({"model.model_class": run.model.class_path()}, text, fix)])
    if task.prompt_tokens is None and not _is_of_bytes(run.model, checkpoint):
        text = "a text prompt requires a byte-level model, but the checkpoint does not record that its tokens are bytes"
        fix = "Set task.prompt_tokens to token ids from the tokenizer that the model was trained with."
        raise ConfigError([Problem({"task.prompt": task.prompt}, text, fix)])


def _is_of_bytes(model: ModelConfig, checkpoint: Path) -> bool:
    record = record_of(checkpoint, KEY, lenient=True, classes=(model.model_class, type(model.model_config)))
    return isinstance(record.groups.get("data"), ByteDataConfig)


@dataclass
class _Samples:
    """The generated tokens, printed as they arrive."""

    task: GenerateTaskConfig
    tokens: list[list[int]] = field(default_factory=list)
    stopped: list[bool] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tokens = [[] for _ in range(self.task.num_samples)]
        self.stopped = [False] * self.task.num_samples

    def take(self, steps: Iterator[np.ndarray]) -> None:
        """Print and store tokens until all samples have ended."""
        with status("compiling the generation step"):  # may use the terminal that the prompt is printed to
            first = list(islice(steps, 1))
        decode = self._begin(0)
        try:
            for tokens_B in chain(first, steps):
                self.times.append(time.perf_counter())
                self._add(tokens_B)
                if not self.stopped[0]:
                    self._show(decode(self.tokens[0][-1:]))
                if all(self.stopped):
                    break
        finally:
            self._show("\n")
        for number in range(1, self.task.num_samples):
            self._show(self._begin(number)(self.tokens[number]) + "\n")

    def _add(self, tokens_B: np.ndarray) -> None:
        stop = self.task.stop_token
        if stop is None and self.task.prompt_tokens is None:
            stop = SEPARATOR
        for number, token in enumerate(tokens_B.tolist()):
            self.stopped[number] |= token == stop
            if not self.stopped[number]:
                self.tokens[number].append(token)

    def _begin(self, number: int) -> Decode:
        """Print the header and the prompt of a sample. Return the decoder for its tokens."""
        count = self.task.num_samples
        if count > 1:
            self._show(f"--- sample {number + 1}/{count}\n")
        decode, prompt = self._decoder()
        self._show(decode(prompt))
        return decode

    def _decoder(self) -> tuple[Decode, list[int]]:
        """Return a new decoder, and the tokens of the prompt without the leading separator."""
        if self.task.prompt_tokens is None:
            return _byte_decoder(), self.task.tokens()[1:]
        return _id_decoder(), self.task.tokens()

    def _show(self, text: str) -> None:
        if is_first():
            _print(text)

    def content(self) -> list[dict[str, Any]]:
        """Return the samples as plain JSON values."""
        found = []
        for tokens, stopped in zip(self.tokens, self.stopped, strict=True):
            found.append({"tokens": tokens, "stopped": stopped})
            if self.task.prompt_tokens is None:
                found[-1]["text"] = _byte_decoder()(tokens)
        return found

    def speed(self) -> str:
        """Describe the number of tokens and the time per token. The first two tokens are not timed, because they
        include compilation."""
        text = f"{len(self.times)} tokens in each of {self.task.num_samples} samples"
        if ended := sum(self.stopped):
            text += f" ({ended} ended at the stop token)"
        steady = self.times[1:]
        if len(steady) < 2:
            return text
        return f"{text}, {1000 * (steady[-1] - steady[0]) / (len(steady) - 1):.2f} ms per token"


def _byte_decoder() -> Decode:
    """Return a decoder for UTF-8 bytes. A character is returned with its last byte; invalid bytes become U+FFFD."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    no_byte = b"\xff"  # never valid in UTF-8
    return lambda tokens: decoder.decode(b"".join(bytes([token]) if token < 256 else no_byte for token in tokens))


def _id_decoder() -> Decode:
    """Return a decoder that writes token ids, each followed by a space."""
    return lambda tokens: "".join(f"{token} " for token in tokens)


def _print(text: str) -> None:
    """Print text immediately. Control characters, which could affect the terminal, are replaced."""
    safe = (char if char.isprintable() or char in "\n\t" else "\ufffd" for char in text)
    sys.stdout.write("".join(safe))
    sys.stdout.flush()
