"""What a site lets in, and what it lets out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from node_world import World, model, settings_of, world
from trellis_kit.attempts import ATTEMPTS
from trellis_kit.lifecycle import Fatal, Stop
from trellis_supernode.main import serve
from trellis_supernode.policy import Asked, Policy, PolicyProblem
from trellis_supernode.reply_filter import Reply
from trellis_wire.messages import ErrorCode, MessageError
from trellis_wire.pb.appio.appio_pb2_grpc import ClientAppIOStub
from trellis_wire.pb.edge import records_pb2
from trellis_wire.records import ArrayRecord, ConfigRecord, Record
from trellis_wire.signing import key_id, sign

RUN = Asked(5, "somebody/small", "ab" * 32, "alice", "@olga/heart")


def line(key: Ed25519PrivateKey) -> str:
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


@pytest.mark.parametrize(
    ("rule", "allowed", "other", "said"),
    [
        ("publishers", "somebody", "some", "publisher 'somebody'"),
        ("apps", "somebody/small", "somebody", "app 'somebody/small'"),
        ("fab-hashes", "ab" * 32, "cd" * 32, "hash abab"),
        ("accounts", "alice", "bob", "account 'alice'"),
        ("federations", "@olga/heart", "@olga/lung", "federation '@olga/heart'"),
    ],
)
def test_each_rule_lets_in_what_it_names(rule: str, allowed: str, other: str, said: str, tmp_path: Path) -> None:
    def denial(*names: str) -> str | None:
        (tmp_path / "policy.toml").write_text(f"{rule} = {json.dumps(names)}")
        return Policy.read(tmp_path / "policy.toml").denial(RUN)

    assert denial(other, allowed) is None
    for names in ((), (other,)):
        assert said in (denial(*names) or "")


def test_all_rules_must_hold_and_an_empty_policy_has_none(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text("")
    assert Policy.read(tmp_path / "policy.toml").denial(RUN) is None
    (tmp_path / "policy.toml").write_text('publishers = ["somebody"]\naccounts = ["bob"]')
    assert "account" in (Policy.read(tmp_path / "policy.toml").denial(RUN) or "")
    unknown = Asked(5, "", "", "", "")
    assert Policy.read(tmp_path / "policy.toml").denial(unknown) is not None


def test_signatures(tmp_path: Path) -> None:
    trusted, stranger = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    (tmp_path / "policy.toml").write_text(f"signed-by = [{line(trusted)!r}]")
    policy = Policy.read(tmp_path / "policy.toml")
    good = sign(RUN.fab_hash, trusted, 1_700_000_000)
    assert policy.unsigned(RUN.fab_hash, good) is None
    name = key_id(trusted.public_key())
    [forged] = sign(RUN.fab_hash, stranger, 1_700_000_000).values()
    refused: list[Mapping[str, str]] = [
        {},
        sign("cd" * 32, trusted, 1_700_000_000),
        sign(RUN.fab_hash, stranger, 1_700_000_000),
        {name: forged},
        {name: "{"},
        {name: json.dumps({"signed_at": -1, "signature": ""})},
        {name: json.dumps({"signed_at": 1_700_000_001, "signature": json.loads(good[name])["signature"]})},
    ]
    for signatures in refused:
        assert "signed" in (policy.unsigned(RUN.fab_hash, signatures) or "")
    (tmp_path / "trusted.yaml").write_text(f"{key_id(stranger.public_key())}: {line(stranger)} somebody@there\n")
    both = policy.trusting(tmp_path / "trusted.yaml")
    assert both.unsigned(RUN.fab_hash, sign(RUN.fab_hash, stranger, 7)) is None
    assert both.unsigned(RUN.fab_hash, good) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("apps = 1", "apps"),
        ("app = ['a/b']", "app: Extra"),
        ("[", "no TOML"),
        ("fab-hashes = ['ABC']", "no SHA-256"),
        ("signed-by = ['ssh-rsa AAAA']", "signed-by"),
        (None, "cannot be read"),
    ],
)
def test_policies_that_are_none(text: str | None, said: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "policy.toml").write_text(text)
    with pytest.raises(PolicyProblem, match=said):
        Policy.read(tmp_path / "policy.toml")


@pytest.mark.parametrize("text", ["- a", "a: b", "{", None])
def test_trusted_entities_that_are_none(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "t.yaml").write_text(text)
    with pytest.raises(PolicyProblem):
        Policy().trusting(tmp_path / "t.yaml")


def lines_of(audit: Path) -> list[dict[str, Any]]:
    return [json.loads(one) for one in audit.read_text().splitlines()]


# ---- in a SuperNode --------------------------------------------------------------------------------------------------


async def refusal(w: World) -> records_pb2.Error:
    answer = await w.answered(await w.link.instruct())
    assert answer.HasField("error")
    return answer.error


async def test_a_run_that_the_policy_denies_is_answered_and_written_down(tmp_path: Path) -> None:
    policy, audit = tmp_path / "policy.toml", tmp_path / "audit.jsonl"
    policy.write_text('accounts = ["bob"]')
    async with world(tmp_path) as w:
        async with w.node(policy=policy, audit_log=str(audit)):
            error = await refusal(w)
            assert error.code == ErrorCode.INVALID_FAB
            assert error.reason == "This site's policy does not allow runs of the account 'alice'; ask its operator."
            assert not w.link.called("GetFab")
        [entry] = lines_of(audit)
        assert (entry["event"]["action"], entry["status"], entry["reason"]) == ("Site.AdmitRun", "denied", error.reason)
        assert entry["actor"]["description"] == "alice"
        # The same run under a policy that lets it in, and under the first one again.
        policy.write_text('accounts = ["alice"]')
        async with w.node(policy=policy, audit_log=str(audit)):
            hand = await w.hand()
            instruction = await w.link.instruct()
            await hand.finish(await hand.work())
            await w.answered(instruction)
            await hand.close()
        assert [(one["event"]["action"], one["status"]) for one in lines_of(audit)[1:]] == [
            ("ClientAppIO.Attend", "completed"),
            ("Site.AdmitRun", "completed"),
        ]
        policy.write_text('accounts = ["bob"]')
        async with w.node(policy=policy):
            assert (await refusal(w)).code == ErrorCode.INVALID_FAB


async def test_who_guesses_join_tokens_waits_and_is_written_down(tmp_path: Path) -> None:
    audit = tmp_path / "audit.jsonl"
    async with world(tmp_path) as w, w.node(join_token="s3cret", audit_log=str(audit)):
        hand = await w.hand(join_token="s3cret")
        told = []

        async def nothing() -> AsyncIterator[Any]:
            await asyncio.Event().wait()
            yield

        async with grpc.aio.insecure_channel(w.appio) as channel:
            stub: Any = ClientAppIOStub(channel)
            for _ in range(ATTEMPTS + 2):
                told.append(await stub.Attend(nothing(), metadata=(("trellis-join-token", "guess"),)).code())
        assert told == [grpc.StatusCode.UNAUTHENTICATED] * ATTEMPTS + [grpc.StatusCode.UNAVAILABLE] * 2
        instruction = await w.link.instruct()
        await hand.finish(await hand.work())  # who is there goes on
        await w.answered(instruction)
    lines = lines_of(audit)
    assert [one["actor"]["actor_id"] for one in lines if one["status"] == "completed"] == ["hand", None]
    denied = [one for one in lines if one["status"] == "denied"]
    assert len(denied) == ATTEMPTS
    assert {one["event"]["action"] for one in denied} == {"ClientAppIO.Attend"}
    assert "guess" not in audit.read_text()


async def test_a_run_has_to_be_signed(tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    (tmp_path / "trusted.yaml").write_text(f"{key_id(key.public_key())}: {line(key)}\n")
    async with world(tmp_path) as w:
        async with w.node(trusted_entities=tmp_path / "trusted.yaml"):
            assert "signed" in (await refusal(w)).reason
        w.link.signatures = sign(w.link.run_fab, key, 1_700_000_000)
        async with w.node(trusted_entities=tmp_path / "trusted.yaml"):
            hand = await w.hand()
            instruction = await w.link.instruct()
            await hand.finish(await hand.work())
            await w.answered(instruction)


async def test_an_app_under_a_false_name(tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text('apps = ["trusted/app"]')
    async with world(tmp_path) as w:
        w.link.fab_id = "trusted/app"
        async with w.node(policy=policy):
            assert "it is 'somebody/small'" in (await refusal(w)).reason


def without_arrays(reply: Reply) -> dict[str, Record]:
    assert (reply.fab_id, reply.message_type) == ("somebody/small", "train")
    assert isinstance(reply.content["arrays"], ArrayRecord)
    return {"config": ConfigRecord({"n": 99})}


def nothing(reply: Reply) -> None:
    return None


def broken(reply: Reply) -> dict[str, Record]:
    raise ValueError("patient 17")


def same(reply: Reply) -> Mapping[str, Record]:
    return reply.content


@pytest.mark.parametrize("size", [100, 3 << 20], ids=["small", "large"])
async def test_a_filter_changes_what_leaves_the_site(size: int, tmp_path: Path) -> None:
    async with world(tmp_path) as w, w.node(reply_filter=f"{__name__}:without_arrays"):
        hand = await w.hand()
        instruction = await w.link.instruct()
        await hand.finish(await hand.work(), model(b"s" * size, 1))
        answer = await w.answered(instruction)
        records = w.link.records(answer)
        assert {name: dict(record.items) for name, record in records.items()} == {"config": {"n": 99}}
        sent = [content for content in w.link.objects.values() if b"s" * 50 in content]
        assert not sent


async def test_a_filter_that_changes_nothing_is_not_seen(tmp_path: Path) -> None:
    data = bytes(range(256)) * 8192
    async with world(tmp_path) as w, w.node(reply_filter=f"{__name__}:same"):
        hand = await w.hand()
        instruction = await w.link.instruct()
        await hand.finish(await hand.work(), model(data, 3))
        records = w.link.records(await w.answered(instruction))
        assert bytes(records["arrays"].items["w"].data).endswith(data)  # type: ignore[union-attr]


@pytest.mark.parametrize(("function", "said"), [("nothing", "withholds"), ("broken", "filter of this site failed")])
async def test_a_reply_that_is_withheld_is_an_error_and_says_nothing_of_the_data(
    function: str, said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with world(tmp_path) as w, w.node(reply_filter=f"{__name__}:{function}"):
        hand = await w.hand()
        instruction = await w.link.instruct()
        await hand.finish(await hand.work(), model(b"s" * 100, 1))
        error = (await w.answered(instruction)).error
        assert error.code == ErrorCode.REPLY_UNAVAILABLE
        assert said in error.reason
        assert "patient" not in error.reason
    assert ("patient 17" in caplog.text) == (function == "broken")


@pytest.mark.parametrize(("code", "told"), [(ErrorCode.CLIENT_APP_RAISED, 2), (1717, 0)])
async def test_a_filter_lets_no_error_quote_the_data(
    code: int, told: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with world(tmp_path) as w, w.node(reply_filter=f"{__name__}:same"):
        hand = await w.hand()
        instruction = await w.link.instruct()
        await hand.finish(await hand.work(), count=3, error=MessageError(code, "ValueError: patient 17"))
        answer = await w.answered(instruction)
        assert answer.error.code == told
        assert "its operator" in answer.error.reason
        assert not [content for content in w.link.objects.values() if b"patient" in content]
        assert b"patient" not in answer.SerializeToString()
        again = await w.link.instruct()
        work = await hand.work()
        assert await hand.state(work) == 3  # what the app keeps on its site stays
        await hand.finish(work)
        await w.answered(again)
    assert "patient 17" in caplog.text


async def test_what_travels_beside_the_records_is_not_the_apps(tmp_path: Path) -> None:
    async with world(tmp_path) as w, w.node(reply_filter=f"{__name__}:same"):
        hand = await w.hand()
        instruction = await w.link.instruct()
        await hand.finish(await hand.work(), group_id="patient 17", message_type="train.patient_17")
        metadata = (await w.answered(instruction)).metadata
        assert (metadata.group_id, metadata.message_type) == (
            instruction.metadata.group_id,
            instruction.metadata.message_type,
        )


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"reply_filter": "nowhere"}, "MODULE:FUNCTION"),
        ({"reply_filter": "no_such_module:f"}, "cannot be loaded"),
        ({"reply_filter": "json:nope"}, "cannot be loaded"),
        ({"reply_filter": "json:__name__"}, "no function"),
        ({"policy": Path("/nonexistent/policy.toml")}, "cannot be read"),
        ({"audit_log": "/nonexistent/audit"}, "audit log"),
    ],
)
async def test_what_cannot_be_used_is_said_at_the_start(values: dict[str, object], said: str, tmp_path: Path) -> None:
    with pytest.raises(Fatal, match=said):
        await serve(settings_of(tmp_path / "state", clientappio_api_address="127.0.0.1:0", **values), Stop(1.0))
