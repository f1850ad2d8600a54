"""One log format for every role: JSON lines for machines, short lines on a terminal.

Ids that identify work (`run_id`, `node_id`, `request_id`, ...) are bound once with `bound()` and then stand in every
line that is written below, under the same name in every role, so that the lines of all roles join.
"""

import contextlib
import json
import logging
import re
import secrets
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Final, Literal, TextIO

Format = Literal["auto", "json", "text"]

# A line longer than this is cut: a peer must not be able to fill the operator's disk with one message.
MAX_TEXT = 32 * 1024

REQUEST_ID: Final = "trellis-request-id"
"""Metadata of a call: the caller's request id, under which both sides log it."""
_SOUND_ID = re.compile(r"[0-9A-Za-z_-]{1,64}")

_ids: ContextVar[Mapping[str, object]] = ContextVar("trellis_log_ids", default=MappingProxyType({}))
_standard = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}
_waiting: list[str] = []
_ready = False


@contextlib.contextmanager
def bound(**ids: object) -> Iterator[None]:
    """Put these ids into every line logged inside, also in tasks that are created inside."""
    token = _ids.set({**_ids.get(), **{name: value for name, value in ids.items() if value is not None}})
    try:
        yield
    finally:
        _ids.reset(token)


def bound_ids() -> Mapping[str, object]:
    """The ids that are bound here."""
    return _ids.get()


def request_id(offered: object = None) -> str:
    """The request id that a caller offers, or that is bound here; a new one where there is none or no sound one."""
    known = str(offered or _ids.get().get("request_id", ""))
    return known if _SOUND_ID.fullmatch(known) else secrets.token_hex(6)


def early(warning: str) -> None:
    """Warn of something that is noticed before `setup()` knows how to write it."""
    if _ready:
        logging.getLogger("trellis").warning("%s", warning)
    else:
        _waiting.append(warning)


def setup(service: str, *, level: str = "INFO", format: Format = "auto", stream: TextIO | None = None) -> None:
    """Send all logging of this process to `stream` (stderr), as `service`. Call once, at the start."""
    global _ready
    target = sys.stderr if stream is None else stream
    as_json = format == "json" or (format == "auto" and not target.isatty())
    handler = logging.StreamHandler(target)
    handler.setFormatter(JsonFormatter(service) if as_json else TextFormatter(service))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    for chatty in ("asyncio", "urllib3", "alembic", "sqlalchemy", "uvicorn", "grpc", "httpx"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, logging.getLogger().level))
    _ready = True
    while _waiting:
        logging.getLogger("trellis").warning("%s", _waiting.pop(0))


def _fields(record: logging.LogRecord) -> dict[str, object]:
    own = {name: value for name, value in vars(record).items() if name not in _standard and value is not None}
    return {**_ids.get(), **own}


def _text(record: logging.LogRecord) -> str:
    text = record.getMessage()
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}... ({len(text)} characters, cut)"


def _exception(record: logging.LogRecord) -> str | None:
    if not record.exc_info or record.exc_info[0] is None:
        return None
    return "".join(traceback.format_exception(*record.exc_info))[-MAX_TEXT:].rstrip()


def _harmless(text: str, but: str = "") -> str:
    """The text with what would steer a terminal or begin a line of its own spelled out: peers and apps are quoted."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one in but else json.dumps(one)[1:-1] for one in text)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC, ISO 8601), level, service, logger, message, then the ids and extras."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "service": self._service,
            "logger": record.name,
            "message": _text(record),
        }
        for name, value in _fields(record).items():
            # Ids are 64 bits wide, which JSON readers round: they are text everywhere.
            line.setdefault(name, str(value) if name.endswith("_id") else value)
        if (exception := _exception(record)) is not None:
            line["exception"] = exception
        return _harmless(json.dumps(line, default=str, ensure_ascii=False))


class TextFormatter(logging.Formatter):
    """For people: local time, level, service, message, and the ids as `name=value`."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        clock = datetime.fromtimestamp(record.created).strftime("%H:%M:%S.%f")[:-3]
        ids = "".join(f" {name}={value}" for name, value in _fields(record).items())
        line = f"{clock} {record.levelname:<7} {self._service}: {_harmless(_text(record) + ids)}"
        exception = _exception(record)
        return line if exception is None else f"{line}\n{_harmless(exception, but=chr(10))}"
