"""Instructions from ServerApps to nodes, and the replies to them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass

from trellis_superlink.core.parcels import INLINE_ANSWER, Parcel, Pushed
from trellis_superlink.core.principals import Principal


@dataclass(frozen=True)
class Reply:
    instruction_id: str
    parcel: Parcel


class Mail:
    async def push_instructions(self, who: Principal, parcels: Sequence[Parcel]) -> Pushed:
        """From the executor of a run. A message becomes deliverable once all its objects are here. RunOver."""

    async def push_reply(self, who: Principal, parcel: Parcel, *, runtime: float | None = None) -> Pushed:
        """From a node; `runtime` in seconds. The refusal says which rule of WIRE.md 2.7 it broke (stock nodes are not
        told). The identical reply again is taken; a different second one is refused. RunOver."""

    async def wait_for_instructions(
        self,
        who: Principal,
        *,
        limit: int = 1,
        working_on: Collection[str] = (),
        timeout: float,
        inline: int = 0,
    ) -> list[Parcel]:
        """What is to be done by the node, as soon as there is any; [] after `timeout` seconds. Up to `inline` bytes of
        small objects come along. An instruction delivered before, unanswered and not in `working_on` was lost: it comes
        again, three times at most, then it is answered with error 8. A newer wait of the same node ends this one."""

    def replies(
        self, who: Principal, instruction_ids: Sequence[str], *, inline: int = INLINE_ANSWER
    ) -> AsyncIterator[Reply]:
        """Each reply as it comes, in order of arrival, `inline` bytes of small objects with each; ends after the last.
        For what cannot come any more, the error the SuperLink makes (3 expired or never there, 4 reply expired, 5 node
        unavailable, 8 node crashed). RunOver."""

    async def confirm(self, who: Principal, message_ids: Sequence[str]) -> None:
        """The receiver has these messages. Replies' objects are freed; instructions' only once they are answered."""
