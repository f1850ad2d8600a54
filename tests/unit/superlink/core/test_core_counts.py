"""Reference counts under any order of pushing, answering, confirming, losing and ending: nothing freed early, nothing
stays."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

from core_world import Letter, World, answer, instruct, records, world
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule
from trellis_superlink.core.principals import NO_ACCOUNT, Principal

SIZES = st.sampled_from([10, 70_000])
FILLS = st.sampled_from([b"a", b"b"])


class MailMachine(RuleBasedStateMachine):
    """A model of who may still need which object, held against the core on real files."""

    sent = Bundle("sent")

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory()
        self.context = world(Path(self.folder.name))
        self.w: World = self.do(self.context.__aenter__())
        self.nodes = [self.do(self.w.node()) for _ in range(2)]
        self.who, self.work, _stay = self.do(self.w.running())
        self.missing: dict[str, set[str]] = {}  # message id -> objects not sent yet
        self.open: dict[str, tuple[Letter, Principal]] = {}  # instructions without answer
        self.replies: dict[str, Letter] = {}  # unconfirmed, complete or not
        self.delivered: set[str] = set()
        self.over = False

    def do(self, work: Any) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(work, 20))

    def teardown(self) -> None:
        if not self.over:
            self.do(self.w.core.runs.stop(NO_ACCOUNT, self.work.run.run_id))
        self.do(self.w.rest())
        assert self.do(self.w.stored()) == (0, 0)
        assert self.w.files() == []
        self.do(self.context.__aexit__(None, None, None))
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
        self.folder.cleanup()

    # ---- what may happen

    @rule(target=sent, node=st.integers(0, 1), size=SIZES, fill=FILLS, inline=st.booleans())
    def push(self, node: int, size: int, fill: bytes, inline: bool) -> str:
        who = self.nodes[node]
        letter = instruct(self.work.run.run_id, who.node_id, records(size, fill))
        small = {key: value for key, value in letter.contents.items() if len(value) < 65536} if inline else {}
        parcel = type(letter.parcel)(letter.meta, letter.parcel.tree, None, small)
        pushed = self.do(self.w.core.mail.push_instructions(self.who, [parcel]))
        assert pushed.refusals == [""]
        self.open[letter.id] = (letter, who)
        self._here(small)
        self.missing[letter.id] = set(pushed.missing)
        return letter.id

    @rule(message_id=sent)
    def upload(self, message_id: str) -> None:
        if message_id in self.open:
            self._upload(self.who, self.open[message_id][0])

    @rule(message_id=sent, share=st.integers(1, 3))
    def upload_some(self, message_id: str, share: int) -> None:
        if message_id in self.open:
            letter, _who = self.open[message_id]
            for object_id in sorted(self.missing[message_id])[::share]:
                assert self.do(
                    self.w.core.objects.store(self.who, self.work.run.run_id, object_id, letter.contents[object_id])
                )
                self._here({object_id: b""})

    @rule(node=st.integers(0, 1))
    def pull(self, node: int) -> None:
        who = self.nodes[node]
        waiting = {
            key for key, (_letter, dst) in self.open.items() if dst == who and not self.missing[key]
        } - self.delivered
        got = {
            parcel.metadata.message_id
            for parcel in self.do(self.w.pull(who, limit=100, working_on=tuple(self.delivered)))
        }
        assert got == waiting
        self.delivered |= got

    @rule(message_id=sent, size=SIZES, fill=FILLS, whole=st.booleans())
    def reply(self, message_id: str, size: int, fill: bytes, whole: bool) -> None:
        if message_id not in self.open or message_id not in self.delivered:
            return
        letter, who = self.open[message_id]
        for key, other in list(self.replies.items()):  # an incomplete reply before gives way
            if other.meta.reply_to_message_id == message_id:
                del self.replies[key]
        reply = answer(letter.meta, records(size, fill))
        pushed = self.do(self.w.core.mail.push_reply(who, reply.bare()))
        assert pushed.refusals == [""]
        self.replies[reply.id] = reply
        self.missing[reply.id] = set(pushed.missing)
        if whole:
            self._upload(who, reply)

    @rule()
    def confirm_all(self) -> None:
        complete = [key for key in self.replies if not self.missing[key]]
        self.do(self.w.core.mail.confirm(self.who, complete))
        for key in complete:
            del self.replies[key]

    @rule()
    def collect(self) -> None:
        self.do(self.w.rest())

    @rule()
    def restart(self) -> None:
        self.do(self.w.reopen())

    # ---- what must hold

    @invariant()
    def everything_needed_is_here(self) -> None:
        for key in self.delivered & self.open.keys():
            letter, who = self.open[key]
            for object_id, content in letter.contents.items():
                assert self.do(self.w.core.objects.read(who, self.work.run.run_id, object_id)) == content
        for key, reply in self.replies.items():
            if not self.missing[key]:
                for object_id, content in reply.contents.items():
                    assert self.do(self.w.core.objects.read(self.who, self.work.run.run_id, object_id)) == content

    @invariant()
    def nothing_else_is_here(self) -> None:
        self.do(self.w.rest())
        needed = {i for letter, _who in self.open.values() for i in letter.contents}
        needed |= {i for reply in self.replies.values() for i in reply.contents}
        rows, awaited = self.do(self.w.stored())
        assert rows == len(needed)
        assert (awaited > 0) == any(self.missing[key] for key in (*self.open, *self.replies))

    # ---- inside

    def _upload(self, who: Principal, letter: Letter) -> None:
        for object_id in sorted(self.missing[letter.id]):
            assert self.do(self.w.core.objects.store(who, self.work.run.run_id, object_id, letter.contents[object_id]))
            self._here({object_id: b""})

    def _here(self, contents: dict[str, bytes]) -> None:
        for still in self.missing.values():
            still.difference_update(contents)
        for key, reply in self.replies.items():
            if not self.missing[key]:
                self.open.pop(reply.meta.reply_to_message_id, None)


TestMail = MailMachine.TestCase
TestMail.settings = settings(
    max_examples=5, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
