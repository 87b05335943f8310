"""`netagent replay dump FILE`: the view of an agent lives again, compiles its ruleset and answers questions.

Needs nothing but the file: no agent, no kernel, no rights.
"""

import argparse
import io
import sys
import tarfile
import time
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias, TypeVar

import msgspec
import orjson
from msgspec import structs

from netagent.core.questions import explain
from netagent.core.questions.livecheck import LiveAnswer, Packet, livecheck
from netagent.core.questions.parties import Cluster, Question, QuestionError, parse_question
from netagent.core.questions.replay import FORMAT, TOP, About, Replayed, Situation, View, replay
from netagent.core.questions.tabletext import Difference, Table, compare, desired, listed, snapshot, text
from netagent.ports import NetagentError
from netagent.printable import one_line

MEMBER_BYTES = 1 << 28
"""A larger file in the archive is refused: the kernel's table of 200,000 elements has some 30 MB."""
TOTAL_BYTES = 1 << 31
DIFFERENT_STATUS = 1

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
T = TypeVar("T")


class ReplayError(NetagentError):
    """The file is no dump that can be read."""


def add_commands(subparsers: Subparsers) -> None:
    """Add replay to the command line."""
    parser = subparsers.add_parser("replay", help="what an agent wanted, from its dump")
    kinds = parser.add_subparsers(required=True, metavar="WHAT")
    dump = kinds.add_parser(
        "dump",
        help="a file of `netagent dump` or /debug/dump",
        description="Rebuild an agent's view from its dump, compile the ruleset of that view, print it, and compare it "
        f"with the one that its kernel had: exit status {DIFFERENT_STATUS} where they differ. With --explain it "
        "answers as `netagent explain` would have there and then.",
    )
    dump.add_argument("file", metavar="FILE")
    dump.add_argument(
        "--explain",
        nargs=3,
        action="append",
        default=[],
        metavar=("FROM", "TO", "PORT"),
        help="why a connection was allowed or denied: shop/web shop/db 5432/TCP; ICMP has no port; repeatable",
    )
    dump.add_argument("--quiet", action="store_true", help="do not print the ruleset")
    dump.add_argument("--output", "-o", choices=("text", "json"), default="text")
    dump.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    questions = [_question(*words) for words in options.explain]
    dump = _Dump(_members(options.file))
    answers = [dump.explain(question) for question in questions]
    if questions:
        _print_answers(answers, as_json=options.output == "json")
        return 0
    wanted, found = dump.wanted(), dump.kernel()
    difference = compare(wanted, found) if found is not None else None
    if options.output == "json":
        _print_json(dump, wanted, difference, quiet=options.quiet)
    else:
        _print_text(dump, wanted, difference, quiet=options.quiet)
    return DIFFERENT_STATUS if difference is not None and not difference.equal else 0


class _Dump:
    """A dump that was read."""

    def __init__(self, members: Mapping[str, bytes]) -> None:
        self._members = members
        self.about = self._read("about.json", About)
        if self.about.format != FORMAT:
            raise ReplayError(
                f"the dump has format {self.about.format} of netagent {self.about.version}; this one reads {FORMAT}. "
                "Use the version that made it."
            )
        self.situation = self._read("situation.json", Situation)
        self.replayed: Replayed = replay(self._view(), self.situation)

    def wanted(self) -> Table:
        """The ruleset of the view."""
        return desired(snapshot(self.replayed.compiler.ruleset, self.situation.mark))

    def kernel(self) -> Table | None:
        """The ruleset of the kernel; None where the agent could not read it."""
        kernel = self._members.get("ruleset/kernel.nft")
        return listed(io.StringIO(kernel.decode())) if kernel is not None else None

    def explain(self, question: Question) -> explain.Explanation:
        """As the agent would have. Raises QuestionError."""
        cluster = self.replayed.cluster(self.situation)
        answer = explain.explain(cluster, question)
        notes = (f"as of the dump of node {self.situation.node} at {_time(self.about.at_s)}", *self.about.notes)
        kernel = self._members.get("ruleset/kernel.json")
        if kernel is None or not self.situation.frame.policy:
            return structs.replace(answer, notes=notes)
        listing = orjson.loads(kernel)["nftables"] if kernel else []
        compared = tuple(_beside_kernel(cluster, one, question, listing) for one in answer.answers)
        agreed = {one.agree for one in compared}
        agree = False if False in agreed else None if None in agreed else True
        return structs.replace(answer, answers=compared, agree=agree, notes=notes)

    def _view(self) -> View:
        files = sorted(name for name in self._members if name.startswith("view/"))
        records: dict[str, list[Any]] = {field: [] for field in View.__struct_fields__}
        types = {field.name: field.type for field in structs.fields(View)}
        for name in files:
            kind = name.removeprefix("view/").partition("-")[0]
            if kind in records:
                records[kind] += self._lines(name, types[kind])
        return View(**records)

    def _lines(self, name: str, into: Any) -> list[Any]:
        (record,) = into.__args__
        decoder = msgspec.json.Decoder(record)
        try:
            return [decoder.decode(line) for line in self._members[name].splitlines() if line]
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ReplayError(f"{name} in the dump: {error}. Nothing was replayed.") from None

    def _read(self, name: str, into: type[T]) -> T:
        try:
            return msgspec.json.decode(self._members[name], type=into)
        except KeyError:
            raise ReplayError(f"the archive has no {name}: it is no dump of netagent.") from None
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ReplayError(f"{name} in the dump: {error}. Nothing was replayed.") from None


def _beside_kernel(
    cluster: Cluster, one: explain.Answer, question: Question, listing: list[dict[str, Any]]
) -> explain.Answer:
    if aside := explain.not_forwarded(cluster, one):
        return structs.replace(one, kernel=LiveAnswer(verdict="accept", reason=aside), agree=True)
    packet = Packet(
        source=one.source_ip, destination=one.destination_ip, protocol=question.protocol, port=question.port
    )
    live = livecheck(listing, packet)
    return structs.replace(one, kernel=live, agree=explain.agrees(one, live))


def _question(source: str, destination: str, port: str) -> Question:
    number, _, protocol = port.partition("/")
    if not number.isdigit():
        number, protocol = "", number
    try:
        return parse_question(source, destination, number, protocol or "TCP")
    except QuestionError as error:
        raise ReplayError(f"--explain {source} {destination} {port}: {error}") from None


def _members(file: str) -> dict[str, bytes]:
    """Name -> content of the files in the archive; nothing is unpacked to disk. Raises ReplayError."""
    try:
        with tarfile.open(file, "r:gz") as archive:
            return dict(_contents(archive))
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ReplayError(f"{file}: {reason}. Nothing was replayed; give a file of `netagent dump`.") from None


def _contents(archive: tarfile.TarFile) -> Iterator[tuple[str, bytes]]:
    total_bytes = 0
    for member in archive:
        total_bytes += member.size
        if member.size > MEMBER_BYTES or total_bytes > TOTAL_BYTES:
            raise ReplayError(f"{member.name} in the dump is too large. Nothing was replayed.")
        content = archive.extractfile(member) if member.isreg() else None
        if content is not None:
            yield member.name.removeprefix(f"{TOP}/"), content.read()


# What is printed


def _print_answers(answers: list[explain.Explanation], *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(answers), indent=2).decode() + "\n")
    else:
        sys.stdout.write("\n".join(map(explain.text, answers)))


def _print_text(dump: _Dump, wanted: Table, difference: Difference | None, *, quiet: bool) -> None:
    about = dump.about
    print(one_line(f"node {about.node} at {_time(about.at_s)}, netagent {about.version}: {_words(wanted.sizes())}"))
    for note in about.notes:
        print(one_line(f"note: {note}"))
    if not quiet:
        sys.stdout.writelines(f"{one_line(line)}\n" for line in text(wanted))
    if difference is None:
        print("the dump has no ruleset of the kernel: nothing was compared")
    elif difference.equal:
        print("the kernel had what this view compiles to")
    else:
        print(f"the kernel lacked {difference.lacks} and had {difference.extra} too much")
        sys.stdout.writelines(f"{one_line(str(mismatch))}\n" for mismatch in difference.mismatches)


def _print_json(dump: _Dump, wanted: Table, difference: Difference | None, *, quiet: bool) -> None:
    answer = {
        "about": dump.about,
        "sizes": wanted.sizes(),
        "equal": difference.equal if difference is not None else None,
        "lacks": difference.lacks if difference is not None else None,
        "extra": difference.extra if difference is not None else None,
        "mismatches": difference.mismatches if difference is not None else [],
        "ruleset": None if quiet else list(text(wanted)),
    }
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(answer), indent=2).decode() + "\n")


def _time(at_s: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at_s))


def _words(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sizes.items())
