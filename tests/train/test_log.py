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
        "step 10/20  loss 1.0000 (1.443 bits)  5 tokens/s",
        "step 20/20  validation loss 2.0000 (2.885 bits per token)",
        "a warning",
        "the end",
    ]
    shown = terminal.read()
    assert ("step 10/20" not in shown) == progress  # the bar shows it
    assert shown.count("step 20/20") == 1 and "a warning" in shown and "the end" in shown
