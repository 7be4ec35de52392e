"""What a run shows and writes: a progress bar, CSV, TensorBoard."""

from __future__ import annotations

import csv
import logging
import math
import statistics
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from xlstm_hydra._logging import log
from xlstm_hydra.configs import LoggerConfig
from xlstm_hydra.runs import METRICS_FILE, MetricsFile, open_new, read_metrics_file

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


_FLUSH_SECONDS = 120.0
"""How often metrics for TensorBoard are forced onto the disk."""

_HAS_BAR = "is_in_bar"
"""Attribute of a log record: true if the progress bar shows the same."""


def _is_not_in_bar(record: logging.LogRecord) -> bool:
    return not getattr(record, _HAS_BAR, False)


def _is_terminal(handler: logging.Handler) -> bool:
    stream = getattr(handler, "stream", None)
    return stream is not None and stream.isatty()


def bits(nats: float) -> float:
    """Nats as bits. For bytes as tokens this is bits per byte."""
    return nats / math.log(2)


class MetricLog:
    """Writes metrics wherever the config says. Use it as a context manager."""

    def __init__(self, config: LoggerConfig, folder: Path, first_step: int, max_steps: int) -> None:
        self._config, self._start, self._max_steps = config, first_step, max_steps
        self._console = Console(stderr=True)
        self._bar: Progress | None = None
        self._terminals: list[logging.Handler] = []
        self._task: Any = None
        self._csv = _CsvFile(folder / METRICS_FILE, first_step) if config.csv else None
        self._tensorboard = _EventFile(folder / "tensorboard", first_step) if config.tensorboard else None

    def __enter__(self) -> MetricLog:
        if self._config.progress and self._console.is_terminal:
            columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.fields[text]}"))
            bar = Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=self._console)
            self._task = bar.add_task("", total=self._max_steps, completed=self._start, text="compiling")
            bar.start()
            self._bar = bar
            self._terminals = [handler for handler in logging.getLogger().handlers if _is_terminal(handler)]
            for handler in self._terminals:
                handler.addFilter(_is_not_in_bar)
        return self

    def __exit__(self, *_: object) -> None:
        with ExitStack() as stack:  # each is closed, also if another one fails
            for opened in filter(None, (self._tensorboard, self._csv)):
                stack.callback(opened.close)
            for handler in self._terminals:
                stack.callback(handler.removeFilter, _is_not_in_bar)
            if self._bar is not None:
                stack.callback(self._bar.stop)

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
        log.info("step %d/%d  %s", step, self._max_steps, text, extra={_HAS_BAR: self._bar is not None})
        if self._bar is not None and "loss" in metrics:
            self._bar.update(self._task, text=text)
        elif self._bar is not None:
            self._bar.console.print(f"step {step}/{self._max_steps}  {text}", highlight=False)


class Stopwatch:
    """Tokens per second of training alone. `start` it whenever something else has taken time."""

    def __init__(self) -> None:
        self._tokens, self._steps, self._since = 0, 0, None
        self._seconds_per_step: list[float] = []

    def start(self) -> None:
        """Forget what was counted and begin now."""
        self._tokens, self._steps, self._since = 0, 0, time.perf_counter()

    def add(self, tokens: int) -> None:
        """Count a step and its tokens."""
        self._tokens, self._steps = self._tokens + tokens, self._steps + 1

    def read(self) -> float | None:
        """Tokens per second since the start, then start anew; None before the first start."""
        if self._since is None:
            return None
        seconds = time.perf_counter() - self._since
        rate = self._tokens / seconds
        self._seconds_per_step.append(seconds / self._steps)
        self.start()
        return rate

    @property
    def seconds_per_step(self) -> float | None:
        """The median over all that was read; None if nothing was."""
        return statistics.median(self._seconds_per_step) if self._seconds_per_step else None


class _CsvFile:
    """Rows of an earlier run in the same folder stay up to the step that this one continues from."""

    def __init__(self, path: Path, first_step: int) -> None:
        found = read_metrics_file(path)
        _report_damage(path, found)
        kept = [row for row in found.rows if int(row["step"]) <= first_step]
        columns = [*COLUMNS, *(name for name in found.columns if name not in COLUMNS)]
        fresh = path.with_suffix(".new")
        self._file = open_new(fresh, newline="")
        self._writer = csv.DictWriter(self._file, columns)
        self._writer.writeheader()
        self._writer.writerows(kept)
        self._file.flush()
        fresh.replace(path)

    def write(self, row: Mapping[str, Any]) -> None:
        self._writer.writerow(row)
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class _EventFile:
    """Metrics for TensorBoard, written by the thread that trains, which notices a full disk: tensorboardX's own thread
    would end there, and the run would wait for it for ever."""

    def __init__(self, folder: Path, first_step: int) -> None:
        """Open a new file. TensorBoard drops what older files have of the steps after `first_step`."""
        from tensorboardX.event_file_writer import EventsWriter  # 0.3 s, not for runs without it
        from tensorboardX.proto import event_pb2
        from tensorboardX.summary import scalar

        folder.mkdir(parents=True, exist_ok=True)
        self._writer, self._flushed, self._scalar = EventsWriter(str(folder / "events")), -_FLUSH_SECONDS, scalar
        self._proto: Any = event_pb2  # its classes are made when it is imported, where pyright does not see them
        self._write(first_step + 1, session_log=self._proto.SessionLog(status=self._proto.SessionLog.START))

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Write one value of a step."""
        self._write(step, summary=self._scalar(name, value))
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self._writer.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()

    def _write(self, step: int, **what: Any) -> None:
        self._writer.write_event(self._proto.Event(step=step, wall_time=time.time(), **what))


def _report_damage(path: Path, found: MetricsFile) -> None:
    """Name the lines of an earlier run that are left out. The file as it was is kept beside the new one."""
    if found.cut:
        log.info("%s, %s; it is left out", path, found.cut)
    for text in found.reports():
        log.warning("%s, %s; it is left out", path, text)
    if found.faults:
        aside = path.with_name(f"{path.name}.damaged")
        path.replace(aside)
        log.warning("the metrics as they were are kept in %s", aside)


def _text(metrics: Mapping[str, float]) -> str:
    parts = []
    if "loss" in metrics:
        parts.append(f"loss {metrics['loss']:.4f} ({bits(metrics['loss']):.3f} bits)")
    if "validation_loss" in metrics:
        loss = metrics["validation_loss"]
        unit = "byte" if "validation_bits_per_byte" in metrics else "token"
        parts.append(f"validation loss {loss:.4f} ({bits(loss):.3f} bits per {unit})")
    if "tokens_per_second" in metrics:
        parts.append(f"{metrics['tokens_per_second']:,.0f} tokens/s")
    return "  ".join(parts)
