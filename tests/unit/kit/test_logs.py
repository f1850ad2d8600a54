"""The log format: JSON lines with ids that join, readable lines for people."""

import asyncio
import io
import json
import logging
from collections.abc import Iterator

import pytest
from trellis_kit import logs


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_line_with_ids_and_extras() -> None:
    stream = io.StringIO()
    logs.setup("superlink", stream=stream)  # no terminal: JSON
    with logs.bound(run_id=2**64 - 1, node_id=None):
        logging.getLogger("x").info("stored %d", 3, extra={"bytes": 10})
    (line,) = lines(stream)
    assert line["message"] == "stored 3"
    assert line["service"] == "superlink"
    assert line["run_id"] == str(2**64 - 1)
    assert line["bytes"] == 10
    assert "node_id" not in line
    assert "run_id" not in logs.bound_ids()


def test_exception_and_long_text() -> None:
    stream = io.StringIO()
    logs.setup("superlink", stream=stream, format="json")
    try:
        raise ValueError("why")
    except ValueError:
        logging.getLogger("x").exception("failed")
    logging.getLogger("x").info("x" * 10_000_000)
    failed, long = lines(stream)
    assert "ValueError: why" in str(failed["exception"])
    assert len(str(long["message"])) < logs.MAX_TEXT + 100


def test_text_for_people() -> None:
    stream = io.StringIO()
    logs.setup("supernode", stream=stream, format="text")
    with logs.bound(run_id=7):
        logging.getLogger("x").warning("gone")
    assert "WARNING supernode: gone run_id=7" in stream.getvalue()


async def test_tasks_keep_the_ids_of_their_birth() -> None:
    stream = io.StringIO()
    logs.setup("supernode", stream=stream, format="json")

    async def work() -> None:
        await asyncio.sleep(0)
        logging.getLogger("x").info("done")

    with logs.bound(run_id=1):
        task = asyncio.create_task(work())
    await task
    assert lines(stream)[0]["run_id"] == "1"


def test_early_warnings_come_out_at_setup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_ready", False)
    logs.early("careful")
    stream = io.StringIO()
    logs.setup("superlink", stream=stream, format="json")
    assert lines(stream)[0]["message"] == "careful"


def test_what_is_quoted_neither_steers_a_terminal_nor_begins_a_line() -> None:
    text = "\x1b]0;mine\x07 \x9b31m \u202e\n00:00:00 ERROR forged"
    for format in ("text", "json"):
        stream = io.StringIO()
        logs.setup("supernode", stream=stream, format=format)
        try:
            raise ValueError("\x1b[31m")
        except ValueError:
            logging.getLogger("x").exception("said %s", text, extra={"name_of": text})
        written = stream.getvalue()
        assert {one for one in written if not one.isprintable()} == {"\n"}
        assert r"\u001b]0;mine\u0007 \u009b31m \u202e\n00:00:00 ERROR forged" in written
        if format == "json":
            assert str(lines(stream)[0]["message"]).endswith(text)
