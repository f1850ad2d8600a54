"""The lines that apps print, in this node's own log."""

from __future__ import annotations

import logging
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from trellis_kit import logs
from trellis_wire.messages import Metadata
from trellis_wire.pb.appio import appio_pb2

_log = logging.getLogger("app")

_LEVELS: Final = {
    "ERR": logging.WARNING,
    "CRITICAL": logging.CRITICAL,
    "ERROR": logging.ERROR,
    "WARNING": logging.WARNING,
    "DEBUG": logging.DEBUG,
}
_REMEMBERED: Final = 256  # tasks whose last lines may come after their reply


@dataclass
class _Source:
    instruction: Metadata
    handed: int
    sequence: int = 0


class AppLogs:
    """Writes each batch once, with the ids of its run, node and message."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, _Source] = OrderedDict()

    def remember(self, token: str, handed: int, instruction: Metadata) -> None:
        """Lines under this token are those of the instruction's app, which was handed out for the `handed`th time."""
        known = self._known.get(token)
        if known is None or known.handed != handed:
            self._known[token] = _Source(instruction, handed)
        self._known.move_to_end(token)
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)

    def write(self, token: str, batch: appio_pb2.PushLogsRequest) -> bool:
        """False when the token is unknown. A batch that came before (by its sequence) is not written again."""
        source = self._known.get(token)
        if source is None:
            return False
        if batch.sequence and batch.sequence <= source.sequence:
            return True
        source.sequence = batch.sequence
        instruction = source.instruction
        with logs.bound(run_id=instruction.run_id, node_id=instruction.dst_node_id, message_id=instruction.message_id):
            for line in batch.lines:
                _log.log(_LEVELS.get(line.level, logging.INFO), "%s", line.text.rstrip("\n"))
        return True
