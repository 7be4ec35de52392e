"""Several processes that train one model: how they meet, share a folder, and end together."""

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
"""Keys in the store that process 0 keeps for all."""

POLL_SECONDS = 1.0
"""How often a process asks whether another one has failed."""

SHARED_SECONDS = 15.0
"""How long a folder that process 0 has made may take to be seen by the others."""

AGREE_SECONDS = 60.0
"""How long a process waits for what process 0 says next."""

_numbers = itertools.count()
"""Numbers of the things that all processes do, in the same order: a key in the store is used once."""

_inside: ContextVar[bool] = ContextVar("inside", default=False)
"""Whether `together` holds already."""


class Terminated(SystemExit):
    """SIGTERM has come, and nothing watches for it (see `xlstm_hydra.preemption`)."""


class Failure(NamedTuple):
    """Why a process ends, as it tells the others."""

    process: int
    status: int
    """Exit status."""
    text: str


def join(config: DistributedConfig) -> None:
    """Meet the other processes, if there are any. Must come before anything that uses a device.

    A process that does not meet them in time ends.

    Raises:
        ConfigError: process 0 cannot open its port.
    """
    process = config.process_info(os.environ)
    if config.name == "auto" and (idle := idle_tasks(os.environ)):
        log.warning("SLURM has %d more tasks for this job, which do nothing: start the run with srun to use them", idle)
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
            cluster_detection_method="deactivate",  # it would give each process one GPU
            initialization_timeout=patience + 30,  # when JAX gives up, it aborts without a word that helps
            heartbeat_timeout_seconds=config.heartbeat_timeout_seconds,
            shutdown_timeout_seconds=patience,
        )
    finally:
        timer.cancel()


def _refuse_taken_port(address: str) -> None:
    """JAX ends with a segmentation fault there."""
    port = int(address.rpartition(":")[2])
    dual = socket.has_dualstack_ipv6()
    try:
        socket.create_server(
            ("", port), family=socket.AF_INET6 if dual else socket.AF_INET, dualstack_ipv6=dual
        ).close()
    except OSError as error:
        text = f"process 0 cannot open the port: {error.strerror}"
        fix = "Choose another port; where srun has chosen this one, use distributed=explicit."
        raise ConfigError([Problem({"distributed.coordinator_address": address}, text, fix)]) from None


def _give_up(process: ProcessInfo, seconds: int) -> NoReturn:
    text = (
        f"met not all of {process.num_processes} processes at {process.coordinator_address} within {seconds} s "
        "(distributed.initialization_timeout_seconds). Were all started, with the same address and count? Is the port "
        "free on the host of process 0, and can the others reach it?"
    )
    print(f"xlstm-hydra: process {process.process_id} {text}", file=sys.stderr)
    _leave(1)


def next_key(name: str) -> str:
    """Return a key in the store for the next thing that all processes do."""
    return f"{name}/{next(_numbers)}"


def is_distributed() -> bool:
    """True if there are other processes. Starts no device."""
    return runtime.num_processes() > 1


def is_first() -> bool:
    """True if this process is the one that writes and logs. Starts no device."""
    return runtime.process_id() == 0


def broadcast_text(key: str, text: str) -> str:
    """Return the text of process 0. All processes call this, each with a text of its own."""
    if not is_distributed():
        return text
    key = next_key(key)
    if runtime.process_id() == 0:
        runtime.publish(key, text)
        return text
    return runtime.wait_for(key, AGREE_SECONDS)


def gather_texts(key: str, text: str, seconds: float = AGREE_SECONDS) -> list[str]:
    """Return the texts of all processes, in their order. All processes call this, each with its own."""
    if not is_distributed():
        return [text]
    key = next_key(key)
    runtime.publish(f"{key}/{runtime.process_id()}", text)
    return [runtime.wait_for(f"{key}/{number}", seconds) for number in range(runtime.num_processes())]


def agree_on_folder(folder: Path) -> Path:
    """Return the run folder of process 0, made if it is not there, in all processes.

    Raises:
        FileNotFoundError: this process does not see it.
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
            text = f"process {runtime.process_id()} does not see the run folder {folder} of process 0"
            raise FileNotFoundError(f"{text}; hydra.run.dir must be on a file system that all hosts share")
        time.sleep(0.2)
    return folder


@contextmanager
def together(config: DistributedConfig) -> Iterator[None]:
    """What is done inside, all processes do. When one fails, it says why, and all of them end at once.

    They do not return then: Python's own exit would wait for the dead, and the others for their next collective. With
    one process, or inside another `together`, nothing is changed. JAX lets the processes part when Python ends.

    Raises:
        Preempted: all have agreed to stop, and have saved.
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
    """SIGTERM ends what is done as Ctrl-C does, unless the program has an answer of its own, as training has."""
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
    """Tell the others and the terminal, and end this process."""
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
            text = "where an exchange has failed, another process may have died; its own last lines say why"
            print(f"{head}: {text}", file=sys.stderr)
    if number == 0:
        sys.stderr.flush()
        time.sleep(3 * POLL_SECONDS)  # the others ask this process
    _leave(failure.status)


def _end_undisturbed() -> None:
    """Another signal would cut short what takes a few seconds at most."""
    if threading.current_thread() is threading.main_thread():
        for number in (*SIGNALS, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)


def _failure_of(error: BaseException, number: int) -> Failure:
    if isinstance(error, ConfigError):
        return Failure(number, 2, str(error))
    hint = "resume=RUN goes on from the last checkpoint of a run"
    if isinstance(error, KeyboardInterrupt):
        return Failure(number, 130, f"interrupted; {error or hint}")
    if isinstance(error, Terminated):
        return Failure(number, 143, f"ended by SIGTERM; {hint}")
    if isinstance(error, Preempted):
        return Failure(number, STATUS, str(error))
    if isinstance(error, SystemExit):
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        return Failure(number, status, f"left the run by sys.exit({error.code!r})")
    return Failure(number, 1, reason(error))


def _publish(failure: Failure) -> Failure:
    """Put a failure where all can read it. Returns the first one: later ones follow from it."""
    try:
        runtime.publish(FAILURE, json.dumps(failure))
        return failure
    except RuntimeError:
        return _published() or failure


def _published() -> Failure | None:
    text = runtime.published(FAILURE)
    return None if text is None else Failure(*json.loads(text))


def announce_end(status: int, text: str) -> None:
    """Tell the other processes why this one is about to end at once."""
    number = runtime.process_id()
    _within(POLL_SECONDS, lambda: _publish(Failure(number, status, text)))
    if number == 0:
        time.sleep(1.5 * POLL_SECONDS)  # the others ask this process


def _end_with_others(done: threading.Event) -> None:
    """Wait until another process has failed; the main thread may be waiting for it in a collective."""
    number = runtime.process_id()
    while not done.wait(POLL_SECONDS):
        failure = _published()
        if failure is not None and failure.process != number:
            _exit(failure, number)


def _exit(cause: Failure, number: int) -> NoReturn:
    if cause.status == STATUS:
        hand_over()
    print(f"xlstm-hydra: process {number} ends, because of process {cause.process}: {cause.text}", file=sys.stderr)
    _leave(cause.status)


def _leave(status: int) -> NoReturn:
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _within(seconds: float, function: Callable[[], Failure]) -> Failure | None:
    """The result of a call that may hang, or None."""
    results: list[Failure] = []
    thread = threading.Thread(target=lambda: results.append(function()), daemon=True)
    thread.start()
    thread.join(seconds)
    return results[0] if results else None
