"""Metrics for TensorBoard. They are written by the thread that trains, which notices a full disk; tensorboardX's own
thread would end there, and the run would wait for it for ever."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2
from tensorboardX.summary import scalar

_PROTO: Any = event_pb2
"""Its classes are made when it is imported, where pyright does not see them."""

FLUSH_SECONDS = 120.0
"""How often metrics are forced onto the disk."""


class EventFile:
    """A file of events in a folder."""

    def __init__(self, folder: Path, first_step: int) -> None:
        """Open a new file. TensorBoard drops what older files have of the steps after `first_step`."""
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"))
        self._flushed = -FLUSH_SECONDS
        start = _PROTO.SessionLog(status=_PROTO.SessionLog.START)
        self._write(first_step + 1, session_log=start)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Write one value of a step."""
        self._write(step, summary=scalar(name, value))
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._writer.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()

    def _write(self, step: int, **what: Any) -> None:
        self._writer.write_event(_PROTO.Event(step=step, wall_time=time.time(), **what))
