"""Agreement of all processes on the last step, without communication during the steps before.

The main thread of each process passes a gate before each step and records the step number. A process that receives a
stop request publishes the request in the key-value store of process 0. In each process, a thread that never waits for a
device then closes the gate and publishes the last step that the main thread started. Process 0 publishes the maximum of
these steps as the last step, and the gates open again. No process has started a step after the last step, and all
processes continue up to it, so all do the same steps.
"""

from __future__ import annotations

import threading
from types import TracebackType

from xlstm_hydra.devices import POLL_SECONDS, next_key, runtime
from xlstm_hydra.preemption import Watch

STOP = "xlstm_hydra/stop"
"""Key in the key-value store of process 0."""


class Stop:
    """Context manager around all steps that decides which step is the last."""

    def __init__(self, watch: Watch, done: int) -> None:
        """Args:
        watch: the watch that receives stop requests.
        done: number of completed steps.
        """
        self._watch, self._begun = watch, done
        self._last: int | None = None
        self._gate, self._is_closed = threading.Condition(), False
        self._left = threading.Event()
        self._key = next_key(STOP)
        self._thread = None
        if runtime.num_processes() > 1:
            self._thread = threading.Thread(target=self._agree, daemon=True)

    def __enter__(self) -> Stop:
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        self._left.set()
        if self._thread is None or kind is not None:
            return
        self._publish_begun(self._begun)
        if runtime.process_id() == 0:
            self._publish("last", self._begun)
        self._thread.join()

    def is_before(self, step: int) -> bool:
        """Return True if the run must stop before this step. Otherwise, record that the step starts.

        Raises:
            KeyboardInterrupt: SIGINT was received, but has not interrupted the main thread.
        """
        if self._watch.is_interrupted:
            raise KeyboardInterrupt
        with self._gate:
            self._gate.wait_for(lambda: not self._is_closed)
            if self._thread is None and self._watch.request is not None:
                self._last = self._begun
            if self._last == self._begun:
                return True
            self._begun = step
            return False

    def _agree(self) -> None:
        """Wait until a process requests a stop, then agree on the last step."""
        while not self._left.wait(POLL_SECONDS):
            if self._watch.request is not None:
                self._publish("asked", self._watch.request)
            if (request := self._read("asked")) is not None:
                break
        else:
            return
        self._watch.request = self._watch.request or request
        with self._gate:
            self._is_closed, begun = True, self._begun
        self._publish_begun(begun)
        if runtime.process_id() == 0:
            self._publish("last", max(self._wait(f"begun/{number}") for number in range(runtime.num_processes())))
        last = self._wait("last")
        with self._gate:
            self._is_closed, self._last = False, last
            self._gate.notify_all()

    def _publish_begun(self, begun: int) -> None:
        self._publish(f"begun/{runtime.process_id()}", begun)

    def _publish(self, name: str, number: int) -> None:
        """Publish a number to all processes, unless one is already published under this name."""
        try:
            runtime.publish(f"{self._key}/{name}", str(number))
        except RuntimeError:
            pass

    def _read(self, name: str) -> int | None:
        text = runtime.published(f"{self._key}/{name}")
        return None if text is None else int(text)

    def _wait(self, name: str) -> int:
        """Wait for a number from another process. If that process dies, another thread ends this process."""
        while (number := self._read(name)) is None:
            threading.Event().wait(POLL_SECONDS / 5)
        return number
