"""Preemption: a signal that asks the process to stop is recorded immediately, and obeyed once everything is saved.

Clusters send SIGTERM, SIGUSR1 or SIGUSR2 some time before they kill a job, and a terminal sends SIGHUP when it is
closed. Python runs signal handlers only between bytecode instructions, so not while the main thread compiles or waits
for other processes. The C-level handler, however, writes the signal number into a pipe immediately
(`signal.set_wakeup_fd`), and a reader thread of this module reads that pipe. Then:

- Before there is anything to save, the first signal raises `Preempted` in the main thread. If the main thread does not
  react within `PATIENCE_SECONDS`, another thread ends the process.
- Once there is something to save (`Watch.defer`), the first signal is only recorded, and training checks for it after
  each step.
- A second signal ends the process immediately, with exit status 128 + signal number. A second SIGHUP is ignored.

If the program already had a handler for the signal, that handler is called after saving: submitit's handler, for
example, requeues the job. A signal that the program already ignored stays ignored.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import active_children, current_process
from types import FrameType
from typing import NoReturn

from xlstm_hydra._logging import log
from xlstm_hydra._status import erasure

STATUS = 75
"""Exit status of a preempted run, which should be started again (EX_TEMPFAIL)."""

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
"""The signals that ask the process to stop."""

SAME_SECONDS = 0.3
"""Signals within this many seconds of the first signal count as the same signal, because `timeout` and SLURM signal
both a process and its process group."""

PATIENCE_SECONDS = 10.0
"""Timeout in seconds for the main thread to react to a signal when there is nothing to save. Also the timeout for
worker processes to save."""


class Preempted(SystemExit):
    """The run was asked to stop, has saved its state, and should be started again. The text lists what was saved."""

    def __init__(self, text: str, by_all: bool = False) -> None:
        """Args:
        text: message for the user.
        by_all: True if all processes of the run have agreed to stop.
        """
        super().__init__(STATUS)
        self.text, self.by_all = text, by_all

    def __str__(self) -> str:
        return self.text

    def __reduce__(self) -> tuple[type[Preempted], tuple[str, bool]]:
        return Preempted, (self.text, self.by_all)


class Watch:
    """Signals received so far. Instances are created by `watched`."""

    def __init__(self) -> None:
        self.request: int | None = None
        """Number of the first signal received, by this or another process of the run. None: no signal yet."""
        self.is_interrupted = False
        """True once SIGINT was received. Needed because Python drops a KeyboardInterrupt that is raised inside a
        callback, such as JAX's garbage-collector callback."""
        self.before_leaving: Callable[[int, str], None] | None = None
        """Called with the exit status and the reason before `os._exit` ends the process."""
        self.are_busy: Callable[[], bool] = lambda: False
        """Function that returns True while the worker processes, which receive the signal too, are still saving."""
        self._is_deferred = self._has_raised = False
        self._handlers: dict[int, Callable[[int, FrameType | None], object]] = {}
        self._first_at = 0.0

    def defer(self) -> None:
        """From now on, only record signals, because there is something to save. The caller must check `request`."""
        self._is_deferred = True

    def refuse_to_begin(self) -> None:
        """Raise if a signal arrived during earlier work, so that new work does not start.

        Raises:
            KeyboardInterrupt: the signal was SIGINT.
            Preempted: it was another signal.
        """
        if self.is_interrupted:
            raise KeyboardInterrupt
        if self.request is not None:
            self._raise(self.request)

    def hand_over(self) -> None:
        """Call the handler that the program had installed for the signal, now that everything is saved."""
        handler = self._handlers.get(self.request) if self.request is not None else None
        if handler is None:
            return
        try:
            handler(self.request or 0, None)
        except SystemExit:
            pass  # the process exits anyway, with our status

    def _raise(self, number: int) -> NoReturn:
        self._has_raised = True
        self._pass_on(number)
        raise Preempted(f"{name_of(number)}: stopped; there was nothing new to save")

    def _pass_on(self, number: int) -> None:
        """Forward a signal to the worker processes and wait while they save. The workers are killed as soon as this
        thread continues."""
        workers = active_children()
        for worker in workers:
            if worker.pid is not None:
                os.kill(worker.pid, number)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while workers and self.are_busy() and time.monotonic() < deadline:
            time.sleep(0.1)

    def _handle(self, number: int, _: FrameType | None) -> None:
        """Handle a signal. Python calls this in the main thread, between bytecode instructions."""
        self.request = self.request or number
        if not self._is_deferred and not self._has_raised:
            self._raise(number)

    def _note(self, number: int) -> None:
        """Record a signal. The reader thread calls this."""
        now = time.monotonic()
        if not self._first_at:
            self._first_at, self.request = now, self.request or number
            if self._is_deferred:
                text = "%s: the run saves and stops after this step; a second signal stops it immediately"
                log.warning(text, name_of(number))
            threading.Thread(target=self._end_if_stuck, daemon=True).start()
        elif number != signal.SIGHUP and now - self._first_at > SAME_SECONDS:  # both shell and terminal send SIGHUP
            self._end(128 + number, f"stopped immediately by a second signal, {name_of(number)}")

    def _end_if_stuck(self) -> None:
        time.sleep(PATIENCE_SECONDS)
        if _active is self and not self._is_deferred and not self._has_raised:
            self.hand_over()
            name = name_of(self.request or 0)
            self._end(STATUS, f"{name}: stopped while compiling or starting; nothing new was saved")

    def _end(self, status: int, text: str) -> NoReturn:
        try:
            os.write(2, f"{erasure()}xlstm-hydra: {text}\n".encode())
        except OSError:
            pass  # the terminal is closed
        try:
            if self.before_leaving is not None:
                self.before_leaving(status, text)
        finally:
            os._exit(status)


_active: Watch | None = None

_ended_worker: int | None = None
"""Number of the signal that ended the last job of this worker process. It also ends every later job. None: no signal,
or not a worker process."""


def name_of(number: int) -> str:
    """Return the name of a signal, such as `SIGTERM`."""
    return signal.Signals(number).name


@contextmanager
def waiting_while(are_busy: Callable[[], bool]) -> Iterator[None]:
    """If a signal arrives inside the `with` block, wait until the worker processes have finished saving. No effect
    outside `watched`.

    Args:
        are_busy: returns True while worker processes are still saving.
    """
    if _active is not None:
        _active.are_busy = are_busy
    try:
        yield
    finally:
        if _active is not None:
            _active.are_busy = lambda: False


def refuse_to_begin() -> None:
    """Call `Watch.refuse_to_begin` inside `watched`; do nothing outside."""
    if _active is not None:
        _active.refuse_to_begin()


def hand_over() -> None:
    """Call `Watch.hand_over` inside `watched`; do nothing outside."""
    if _active is not None:
        _active.hand_over()


@contextmanager
def watched() -> Iterator[Watch]:
    """Watch for signals inside the `with` block. A nested `watched` shares the outer watch.

    Raises:
        Preempted: a signal arrives before there is anything to save.
    """
    global _active, _ended_worker
    if threading.current_thread() is not threading.main_thread():
        log.warning("this run is not in the main thread: SIGTERM will end it without saving")
        yield Watch()
        return
    if _active is not None:
        _active.refuse_to_begin()
        try:
            yield _active
        finally:
            # A signal that came too late to stop this work stops the next.
            _active._is_deferred = _active.request is not None
        return
    watch = Watch()
    watch.request = _ended_worker
    watch.refuse_to_begin()
    _active = watch
    try:
        with _noting(watch):
            yield watch
    except SystemExit as stop:
        if stop.code == STATUS:
            watch.hand_over()
            _ended_worker = watch.request if current_process().name != "MainProcess" else None
        raise
    finally:
        _active = None


@contextmanager
def _noting(watch: Watch) -> Iterator[None]:
    """Install the signal handlers and the pipe, and restore the previous handlers and pipe at the end."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    watch._handlers = {number: handler for number, handler in before.items() if callable(handler)}
    read, write = os.pipe()
    os.set_blocking(write, False)
    before_fd = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    reader = threading.Thread(target=_read, args=[watch, read, before_fd, set(before)], daemon=True)
    reader.start()
    for number in before:
        signal.signal(number, watch._handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(before_fd)
        os.write(write, b"\0")
        reader.join()
        os.close(read)
        os.close(write)


def _read(watch: Watch, read: int, before_fd: int, numbers: set[int]) -> None:
    """Record the signals whose numbers arrive in the pipe, until a zero arrives. Forward each number to the previous
    pipe."""
    while number := os.read(read, 1)[0]:
        if before_fd >= 0:
            os.write(before_fd, bytes([number]))
        if number == signal.SIGINT:
            watch.is_interrupted = True
        if number in numbers:
            watch._note(number)


def _forget_in_child() -> None:
    """Detach a forked child from the inherited pipe, so that its signals do not reach the parent."""
    if _active is not None:
        signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_forget_in_child)
