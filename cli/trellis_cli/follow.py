"""A run's log as it is written, whole and without repetitions, whatever happens to the connection."""

import queue
import threading
import time
from collections.abc import Callable
from datetime import datetime

import grpc
from trellis_wire.pb.edge.control_pb2 import StreamLogsResponse

from trellis_cli.control import Control, no_run
from trellis_cli.errors import Unreachable

# Failures of a connection, not answers to the question.
_TRANSIENT = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
    }
)
_PAUSE_SECONDS = 0.5
_GIVE_UP_SECONDS = 300.0  # a SuperLink that is not back by then needs its operator
_QUIET_SECONDS = 0.5  # when nothing came for so long, what was there has been shown


def follow(control: Control, run_id: int, write: Callable[[str], None], note: Callable[[str], None]) -> None:
    """Write the log from its beginning until the run has finished; survives restarts of the SuperLink.

    Raises CliError: at once for a first call that fails or a run that does not exist, later when the SuperLink stays
    away for five minutes.
    """
    after = 0.0
    answered = False  # whether this SuperLink has answered at all
    lost_since: float | None = None
    while True:
        since, came = after, 0
        try:
            for item in control.stream_logs(run_id, since):
                # An entry that we have already shown is one that an inexact SuperLink repeats.
                if item.latest_timestamp > since:
                    write(item.log_output)
                    came += 1
                    after = max(after, item.latest_timestamp)
                answered, lost_since = True, None
            # The stream also ends when something in between closes it, so ask; then once more for what came last.
            run, _ = control.get_run(run_id)
            answered, lost_since = True, None
            if run.status.status == "finished" and came == 0:
                return
            if run.status.status == "finished":
                continue
        except grpc.RpcError as error:
            code = error.code()
            if code is grpc.StatusCode.DEADLINE_EXCEEDED:
                answered, lost_since = True, None  # our own limit: the SuperLink was there and had nothing to say
                continue
            if code not in _TRANSIENT or not answered:
                raise control.explain(error, no_run(run_id)) from error
            lost_since = _still_lost(lost_since, note, control)
        except Unreachable:
            if not answered:
                raise
            lost_since = _still_lost(lost_since, note, control)
        time.sleep(_PAUSE_SECONDS)


def show(control: Control, run_id: int, write: Callable[[str], None]) -> None:
    """Write what the log holds now, and return. CliError as in `follow`."""
    stream = control.stream_logs(run_id, 0.0)
    items: queue.SimpleQueue[StreamLogsResponse | grpc.RpcError | None] = queue.SimpleQueue()

    def read() -> None:
        try:
            for item in stream:
                items.put(item)
        except grpc.RpcError as error:
            items.put(error)
        else:
            items.put(None)

    threading.Thread(target=read, daemon=True).start()
    # An answer here says that the log's first entries are on their way; whether ours is right, the SuperLink's clock
    # is the one that the log is written by.
    _, now = control.get_run(run_id)
    asked = datetime.fromisoformat(now).timestamp()
    try:
        while True:
            item = items.get(timeout=_QUIET_SECONDS)
            if item is None:
                return
            if isinstance(item, grpc.RpcError):
                raise control.explain(item, no_run(run_id))
            write(item.log_output)
            if item.latest_timestamp >= asked:
                return
    except queue.Empty:
        return
    finally:
        stream.cancel()


def _still_lost(since: float | None, note: Callable[[str], None], control: Control) -> float:
    now = time.monotonic()
    if since is None:
        note(f"The SuperLink at {control.connection.address} does not answer; the log goes on when it is back ...")
        return now
    if now - since > _GIVE_UP_SECONDS:
        raise Unreachable(
            f"The SuperLink at {control.connection.address} has not answered for {_GIVE_UP_SECONDS:.0f} s. "
            "The run may still go on; follow it later with `trellis log`."
        )
    return since
