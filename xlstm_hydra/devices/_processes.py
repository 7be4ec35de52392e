"""Runs with several processes: the processes connect, agree on the run folder, and exit together."""

from __future__ import annotations

import itertools
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import FrameType
from typing import NamedTuple, NoReturn

import jax

from xlstm_hydra._logging import log
from xlstm_hydra.configs import DistributedConfig, ProcessInfo, idle_tasks
from xlstm_hydra.errors import message_of, reason, text_of
from xlstm_hydra.preemption import SIGNALS, STATUS, Preempted, hand_over
from xlstm_hydra.problems import ConfigError, Problem

from . import runtime

FAILURE, FOLDER, END = "xlstm_hydra/failure", "xlstm_hydra/folder", "xlstm_hydra/end"
"""Keys in the key-value store of process 0."""

POLL_SECONDS = 1.0
"""Interval in seconds between checks for a failure of another process."""

SHARED_SECONDS = 15.0
"""Timeout in seconds for a folder created by process 0 to become visible to the other processes."""

AGREE_SECONDS = 60.0
"""Timeout in seconds when waiting for a value from another process."""

_numbers = itertools.count()
"""Counter of the operations that all processes perform in the same order. It makes the keys in the store unique."""

_inside: ContextVar[bool] = ContextVar("inside", default=False)
"""True inside the context manager `together`."""


class Terminated(SystemExit):
    """Raised on SIGTERM, unless `xlstm_hydra.preemption.watched` handles the signal."""


class Failure(NamedTuple):
    """The reason why process number `process` exits, as published to the other processes."""

    process: int
    status: int
    """Exit status."""
    text: str


def join(config: DistributedConfig) -> None:
    """Connect to the other processes of the run, if there are any. Must be called before JAX initializes the devices.

    The process exits with status 1 if not all processes connect within `initialization_timeout_seconds`.

    Raises:
        ConfigError: process 0 cannot open the port of `coordinator_address`.
    """
    process = config.process_info(os.environ)
    if config.name == "auto" and (idle := idle_tasks(os.environ)):
        text = "SLURM allocated %d more tasks to this job, but they are idle: start the run with srun to use them"
        log.warning(text, idle)
    if process is None or jax.distributed.is_initialized():
        return
    if process.process_id > 0:
        log.setLevel(logging.WARNING)
    if process.process_id == 0:
        _refuse_taken_port(process.coordinator_address)
    patience = config.initialization_timeout_seconds
    timer = threading.Timer(patience, _give_up, [process, patience])
    timer.daemon = True
    timer.start()
    runtime.leave_sigterm_alone()
    try:
        jax.distributed.initialize(
            process.coordinator_address,
            process.num_processes,
            process.process_id,
            local_device_ids=process.local_device_ids,
            cluster_detection_method="deactivate",  # cluster detection would give each process one GPU
            initialization_timeout=patience + 30,  # longer than the timer, because JAX aborts without a useful message
            heartbeat_timeout_seconds=config.heartbeat_timeout_seconds,
            shutdown_timeout_seconds=patience,
        )
    finally:
        timer.cancel()


def _refuse_taken_port(address: str) -> None:
    """Raise a `ConfigError` if the port is in use, because JAX would crash with a segmentation fault."""
    port = int(address.rpartition(":")[2])
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    try:
        socket.create_server(("", port), family=family, dualstack_ipv6=dual).close()
    except OSError as error:
        text = f"process 0 cannot open the port: {error.strerror}"
        fix = "Choose another port. If the port was derived from the SLURM job, use distributed=explicit."
        raise ConfigError([Problem({"distributed.coordinator_address": address}, text, fix)]) from None


def _give_up(process: ProcessInfo, seconds: int) -> NoReturn:
    text = (
        f"not all of the {process.num_processes} processes connected to {process.coordinator_address} within {seconds} "
        "s (distributed.initialization_timeout_seconds). Check that all processes were started with the same "
        "address and number of processes, that the port is free on the host of process 0, and that the "
        "other hosts can reach the port."
    )
    print(f"xlstm-hydra: process {process.process_id}: {text}", file=sys.stderr)
    _leave(1)


def next_key(name: str) -> str:
    """Return a unique key in the store for an operation of all processes. All processes must call this function in the
    same order, so that their keys are equal."""
    return f"{name}/{next(_numbers)}"


def is_distributed() -> bool:
    """True if the run has several processes. Does not initialize the devices."""
    return runtime.num_processes() > 1


def is_first() -> bool:
    """True in process 0, which writes files and logs. Does not initialize the devices."""
    return runtime.process_id() == 0


def broadcast_text(key: str, text: str) -> str:
    """Return the text that process 0 passes to this function, which all processes must call.

    Raises:
        RuntimeError: process 0 has not published the text within `AGREE_SECONDS`.
    """
    if not is_distributed():
        return text
    key = next_key(key)
    if runtime.process_id() == 0:
        runtime.publish(key, text)
        return text
    return runtime.wait_for(key, AGREE_SECONDS)


def gather_texts(key: str, text: str, seconds: float = AGREE_SECONDS) -> list[str]:
    """Return the texts that the processes pass to this function, ordered by process. All processes must call this.

    Raises:
        RuntimeError: a process has not published its text within `seconds`.
    """
    if not is_distributed():
        return [text]
    key = next_key(key)
    runtime.publish(f"{key}/{runtime.process_id()}", text)
    return [runtime.wait_for(f"{key}/{number}", seconds) for number in range(runtime.num_processes())]


def agree_on_folder(folder: Path) -> Path:
    """Return the run folder of process 0. With several processes, all processes must call this function, and process 0
    creates the folder.

    Raises:
        FileNotFoundError: the folder is not visible to this process within `SHARED_SECONDS`.
    """
    if not is_distributed():
        return folder
    if runtime.process_id() == 0:
        folder = folder.absolute()
        folder.mkdir(parents=True, exist_ok=True)
    folder = Path(broadcast_text(FOLDER, str(folder)))
    deadline = time.monotonic() + SHARED_SECONDS
    while not folder.is_dir():
        if time.monotonic() > deadline:
            text = f"the run folder {folder} of process 0 is not visible to process {runtime.process_id()}"
            raise FileNotFoundError(f"{text}; hydra.run.dir must be on a file system that all hosts share")
        time.sleep(0.2)
    return folder


@contextmanager
def together(config: DistributedConfig) -> Iterator[None]:
    """Context manager that connects all processes, and makes all exit if one fails. All must execute the same code.

    A process that fails prints the reason, and all processes exit immediately, without unwinding: a normal Python exit
    would wait for the failed process, and the other processes would hang in their next collective. With one process, or
    inside another `together`, the context has no effect. The processes stay connected until Python exits.

    Raises:
        Preempted: all processes have agreed to stop, and the run is saved.
    """
    if _inside.get() or config.process_info(os.environ) is None:
        yield
        return
    done, token, stopped = threading.Event(), _inside.set(True), None
    watch = threading.Thread(target=_end_with_others, args=[done], daemon=True)
    try:
        join(config)
        watch.start()
        with _sigterm_raises():
            try:
                yield
            except Preempted as error:
                if not error.by_all:
                    raise
                stopped = error
            runtime.wait_for_all(next_key(END), config.initialization_timeout_seconds)
    except BaseException as error:
        _end(error, config)
    _inside.reset(token)
    done.set()
    watch.join()
    if stopped is not None:
        raise stopped


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Context manager in which SIGTERM raises `Terminated` in the main thread, unless SIGTERM already has a handler."""
    is_free = signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if not is_free or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated


def _end(error: BaseException, config: DistributedConfig) -> NoReturn:
    """Publish and print the error, and exit the process."""
    _end_undisturbed()
    process = config.process_info(os.environ)
    number = process.process_id if process else 0
    failure = _failure_of(error, number)
    first = _within(5.0, lambda: _publish(failure)) if jax.distributed.is_initialized() else None
    if first is not None and first.process != number:
        _exit(first, number)
    head = f"xlstm-hydra: process {number}"
    if isinstance(error, Preempted):
        hand_over()
    if isinstance(error, ConfigError | KeyboardInterrupt | Terminated | SystemExit):
        print(f"{head}: {failure.text}", file=sys.stderr)
    else:
        is_bug = message_of(error) is None
        print(f"{head} failed:\n" * is_bug + text_of(error, head), file=sys.stderr)
        if isinstance(error, jax.errors.JaxRuntimeError) or "by peer" in str(error):
            text = "if a collective has failed, another process may have died; see the output of the other processes"
            print(f"{head}: {text}", file=sys.stderr)
    if number == 0:
        sys.stderr.flush()
        time.sleep(3 * POLL_SECONDS)  # process 0 hosts the store in which the other processes find the failure
    _leave(failure.status)


def _end_undisturbed() -> None:
    """Ignore further signals while the process exits, which takes a few seconds at most."""
    if threading.current_thread() is threading.main_thread():
        for number in (*SIGNALS, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)


def _failure_of(error: BaseException, number: int) -> Failure:
    if isinstance(error, ConfigError):
        return Failure(number, 2, str(error))
    hint = "resume=RUN continues from the last checkpoint of a run"
    if isinstance(error, KeyboardInterrupt):
        return Failure(number, 130, f"interrupted; {error or hint}")
    if isinstance(error, Terminated):
        return Failure(number, 143, f"stopped by SIGTERM; {hint}")
    if isinstance(error, Preempted):
        return Failure(number, STATUS, str(error))
    if isinstance(error, SystemExit):
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        return Failure(number, status, f"the program called sys.exit({error.code!r})")
    return Failure(number, 1, reason(error))


def _publish(failure: Failure) -> Failure:
    """Publish a failure to all processes. Return the failure that was published first, which caused all others."""
    try:
        runtime.publish(FAILURE, json.dumps(failure))
        return failure
    except RuntimeError:
        return _published() or failure


def _published() -> Failure | None:
    text = runtime.published(FAILURE)
    return None if text is None else Failure(*json.loads(text))


def announce_end(status: int, text: str) -> None:
    """Publish to the other processes why this process is about to exit.

    Args:
        status: exit status of this process.
        text: reason for the exit.
    """
    number = runtime.process_id()
    _within(POLL_SECONDS, lambda: _publish(Failure(number, status, text)))
    if number == 0:
        time.sleep(1.5 * POLL_SECONDS)  # as in `_end`


def _end_with_others(done: threading.Event) -> None:
    """Exit if another process fails. Runs in a thread, as the main thread may wait for that process in a collective."""
    number = runtime.process_id()
    while not done.wait(POLL_SECONDS):
        failure = _published()
        if failure is not None and failure.process != number:
            _exit(failure, number)


def _exit(cause: Failure, number: int) -> NoReturn:
    if cause.status == STATUS:
        hand_over()
    print(f"xlstm-hydra: process {number} exits because process {cause.process} failed: {cause.text}", file=sys.stderr)
    _leave(cause.status)


def _leave(status: int) -> NoReturn:
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _within(seconds: float, function: Callable[[], Failure]) -> Failure | None:
    """Call a function that may hang, and return the result; None after a timeout of `seconds`."""
    results: list[Failure] = []
    thread = threading.Thread(target=lambda: results.append(function()), daemon=True)
    thread.start()
    thread.join(seconds)
    return results[0] if results else None
