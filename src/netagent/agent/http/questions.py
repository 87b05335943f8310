"""Questions over HTTP: why a connection is allowed or not, and what a policy would change. Nothing here is changed.

`GET /debug/explain?from=&to=&port=&protocol=` and `POST /debug/simulate` with NetworkPolicy documents as body. Answers
are JSON, or text for people where `format=text` or an Accept header of text/plain asks for it.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec
from aiohttp import web
from msgspec import Struct, structs

from netagent.agent.dataplane.sync import Dataplane
from netagent.agent.http.clusterview import ClusterView
from netagent.agent.http.proposals import BODY_MAX_BYTES, ProposalError, read_proposal
from netagent.agent.http.slices import in_slices
from netagent.core.questions import explain, simulate
from netagent.core.questions.livecheck import LiveAnswer, Packet, livecheck
from netagent.core.questions.parties import Cluster, Question, QuestionError, frozen, parse_question
from netagent.kernel import conntrack
from netagent.kernel.conntrack import ConntrackError
from netagent.ports import NftError

COMMIT_WAIT_S = 2.0
"""How long a question waits for changes on their way to the kernel, so that both answers speak of the same state."""
ATTEMPTS = 3
"""Model and kernel are read one after the other; where they differ and the view has changed, they are read again."""

Flows = Callable[[], Awaitable[list[simulate.OpenFlow]]]


class Listing(Protocol):
    """What questions ask of nftables."""

    async def listing(self) -> list[dict[str, Any]]:
        """Our table as `nft -j list table` prints it; empty where it is absent. Raises NftError."""


def add_routes(
    app: web.Application,
    dataplane: Dataplane,
    nft: Listing,
    *,
    node_name: str,
    overlay: bool,
    flows: Flows = conntrack.flows,
) -> ClusterView:
    """Serve questions about the dataplane's view; what they are answered from is returned for others who ask.

    `overlay`: nodes reach remote pods through VXLAN of ours.
    """
    view = ClusterView(dataplane, node_name, overlay=overlay)
    questions = _Questions(dataplane, nft, view, flows)
    app.router.add_get("/debug/explain", questions.get_explain)
    app.router.add_post("/debug/simulate", questions.post_simulate)
    return view


class _Questions:
    """The two handlers."""

    def __init__(self, dataplane: Dataplane, nft: Listing, view: ClusterView, flows: Flows) -> None:
        self._dataplane = dataplane
        self._nft = nft
        self._view = view
        self._flows = flows
        self._one_at_a_time = asyncio.Lock()

    async def get_explain(self, request: web.Request) -> web.Response:
        """200 with an explain.Explanation; 400 where the question is wrong."""
        query = request.query
        try:
            question = parse_question(
                query.get("from", ""), query.get("to", ""), query.get("port", ""), query.get("protocol", "TCP")
            )
            answer = await self._explain(question)
        except QuestionError as error:
            return _problem(str(error))
        return _answer(request, answer, explain.text)

    async def post_simulate(self, request: web.Request) -> web.Response:
        """200 with a simulate.Simulation; 400 where the documents are wrong, 413 where they are too large."""
        body = await _body(request)
        if body is None:
            return _problem(f"the body is larger than {BODY_MAX_BYTES} bytes. Nothing was looked at; send fewer.", 413)
        try:
            async with self._one_at_a_time:
                deletes = request.query.get("delete", "") in ("true", "1")
                proposal = await asyncio.to_thread(read_proposal, body, deletes=deletes)
                answer = await self._simulate(proposal)
        except ProposalError as error:
            return _problem(str(error), problems=error.problems)
        return _answer(request, answer, simulate.text)

    # Explain

    async def _explain(self, question: Question) -> explain.Explanation:
        await in_slices(self._view.prepare())
        answer = await self._once(question)
        for _ in range(ATTEMPTS - 1):
            if answer.agree is not False:
                break
            answer = await self._once(question)
        return answer

    async def _once(self, question: Question) -> explain.Explanation:
        explain.flows_of(self._view.cluster(), question)  # a wrong question waits for nothing
        notes = await self._caught_up()
        try:
            listing = await self._nft.listing()
        except NftError as error:
            return structs.replace(explain.explain(self._view.cluster(), question), notes=(*notes, str(error)))
        return await self._compared(self._view.cluster(), question, listing, notes)

    async def _compared(
        self, cluster: Cluster, question: Question, listing: Sequence[Mapping[str, Any]], notes: tuple[str, ...]
    ) -> explain.Explanation:
        answer = explain.explain(cluster, question)
        if "forward" not in self._dataplane.compiler.ruleset.chains:
            return structs.replace(answer, notes=(*notes, "policy is switched off on this node: nothing is enforced"))
        compared = []
        for one in answer.answers:
            aside = explain.not_forwarded(cluster, one)
            if aside:
                compared.append(structs.replace(one, kernel=LiveAnswer(verdict="accept", reason=aside), agree=True))
                continue
            packet = Packet(
                source=one.source_ip,
                destination=one.destination_ip,
                protocol=question.protocol,
                port=question.port,
            )
            live = await asyncio.to_thread(livecheck, listing, packet)
            compared.append(structs.replace(one, kernel=live, agree=explain.agrees(one, live)))
        return structs.replace(answer, answers=tuple(compared), agree=_all_agree(compared), notes=notes)

    async def _caught_up(self) -> tuple[str, ...]:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(COMMIT_WAIT_S):
                await self._dataplane.committed()
                return ()
        why = self._dataplane.problem or "the last changes are not in the kernel yet"
        return (f"the kernel may lag behind the view: {why}",)

    # Simulate

    async def _simulate(self, proposal: simulate.Proposal) -> simulate.Simulation:
        await in_slices(self._view.prepare())
        cluster = frozen(self._view.cluster())
        try:
            flows, problems = await self._flows(), []
        except ConntrackError as error:
            flows, problems = [], [str(error)]
        answer = await asyncio.to_thread(simulate.simulate, cluster, proposal, flows)
        return structs.replace(answer, capped=(*answer.capped, *problems))


def _all_agree(answers: Sequence[explain.Answer]) -> bool | None:
    found = {answer.agree for answer in answers}
    return False if False in found else None if None in found else True


async def _body(request: web.Request) -> bytes | None:
    """The body; None where it is larger than BODY_MAX_BYTES."""
    body = bytearray()
    async for chunk in request.content.iter_chunked(1 << 16):
        body += chunk
        if len(body) > BODY_MAX_BYTES:
            return None
    return bytes(body)


def _answer(request: web.Request, answer: Any, as_text: Callable[[Any], str]) -> web.Response:
    wanted = request.query.get("format", "")
    if wanted == "text" or (not wanted and request.headers.get("Accept", "").startswith("text/plain")):
        return web.Response(text=as_text(answer))
    return _json(answer)


def _problem(error: str, status: int = 400, problems: Sequence[str] = ()) -> web.Response:
    return _json(_Problem(error, tuple(problems)), status)


class _Problem(Struct, frozen=True, omit_defaults=True):
    error: str
    problems: tuple[str, ...] = ()


def _json(answer: Struct, status: int = 200) -> web.Response:
    body = msgspec.json.format(msgspec.json.encode(answer), indent=2)
    return web.Response(body=body + b"\n", status=status, content_type="application/json")
