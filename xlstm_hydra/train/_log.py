"""Metrics of a run: the progress bar, the CSV file and TensorBoard."""

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
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Column

from xlstm_hydra._logging import log
from xlstm_hydra._status import drawn_by
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
"""Minimum time between two flushes of the TensorBoard file, in seconds."""

_HAS_BAR = "is_in_bar"
"""Attribute of log records: True if the progress bar shows the same text."""


def _is_not_in_bar(record: logging.LogRecord) -> bool:
    return not getattr(record, _HAS_BAR, False)


def _is_terminal(handler: logging.Handler) -> bool:
    stream = getattr(handler, "stream", None)
    return stream is not None and stream.isatty()


def bits(nats: float) -> float:
    """Convert nats to bits (`nats / ln 2`). If tokens are bytes, nats per token become bits per byte."""
    return nats / math.log(2)


class MetricLog:
    """Context manager that writes the metrics of a run to the outputs enabled in the config: the progress bar,
    `metrics.csv` and TensorBoard.

    Args:
        config: the logger options.
        folder: the run folder.
        first_step: number of steps completed before this start of the run.
        max_steps: number of the last step.

    Raises:
        OSError: a file cannot be written.
    """

    best: tuple[float, int] | None = None
    """Lowest validation loss and its step, including the validation losses that earlier starts of the run wrote to
    `metrics.csv`."""

    def __init__(self, config: LoggerConfig, folder: Path, first_step: int, max_steps: int) -> None:
        self._config, self._start, self._max_steps = config, first_step, max_steps
        self._console = Console(stderr=True)
        self._bar: Progress | None = None
        self._terminals: list[logging.Handler] = []
        self._task: Any = None
        self._text = ""
        self._csv = _CsvFile(folder / METRICS_FILE, first_step) if config.csv else None
        self._tensorboard = _EventFile(folder / "tensorboard", first_step) if config.tensorboard else None
        self._columns = _Columns(max_steps)
        self._drawing = ExitStack()
        if self._csv is not None:
            self.best = min(self._csv.validation_losses, default=None)

    def __enter__(self) -> MetricLog:
        if self._config.progress and self._console.is_terminal:
            bar = Progress(*_bar_columns(), console=self._console)
            self._task = bar.add_task("", total=self._max_steps, completed=self._start, text=self._text)
            bar.start()
            self._bar = bar
            self._terminals = [handler for handler in logging.getLogger().handlers if _is_terminal(handler)]
            for handler in self._terminals:
                handler.addFilter(_is_not_in_bar)
            self._drawing.enter_context(drawn_by(self._show_status))
        return self

    def __exit__(self, *_: object) -> None:
        with ExitStack() as stack:  # closes every output, even if closing one fails
            stack.callback(self._drawing.close)
            for opened in filter(None, (self._tensorboard, self._csv)):
                stack.callback(opened.close)
            for handler in self._terminals:
                stack.callback(handler.removeFilter, _is_not_in_bar)
            if self._bar is not None:
                stack.callback(self._bar.stop)

    def step_done(self, step: int) -> None:
        """Advance the progress bar to a completed step."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of a step to all outputs. `COLUMNS` lists the names of the metrics."""
        if self._csv is not None:
            self._csv.write({"step": step, **metrics})
        if self._tensorboard is not None:
            for name, value in metrics.items():
                self._tensorboard.add_scalar(name, value, step)
        if "validation_loss" in metrics:
            self.best = min(filter(None, (self.best, (metrics["validation_loss"], step))))
        text = self._columns.text(metrics)
        line = f"{self._columns.step(step)}  {text}"
        log.info("%s", line, extra={_HAS_BAR: self._bar is not None})
        if self._bar is not None and "loss" in metrics:
            self._text = self._columns.short_text(metrics)
            self._bar.update(self._task, text=self._text)
        elif self._bar is not None:
            self._bar.console.print(line, highlight=False, soft_wrap=True)

    def _show_status(self, text: str) -> None:
        """Show a status in the progress bar. If the text is empty, show the last metrics again."""
        if self._bar is not None:
            self._bar.update(self._task, text=text or self._text)


class Stopwatch:
    """Measures the training throughput. Call `start` after work that is not training, such as validation."""

    def __init__(self) -> None:
        self._tokens, self._steps, self._since = 0, 0, None
        self._seconds_per_step: list[float] = []

    def start(self) -> None:
        """Reset the counts and start measuring."""
        self._tokens, self._steps, self._since = 0, 0, time.perf_counter()

    def add(self, tokens: int) -> None:
        """Count one step with this number of tokens."""
        self._tokens, self._steps = self._tokens + tokens, self._steps + 1

    def read(self) -> float | None:
        """Return the tokens per second since the last `start`, and start again. Return None if `start` was never
        called."""
        if self._since is None:
            return None
        seconds = time.perf_counter() - self._since
        rate = self._tokens / seconds
        self._seconds_per_step.append(seconds / self._steps)
        self.start()
        return rate

    @property
    def seconds_per_step(self) -> float | None:
        """Median time per step over all reads, in seconds; None before the first read."""
        return statistics.median(self._seconds_per_step) if self._seconds_per_step else None


class _CsvFile:
    """Writer of `metrics.csv`. Rows of an earlier run in the same folder are kept up to the step that this run
    continues from."""

    def __init__(self, path: Path, first_step: int) -> None:
        found = read_metrics_file(path)
        _report_damage(path, found)
        kept = [row for row in found.rows if int(row["step"]) <= first_step]
        losses = [(float(row.get("validation_loss", "nan")), int(row["step"])) for row in kept]
        self.validation_losses = [(loss, step) for loss, step in losses if math.isfinite(loss)]
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
    """Writer of a TensorBoard file. It writes in the training thread, so that a full disk raises an error there. The
    separate writer thread of tensorboardX would die instead, and the run would wait for that thread forever."""

    def __init__(self, folder: Path, first_step: int) -> None:
        """Open a new file, which makes TensorBoard ignore the steps after `first_step` in older files."""
        from tensorboardX.event_file_writer import EventsWriter  # takes 0.3 s: only imported if used
        from tensorboardX.proto import event_pb2
        from tensorboardX.summary import scalar

        folder.mkdir(parents=True, exist_ok=True)
        self._writer, self._flushed, self._scalar = EventsWriter(str(folder / "events")), -_FLUSH_SECONDS, scalar
        self._proto: Any = event_pb2  # its classes are created on import, so pyright does not see them
        self._write(first_step + 1, session_log=self._proto.SessionLog(status=self._proto.SessionLog.START))

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Write one metric of a step."""
        self._write(step, summary=self._scalar(name, value))
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self._writer.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Flush and close the file."""
        self._writer.close()

    def _write(self, step: int, **what: Any) -> None:
        self._writer.write_event(self._proto.Event(step=step, wall_time=time.time(), **what))


def _report_damage(path: Path, found: MetricsFile) -> None:
    """Log the damaged lines that an earlier run left in `metrics.csv`, which are omitted. The damaged file is kept
    under another name, unless the only damage is a truncated last line."""
    if found.cut:
        log.info("%s, %s; the line is omitted", path, found.cut)
    for text in found.reports():
        log.warning("%s, %s; the line is omitted", path, text)
    if found.faults:
        aside = path.with_name(f"{path.name}.damaged")
        path.replace(aside)
        log.warning("the original metrics file was moved to %s", aside)


def _bar_columns() -> tuple[ProgressColumn, ...]:
    """Return the columns of the progress bar. On a narrow terminal, the bar itself shrinks first, and then the text."""
    count = MofNCompleteColumn(table_column=Column(no_wrap=True))
    left = TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True))
    return TextColumn("step"), count, BarColumn(), TextColumn("{task.fields[text]}"), TextColumn("left"), left


class _Columns:
    """Formats metrics in aligned columns: each number is padded to the widest earlier number in its column."""

    def __init__(self, max_steps: int) -> None:
        self._max_steps = max_steps
        self._widths: dict[str, int] = {}

    def step(self, step: int) -> str:
        """Return the step as text, such as `step  10/300`."""
        return f"step {step:>{len(str(self._max_steps))}}/{self._max_steps}"

    def text(self, metrics: Mapping[str, float]) -> str:
        """Return the loss, the validation loss and the throughput as text. Values that are not in the metrics are
        omitted."""
        parts = []
        if "loss" in metrics:
            parts.append(self._losses("", metrics["loss"], "bits"))
        if "validation_loss" in metrics:
            unit = "byte" if "validation_bits_per_byte" in metrics else "token"
            parts.append(self._losses("validation ", metrics["validation_loss"], f"bits/{unit}"))
        if "tokens_per_second" in metrics:
            rate = f"{metrics['tokens_per_second']:,.0f}"
            parts.append(f"{self._wide('rate', rate)} tokens/s")
        return "  ".join(parts)

    def short_text(self, metrics: Mapping[str, float]) -> str:
        """Return the loss and the throughput as text, about half as wide as `text`."""
        rate = f"  {metrics['tokens_per_second']:,.0f} tokens/s" if "tokens_per_second" in metrics else ""
        return f"loss {metrics['loss']:.4f}{rate}"

    def _losses(self, name: str, loss: float, unit: str) -> str:
        return f"{name}loss {self._wide(name, f'{loss:.4f}')}  {self._wide(unit, f'({bits(loss):.3f} {unit})')}"

    def _wide(self, column: str, text: str) -> str:
        self._widths[column] = max(self._widths.get(column, 0), len(text))
        return text.rjust(self._widths[column])
