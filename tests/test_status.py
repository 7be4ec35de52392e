"""The status line of long work, and the facts of a run on a terminal and in a pipe."""

import fcntl
import io
import logging
import os
import pty
import re
import struct
import termios
import threading
import time
from contextlib import suppress
from select import select
from types import SimpleNamespace

import pytest

from xlstm_hydra import _status
from xlstm_hydra._logging import log, log_fact
from xlstm_hydra._status import Console, drawn_by, erasure, status

REMOVE = "\r\x1b[2K"


class Terminal:
    """A terminal of 60 columns that records its output."""

    def __init__(self):
        self.main, secondary = pty.openpty()
        fcntl.ioctl(secondary, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 60, 0, 0))
        self.stream = os.fdopen(secondary, "w", encoding="utf-8")

    def read(self):
        self.stream.flush()
        parts = []
        while select([self.main], [], [], 0.1)[0]:  # the kernel passes the text on a little later
            parts.append(os.read(self.main, 1 << 16))
        return b"".join(parts).decode().replace("\r\n", "\n")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Statuses are shown after 50 ms, and their end is logged after 300 ms."""
    monkeypatch.setattr(_status, "PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(_status, "LONG_SECONDS", 0.3)


def logs_to(stream, monkeypatch):
    """Log to a stream, as a run does, and nowhere else."""
    handler = Console(stream)
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    monkeypatch.setattr(log, "level", logging.INFO)
    log.manager._clear_cache()


@pytest.fixture
def terminal(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(_status, "sys", SimpleNamespace(stderr=terminal.stream))
    monkeypatch.setenv("TERM", "xterm")
    logs_to(terminal.stream, monkeypatch)
    yield terminal
    with suppress(OSError):  # one test closes the other end
        terminal.stream.close()
    os.close(terminal.main)


@pytest.fixture
def pipe(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(_status, "sys", SimpleNamespace(stderr=stream))
    logs_to(stream, monkeypatch)
    return stream


def no_thread():
    return not any(thread.name == "status" for thread in threading.enumerate())


def test_short_work_has_no_status(terminal):
    with status("compiling"):
        pass
    assert terminal.read() == "" and no_thread()


def test_the_status_line_is_removed_at_the_end(terminal):
    with status("compiling the training step"):
        time.sleep(0.4)
        shown = terminal.read()
    assert shown == f"{REMOVE}compiling the training step  0 s\r"
    assert terminal.read() == REMOVE and no_thread()


def test_a_line_of_the_log_is_not_mixed_with_the_status_line(terminal):
    with status("compiling"):
        time.sleep(0.2)
        log.info("a line")
    assert f"\r{REMOVE}a line\n" in terminal.read()


def test_a_long_status_is_cut_to_the_width_of_the_terminal(terminal):
    with status("x" * 100):
        time.sleep(0.2)
    assert f"{REMOVE}{'x' * 59}\r" in terminal.read()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_removes_the_status_line(error, terminal):
    with pytest.raises(error), status("compiling"):
        time.sleep(0.2)
        raise error
    assert terminal.read().endswith(REMOVE) and no_thread() and erasure() == ""


def test_a_process_that_ends_at_once_can_remove_the_status_line(terminal):
    with status("compiling"):
        time.sleep(0.2)
        assert erasure() == REMOVE


def test_the_inner_status_is_shown_until_it_ends(terminal, monkeypatch):
    with status("outer"):
        time.sleep(0.2)
        with status("inner"):
            time.sleep(0.2)
    shown = re.findall(r"outer|inner", terminal.read())
    assert shown == ["outer", "inner"]


def test_a_progress_bar_shows_the_status(terminal):
    shown = []
    with drawn_by(shown.append), status("validating"):
        time.sleep(0.2)
    assert shown == ["validating  0 s", ""] and terminal.read() == ""


def test_a_closed_terminal_does_not_end_the_work(terminal):
    with status("compiling"):
        os.close(terminal.main)
        time.sleep(0.2)
    terminal.main = os.open(os.devnull, os.O_RDONLY)
    assert no_thread()


@pytest.mark.parametrize("is_dumb", [False, True], ids=["pipe", "dumb terminal"])
def test_without_a_status_line_long_work_is_two_plain_lines(is_dumb, request, monkeypatch):
    output = request.getfixturevalue("terminal" if is_dumb else "pipe")
    monkeypatch.setenv("TERM", "dumb")
    with status("compiling"):
        time.sleep(0.4)
    text = output.read() if is_dumb else output.getvalue()
    assert text == "compiling ...\ncompiling: done after 0 s\n"


def test_a_command_whose_output_is_read_by_programs_prints_no_status_in_a_pipe(pipe):
    with status("planning", in_log=False):
        time.sleep(0.4)
    assert pipe.getvalue() == ""


def test_a_pipe_beside_a_terminal_gets_the_plain_lines(terminal, monkeypatch):
    stream = io.StringIO()
    logs_to(stream, monkeypatch)
    with status("compiling"):
        time.sleep(0.2)
    assert stream.getvalue() == "compiling ...\n" and REMOVE in terminal.read()


def test_a_process_that_logs_only_warnings_shows_no_status(terminal, monkeypatch):
    monkeypatch.setattr(log, "level", logging.WARNING)
    log.manager._clear_cache()
    with status("compiling"):
        time.sleep(0.2)
        assert no_thread()
    assert terminal.read() == ""


# ---- facts

LONG = "FSDP shards all parameters of the blocks, and tp shards the rest of the model"


@pytest.mark.parametrize("colours", [{}, {"NO_COLOR": "1"}], ids=["colours", "NO_COLOR"])
def test_facts_are_wrapped_at_words_on_a_terminal(colours, terminal, monkeypatch):
    for name, value in colours.items():
        monkeypatch.setenv(name, value)
    log_fact("mesh", LONG)
    log_fact("", "/a/path/" + "x" * 60)
    first, second, path = terminal.read().splitlines()
    assert first == "mesh     FSDP shards all parameters of the blocks, and tp"
    assert second == "         shards the rest of the model"
    assert path.strip() == "/a/path/" + "x" * 60


def test_facts_are_whole_lines_in_a_pipe(pipe):
    log_fact("mesh", LONG)
    assert pipe.getvalue() == f"mesh     {LONG}\n"
