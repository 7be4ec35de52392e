"""Signals that ask for an end: noted at once, whatever the main thread is in, and obeyed when all is saved.

SIGTERM, SIGUSR1 and SIGUSR2 ask for it: clusters send one of them some time before they kill. So does SIGHUP, which a
terminal sends when it is closed. Python runs its handlers between two of its own operations, so not while the main
thread compiles or waits for other processes; but the handler below them writes the signal's number into a pipe at once
(`signal.set_wakeup_fd`), which a thread reads here. What follows:

- Before there is anything to save, the first signal raises `Preempted` in the main thread. Where it does not get there
  within `PATIENCE_SECONDS`, the process ends from the thread.
- As soon as there is something to lose (`Watch.defer`), the first signal is only noted, and training asks for it.
- A second signal ends the process at once, with 128 + its number; a second SIGHUP is ignored.

A handler that a program had for the signal before, such as submitit's, which requeues the job, is called when all is
saved. A signal that the program ignores stays ignored.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import active_children, current_process
from types import FrameType
from typing import NoReturn

log = logging.getLogger("xlstm_hydra")

STATUS = 75
"""Exit status of what was asked to end and is to be started again: EX_TEMPFAIL."""

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
"""Those that ask for it."""

SAME_SECONDS = 0.3
"""Signals that come this close together are one: `timeout` and SLURM send theirs to a process and to its group."""

PATIENCE_SECONDS = 10.0
"""How long the main thread may compile on where it has nothing to save."""


class Preempted(SystemExit):
    """What runs was asked to end, has saved what there was, and is to be started again. Its text says what is saved."""

    def __init__(self, text: str, by_all: bool = False) -> None:
        """Args:
        text: for the user.
        by_all: whether all processes of the run have agreed on it.
        """
        super().__init__(STATUS)
        self.text, self.by_all = text, by_all

    def __str__(self) -> str:
        return self.text

    def __reduce__(self) -> tuple[type[Preempted], tuple[str, bool]]:
        return Preempted, (self.text, self.by_all)


class Watch:
    """What signals have asked for so far. `watched` makes one."""

    def __init__(self) -> None:
        self.request: int | None = None
        """The number of the signal that came first, here or in another process of the run."""
        self.is_interrupted = False
        """Whether SIGINT has come. Python drops what its handler raises where that is inside a callback, such as JAX's
        for the garbage collector."""
        self.before_leaving: Callable[[int, str], None] | None = None
        """Called with the status and the reason before a second signal ends the process."""
        self.are_busy: Callable[[], bool] = lambda: False
        """Whether processes that this one has started still have something to save. They get the signal too."""
        self._is_deferred = self._has_raised = False
        self._handlers: dict[int, Callable[[int, FrameType | None], object]] = {}
        self._first_at = 0.0

    def defer(self) -> None:
        """From here on there is something to lose: requests are noted, and obeyed by who asks for them."""
        self._is_deferred = True

    def refuse_to_begin(self) -> None:
        """Raise where an end was asked for during something that has ended since.

        Raises:
            KeyboardInterrupt: by SIGINT.
            Preempted: by another signal.
        """
        if self.is_interrupted:
            raise KeyboardInterrupt
        if self.request is not None:
            self._raise(self.request)

    def hand_over(self) -> None:
        """Give the signal to the handler that the program had for it before. Who has asked has its answer then."""
        handler = self._handlers.get(self.request) if self.request is not None else None
        if handler is None:
            return
        try:
            handler(self.request or 0, None)
        except SystemExit:
            pass  # it ends, with our status

    def _raise(self, number: int) -> NoReturn:
        self._has_raised = True
        self._pass_on(number)
        raise Preempted(f"{name_of(number)}: ended with nothing new to save")

    def _pass_on(self, number: int) -> None:
        """Let the workers of this process save: who has started them kills them as soon as this thread goes on."""
        workers = active_children()
        for worker in workers:
            if worker.pid is not None:
                os.kill(worker.pid, number)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while workers and self.are_busy() and time.monotonic() < deadline:
            time.sleep(0.1)

    def _handle(self, number: int, _: FrameType | None) -> None:
        """In the main thread, between two operations of Python."""
        self.request = self.request or number
        if not self._is_deferred and not self._has_raised:
            self._raise(number)

    def _note(self, number: int) -> None:
        """In the thread that reads the pipe."""
        now = time.monotonic()
        if not self._first_at:
            self._first_at, self.request = now, self.request or number
            if self._is_deferred:
                text = "%s: the run saves and stops after this step; a second signal stops it immediately"
                log.warning(text, name_of(number))
            threading.Thread(target=self._end_if_stuck, daemon=True).start()
        elif number != signal.SIGHUP and now - self._first_at > SAME_SECONDS:  # shell and terminal each send a SIGHUP
            self._end(128 + number, f"ended at once by a second signal, {name_of(number)}")

    def _end_if_stuck(self) -> None:
        time.sleep(PATIENCE_SECONDS)
        if _active is self and not self._is_deferred and not self._has_raised:
            self.hand_over()
            name = name_of(self.request or 0)
            self._end(STATUS, f"{name}: ended while it was compiling or starting; nothing new is saved")

    def _end(self, status: int, text: str) -> NoReturn:
        try:
            os.write(2, f"xlstm-hydra: {text}\n".encode())
        except OSError:
            pass  # the terminal is gone
        try:
            if self.before_leaving is not None:
                self.before_leaving(status, text)
        finally:
            os._exit(status)


_active: Watch | None = None

_ended_worker: int | None = None
"""The signal that has ended what this process did, where it is a worker, which is given other things to do then."""


def name_of(number: int) -> str:
    """`SIGTERM`."""
    return signal.Signals(number).name


@contextmanager
def waiting_while(are_busy: Callable[[], bool]) -> Iterator[None]:
    """Where something is watched and workers of this process get a signal, wait for what they have to save."""
    if _active is not None:
        _active.are_busy = are_busy
    try:
        yield
    finally:
        if _active is not None:
            _active.are_busy = lambda: False


def refuse_to_begin() -> None:
    """See `Watch.refuse_to_begin`, where something is watched."""
    if _active is not None:
        _active.refuse_to_begin()


def hand_over() -> None:
    """See `Watch.hand_over`, where something is watched."""
    if _active is not None:
        _active.hand_over()


@contextmanager
def watched() -> Iterator[Watch]:
    """Watch for signals while what is inside is done. Inside another `watched`, that one goes on watching.

    Raises:
        Preempted: an end is asked for before there is anything to save.
    """
    global _active, _ended_worker
    if threading.current_thread() is not threading.main_thread():
        log.warning("not in the main thread, so that SIGTERM ends this run without saving")
        yield Watch()
        return
    if _active is not None:
        _active.refuse_to_begin()
        try:
            yield _active
        finally:
            _active._is_deferred = _active.request is not None  # which came too late, and ends what comes next
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
    """Install the handlers and the pipe, and put back what was there before."""
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
    """Note the signals whose numbers come out of the pipe, until a zero does. All go on to the pipe before."""
    while number := os.read(read, 1)[0]:
        if before_fd >= 0:
            os.write(before_fd, bytes([number]))
        if number == signal.SIGINT:
            watch.is_interrupted = True
        if number in numbers:
            watch._note(number)


def _forget_in_child() -> None:
    """A process that was forked from this one has the pipe too, and its signals are not ours."""
    if _active is not None:
        signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_forget_in_child)
