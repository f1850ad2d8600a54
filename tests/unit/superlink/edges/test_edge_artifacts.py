"""`flwr pull`: what a run left behind, from its executor to the link, and series and events of runs."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import httpx
import pytest
from edge_world import Hosted, Network, network, refusal
from grpc import StatusCode
from trellis_superlink.edges import links
from trellis_wire.pb.appio import appio_pb2
from trellis_wire.pb.edge import control_pb2

COMPLETED = appio_pb2.FinishRunRequest(outcome=appio_pb2.FinishRunRequest.COMPLETED)
OLD = [("flwr-package-version", "1.30.0")]
NEW = [("flwr-package-version", "1.36.0")]


async def leave(hosted: Hosted, content: bytes, name: str = "run.zip") -> None:
    async def parts() -> AsyncIterator[appio_pb2.ArtifactPart]:
        for start in range(0, len(content), 100_000):
            yield appio_pb2.ArtifactPart(name=name, data=content[start : start + 100_000])

    await hosted.call("PushArtifact", parts())


async def get(net: Network, url: str, method: str = "GET") -> httpx.Response:
    """The link, followed to where the edge really is."""
    path = url.partition("/v1/")[2]
    async with httpx.AsyncClient() as client:
        return await client.request(method, f"http://{net.link.http.bound}/v1/{path}")


async def pull(net: Network, run_id: int) -> str:
    return str((await net.control.PullArtifacts(control_pb2.PullArtifactsRequest(run_id=run_id))).url)


async def test_what_a_run_left_is_downloaded_by_its_link(tmp_path: Path) -> None:
    content = bytes(range(256)) * 10_000
    async with network(tmp_path, public_url="https://flower.example/") as net:
        hosted = await net.running()
        await leave(hosted, b"older")
        await leave(hosted, content)
        status, details = await refusal(
            net.control.PullArtifacts(control_pb2.PullArtifactsRequest(run_id=hosted.run_id))
        )
        assert (status, details) == (
            StatusCode.FAILED_PRECONDITION,
            "Cannot pull artifacts for an unfinished run",
        )
        await hosted.call("FinishRun", COMPLETED)
        url = await pull(net, hosted.run_id)
        assert url.startswith(f"https://flower.example/v1/artifacts/{hosted.run_id}/run.zip?expires=")
        answer = await get(net, url)
        assert (answer.status_code, answer.content) == (200, content)
        assert answer.headers["content-disposition"] == 'attachment; filename="run.zip"'
        head = await get(net, url, "HEAD")
        assert (head.status_code, head.headers["content-length"], head.content) == (200, str(len(content)), b"")


async def test_links_that_open_nothing(net: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    hosted = await net.running()
    await leave(hosted, b"content")
    await hosted.call("FinishRun", COMPLETED)
    url = await pull(net, hosted.run_id)
    for altered in (url[:-1] + ("0" if url[-1] != "0" else "1"), url.replace("run.zip", "other"), url.split("?")[0]):
        answer = await get(net, altered)
        assert (answer.status_code, answer.text[:21]) == (403, "This link was altered")
    monkeypatch.setattr(links, "LIFETIME", -1)
    answer = await get(net, await pull(net, hosted.run_id))
    assert (answer.status_code, answer.text[:21]) == (403, "This link has expired")


async def test_a_run_that_left_nothing_and_one_that_left_too_much(tmp_path: Path) -> None:
    async with network(tmp_path, artifact_limit=1000) as net:
        hosted = await net.running()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await leave(hosted, bytes(1001))
        assert "--artifact-limit" in (refused.value.details() or "")
        await hosted.call("FinishRun", COMPLETED)
        status, details = await refusal(
            net.control.PullArtifacts(control_pb2.PullArtifactsRequest(run_id=hosted.run_id))
        )
        assert (status, details) == (StatusCode.NOT_FOUND, f"Run {hosted.run_id} left no files behind.")
        assert not [path for path in (tmp_path / "superlink.db.objects").rglob("*") if path.is_file()]


async def test_links_outlive_a_restart(tmp_path: Path) -> None:
    async with network(tmp_path) as net:
        hosted = await net.running()
        await leave(hosted, b"content")
        await hosted.call("FinishRun", COMPLETED)
        url = await pull(net, hosted.run_id)
    async with network(tmp_path) as net:
        assert (await get(net, url)).content == b"content"


async def test_each_run_is_a_series_of_its_own(net: Network) -> None:
    first, second = await net.submit(), await net.submit()
    listed = await net.control.ListRunSeries(control_pb2.ListRunSeriesRequest())
    assert [entry.series_id for entry in listed.entries] == [second, first]
    assert (await net.control.ListRunSeries(control_pb2.ListRunSeriesRequest(limit=1))).entries == listed.entries[:1]
    older = control_pb2.ListRunSeriesRequest(updated_before=listed.entries[0].updated_at)
    assert [entry.series_id for entry in (await net.control.ListRunSeries(older)).entries] == [first]
    assert not (await net.control.ListRunSeries(control_pb2.ListRunSeriesRequest(is_agent=True))).entries
    found = await net.control.GetRunSeries(control_pb2.GetRunSeriesRequest(series_id=first))
    assert (found.series.run_ids, [run.run_id for run in found.runs]) == ([first], [first])
    status, details = await refusal(net.control.GetRunSeries(control_pb2.GetRunSeriesRequest(series_id=7)))
    assert (status, details) == (StatusCode.NOT_FOUND, "Run series ID not found")


async def test_events_are_the_changes_of_a_runs_status(net: Network) -> None:
    hosted = await net.running()
    stream = net.control.StreamRunEvents(
        control_pb2.StreamRunEventsRequest(run_id=hosted.run_id), metadata=NEW, timeout=30
    )
    items = aiter(stream)
    seen = [await anext(items) for _ in range(3)]
    await hosted.call("FinishRun", COMPLETED)
    seen += [item async for item in items]
    events = [item.task_event for item in seen]
    assert [json.loads(event.data)["status"] for event in events] == ["pending", "starting", "running", "finished"]
    assert [event.id for event in events] == sorted({event.id for event in events})
    rest = net.control.StreamRunEvents(
        control_pb2.StreamRunEventsRequest(run_id=hosted.run_id, after_task_event_id=events[2].id), metadata=NEW
    )
    assert [item.task_event async for item in rest] == events[3:]
    series = await net.control.ListRunSeriesEvents(control_pb2.ListRunSeriesEventsRequest(series_id=hosted.run_id))
    assert list(series.events) == events
    raw = net.channels["control"].unary_stream("/flwr.proto.Control/StreamRunEvents")
    request = control_pb2.StreamRunEventsRequest(run_id=hosted.run_id).SerializeToString()
    async for item in raw(request, metadata=OLD):  # 1.28-1.30: field 1 is the event's name, not a message
        assert item.startswith(b"\x0a\x0arun_status\x12")


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", 'a"; b="c', "a\r\nx: y", "a b", "\u00e4", "x" * 201])
async def test_file_names_that_no_link_and_no_header_can_have(name: str, net: Network) -> None:
    hosted = await net.running()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await leave(hosted, b"content", name)
    assert refused.value.code() is StatusCode.INVALID_ARGUMENT
