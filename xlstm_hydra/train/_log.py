"""What a run shows and writes: a progress bar, CSV, TensorBoard."""

from __future__ import annotations

import csv
import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from xlstm_hydra.configs import LoggerConfig

log = logging.getLogger("xlstm_hydra")

COLUMNS: tuple[str, ...] = (
    "step",
    "loss",
    "validation_loss",
    "validation_bits_per_byte",
    "lr",
    "grad_norm",
    "param_norm",
    "tokens_per_second",
)
"""Columns of `metrics.csv`. Losses are in nats per token."""


def bits(nats: float) -> float:
    """Nats as bits. For bytes as tokens this is bits per byte."""
    return nats / math.log(2)


class MetricLog:
    """Writes metrics wherever the config says. Use it as a context manager."""

    def __init__(self, config: LoggerConfig, folder: Path, first_step: int, max_steps: int) -> None:
        self._config, self._start, self._max_steps = config, first_step, max_steps
        self._console = Console(stderr=True)
        self._bar: Progress | None = None
        self._task: Any = None
        self._csv = _CsvFile(folder / "metrics.csv") if config.csv else None
        self._tensorboard = _tensorboard_writer(folder / "tensorboard") if config.tensorboard else None

    def __enter__(self) -> MetricLog:
        if self._config.progress and self._console.is_terminal:
            columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.fields[text]}"))
            bar = Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=self._console)
            self._task = bar.add_task("", total=self._max_steps, completed=self._start, text="compiling")
            bar.start()
            self._bar = bar
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._csv is not None:
            self._csv.close()
        if self._tensorboard is not None:
            self._tensorboard.close()

    def step_done(self, step: int) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """One line of metrics, under the names of `COLUMNS`."""
        if self._csv is not None:
            self._csv.write({"step": step, **metrics})
        if self._tensorboard is not None:
            for name, value in metrics.items():
                self._tensorboard.add_scalar(name, value, step)
        text = _text(metrics)
        if self._bar is None:
            log.info("step %d/%d  %s", step, self._max_steps, text)
        elif "loss" in metrics:
            self._bar.update(self._task, text=text)
        else:
            self._bar.console.print(f"step {step}/{self._max_steps}  {text}", highlight=False)


class Stopwatch:
    """Tokens per second since the last look, without the time before the first step was done."""

    def __init__(self) -> None:
        self._tokens, self._since = 0, None

    def add(self, tokens: int) -> None:
        """Count a step's tokens. The first call starts the clock: that step's time was compilation."""
        if self._since is None:
            self._since = time.perf_counter()
        else:
            self._tokens += tokens

    def read(self) -> float | None:
        """Tokens per second, then start anew; None before there is something to tell."""
        if self._since is None or self._tokens == 0:
            return None
        now = time.perf_counter()
        rate = self._tokens / (now - self._since)
        self._tokens, self._since = 0, now
        return rate


class _CsvFile:
    def __init__(self, path: Path) -> None:
        new = not path.exists()
        self._file = path.open("a", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._file, COLUMNS)
        if new:
            self._writer.writeheader()

    def write(self, row: Mapping[str, Any]) -> None:
        self._writer.writerow(row)
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _tensorboard_writer(folder: Path) -> Any:
    from tensorboardX import SummaryWriter

    return SummaryWriter(str(folder))


def _text(metrics: Mapping[str, float]) -> str:
    parts = []
    if "loss" in metrics:
        parts.append(f"loss {metrics['loss']:.4f} ({bits(metrics['loss']):.3f} bits)")
    if "validation_loss" in metrics:
        loss = metrics["validation_loss"]
        parts.append(f"validation loss {loss:.4f} ({bits(loss):.3f} bits per byte)")
    if "tokens_per_second" in metrics:
        parts.append(f"{metrics['tokens_per_second']:,.0f} tokens/s")
    return "  ".join(parts)
