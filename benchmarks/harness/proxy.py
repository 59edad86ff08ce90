"""A stretch of network on this machine: it delays what passes, and can be cut and healed."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator

CHUNK = 1 << 16


class Proxy:
    """Passes bytes between a port of its own and another one, each way so many seconds late.

    A ``cut`` drops nothing that was sent, and lets nothing through: what a cable does that is pulled.
    """

    def __init__(self, target: int, delay: float = 0.0) -> None:
        self.target, self.delay, self.port = target, delay, 0
        self._whole = asyncio.Event()
        self._whole.set()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()
        self._ready.wait()

    def cut(self) -> None:
        """Nothing passes any more."""
        self._loop.call_soon_threadsafe(self._whole.clear)

    def heal(self) -> None:
        """All passes again, what was held back first."""
        self._loop.call_soon_threadsafe(self._whole.set)

    def close(self) -> None:
        """End it."""
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._accept, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()

    async def _accept(self, here: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        await self._whole.wait()
        try:
            there, onward = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            back.close()
            return
        await asyncio.gather(self._pass(here, onward), self._pass(there, back))

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        """Two tasks, so that a delay costs time and no rate."""
        late: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=1024)

        async def send() -> None:
            while True:
                due, data = await late.get()
                if (wait := due - time.monotonic()) > 0:
                    await asyncio.sleep(wait)
                await self._whole.wait()
                if not data:
                    break
                sink.write(data)
                await sink.drain()
            sink.close()

        sending = asyncio.ensure_future(send())
        with contextlib.suppress(OSError):
            while data := await source.read(CHUNK):
                await self._whole.wait()
                await late.put((time.monotonic() + self.delay, data))
        await late.put((time.monotonic() + self.delay, b""))
        with contextlib.suppress(OSError):
            await sending


@contextlib.contextmanager
def proxy(target: int, delay: float = 0.0) -> Iterator[Proxy]:
    """One that ends with the block."""
    made = Proxy(target, delay)
    try:
        yield made
    finally:
        made.close()
