"""nftables through libnftables' own Python module, in a worker thread; small transactions and names without it.

The library is not thread-safe and each call blocks, so one thread owns it; ctypes releases the interpreter lock while
the kernel works. A script is one transaction: the kernel takes all of it or nothing. For every script the library reads
back what the kernel has of tables and sets, so its cost grows with the ruleset, not with the change. Small transactions
go another way: few elements from the event loop, everything else from a thread of its own.
"""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import nftables
import orjson

from netagent.kernel.nfbatch import BatchSocket
from netagent.kernel.nfinventory import read_counters, read_inventory
from netagent.ports import CounterValue, NftError, SmallTransaction, TableInventory

TABLE_NAME = "netagent"
TABLE = f"inet {TABLE_NAME}"
FEW_ELEMENTS = 300
"""Their transaction takes less time than a change of threads; more hold the event loop for a millisecond."""
ERROR_LINES = 4
"""Lines of libnftables' complaint that are kept: it repeats the offending command, which may be long."""
ERROR_LINE_CHARS = 300


class LibNftables:
    """Our table in the network namespace of the process."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="nft")
        self._batch_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="nft-batch")
        self._local = threading.local()
        self._batches = BatchSocket(TABLE_NAME)

    async def open(self) -> None:
        """Have the sockets that transactions go through, which otherwise come with the first. Raises NftError."""
        await self._call(self._list, "list tables inet", False)
        self._batches.open()

    async def run(self, commands: str) -> None:
        """Apply all of the commands or nothing. Raises NftError; then the kernel is unchanged."""
        await self._call(self._run, commands)

    async def run_small(self, transaction: SmallTransaction) -> None:
        """Apply all of a small transaction or nothing; few elements from the event loop.

        Raises NftError; then the kernel is unchanged, unless the error says that the answer was lost.
        """
        if transaction.objects or transaction.elements > FEW_ELEMENTS:
            await asyncio.get_running_loop().run_in_executor(self._batch_thread, self._batches.commit, transaction)
        else:
            self._batches.commit(transaction)

    async def inventory(self) -> TableInventory:
        """What our table holds in the kernel now, without set elements. Raises NftError."""
        return await asyncio.to_thread(read_inventory, TABLE_NAME)

    async def counters(self) -> dict[str, CounterValue]:
        """The named counters of our table. Raises NftError."""
        return await asyncio.to_thread(read_counters, TABLE_NAME)

    async def text(self) -> str:
        """Our table as `nft list table` prints it; empty where it is absent. Raises NftError."""
        return await self._call(self._list, f"list table {TABLE}", False) or ""

    async def listing(self) -> list[dict[str, Any]]:
        """Our table as `nft -j list table` prints it, with all elements; empty where it is absent. Raises NftError."""
        return await self.query(f"list table {TABLE}")

    async def json(self) -> str:
        """The same as text, not read. Raises NftError."""
        return await self._call(self._list, f"list table {TABLE}", True) or ""

    async def query(self, command: str) -> list[dict[str, Any]]:
        """What `nft -j <command>` prints, of any table; empty where it is absent. Raises NftError."""
        return await self._call(self._query, command)  # type: ignore[no-any-return]

    def close(self) -> None:
        """End the worker threads after their current calls."""
        self._thread.shutdown(wait=True)
        self._batch_thread.shutdown(wait=True)
        self._batches.close()

    async def _call(self, function: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    # In the worker thread

    def _library(self) -> Any:
        library = getattr(self._local, "library", None)
        if library is None:
            library = self._local.library = nftables.Nftables()
            library.set_handle_output(False)
            library.set_numeric_proto_output(False)
        return library

    def _run(self, commands: str) -> None:
        library = self._library()
        library.set_json_output(False)
        code, _, error = library.cmd(commands)
        if code != 0:
            raise NftError(
                f"the kernel refused a transaction of {commands.count(chr(10))} commands on table {TABLE}: "
                f"{brief(error)}. The old rules stay in force; netagent reads the table back and tries again. "
                f"If it repeats: compare `nft list table {TABLE}` with /debug/ruleset."
            )

    def _query(self, command: str) -> list[dict[str, Any]]:
        text = self._list(command, True)
        return orjson.loads(text)["nftables"] if text else []

    def _list(self, command: str, as_json: bool) -> str | None:
        library = self._library()
        library.set_json_output(as_json)
        code, output, error = library.cmd(command)
        if code == 0:
            return str(output)
        if "No such file or directory" in str(error):
            return None
        raise NftError(f"nft {command} failed: {brief(error)}. Nothing was changed.")


def brief(error: str) -> str:
    """The beginning of libnftables' complaint, in one line."""
    lines = [line.strip()[:ERROR_LINE_CHARS] for line in str(error).splitlines() if line.strip(" ^~")]
    return "; ".join(lines[:ERROR_LINES]) or "no reason given"
