"""The metrics of a run reach its log file, whatever the terminal shows."""

import contextlib
import logging
import os
import sys

import pytest

from xlstm_hydra.configs import LoggerConfig
from xlstm_hydra.train import MetricLog

log = logging.getLogger("xlstm_hydra")

METRICS = {"loss": 1.0, "tokens_per_second": 5.0}


class Terminal:
    """A terminal that records its output."""

    def __init__(self):
        self.master, slave = os.openpty()
        self.stream = os.fdopen(slave, "w", encoding="utf-8")

    def read(self):
        self.stream.flush()
        os.set_blocking(self.master, False)
        parts = []
        with contextlib.suppress(BlockingIOError):  # when all is read
            while True:
                parts.append(os.read(self.master, 1 << 16))
        return b"".join(parts).decode()


@pytest.fixture
def terminal():
    terminal = Terminal()
    yield terminal
    terminal.stream.close()
    os.close(terminal.master)


@pytest.fixture
def log_file(tmp_path, terminal, monkeypatch):
    """The log file of a run that also logs to the terminal."""
    handlers = [logging.StreamHandler(terminal.stream), logging.FileHandler(tmp_path / "run.log")]
    monkeypatch.setattr(logging.getLogger(), "handlers", handlers)
    before = log.level
    log.setLevel(logging.INFO)  # which also forgets what was logged at other levels
    yield tmp_path / "run.log"
    log.setLevel(before)
    handlers[1].close()


@pytest.mark.parametrize("progress", [True, False], ids=["a progress bar", "no progress bar"])
def test_the_log_file_has_the_lines_of_steps_on_a_terminal(progress, terminal, log_file, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal.stream)
    with MetricLog(LoggerConfig(progress=progress, csv=False, tensorboard=False), tmp_path, 0, 20) as metric_log:
        metric_log.write(10, METRICS)
        metric_log.write(20, {"validation_loss": 2.0})
        log.warning("a warning")
    log.info("the end")
    assert log_file.read_text().splitlines() == [
        "step 10/20  loss 1.0000  (1.443 bits)  5 tokens/s",
        "step 20/20  validation loss 2.0000  (2.885 bits/token)",
        "a warning",
        "the end",
    ]
    shown = terminal.read()
    assert ("step 10/20" not in shown) == progress  # the bar shows it
    assert shown.count("step 20/20") == 1 and "a warning" in shown and "the end" in shown


def test_only_the_bar_shrinks_on_a_narrow_terminal(terminal, log_file, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal.stream)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    with MetricLog(LoggerConfig(csv=False, tensorboard=False), tmp_path, 0, 20000) as metric_log:
        metric_log.step_done(10)
        metric_log.write(10, {"loss": 10.5, "tokens_per_second": 123456.0})
    shown = terminal.read()
    assert "   10/20000" in shown and "loss 10.5000  123,456 tokens/s" in shown and "…" not in shown


def test_the_columns_of_steps_are_aligned(log_file, tmp_path):
    with MetricLog(LoggerConfig(progress=False, csv=False, tensorboard=False), tmp_path, 0, 300) as metric_log:
        metric_log.write(1, {"loss": 10.823})
        metric_log.write(10, {"loss": 4.1, "tokens_per_second": 12345.0})
        metric_log.write(100, {"loss": 3.9, "tokens_per_second": 6914.0})
        metric_log.write(100, {"validation_loss": 4.0, "validation_bits_per_byte": 5.771})
    assert log_file.read_text().splitlines() == [
        "step   1/300  loss 10.8230  (15.614 bits)",
        "step  10/300  loss  4.1000   (5.915 bits)  12,345 tokens/s",
        "step 100/300  loss  3.9000   (5.627 bits)   6,914 tokens/s",
        "step 100/300  validation loss 4.0000  (5.771 bits/byte)",
    ]


def test_the_best_validation_loss_includes_earlier_starts_of_the_run(tmp_path):
    config = LoggerConfig(progress=False, tensorboard=False)
    for first, losses in ((0, {2: 3.0, 4: 2.0, 6: 1.0}), (4, {6: 2.5})):  # step 6 is trained again
        with MetricLog(config, tmp_path, first, 6) as metric_log:
            for step, loss in losses.items():
                metric_log.write(step, {"validation_loss": loss})
    assert metric_log.best == (2.0, 4)
