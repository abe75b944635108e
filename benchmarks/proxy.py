"""Forward TCP connections to the database over links, one for each worker, that can be stalled, reset and closed.

All links run in one asyncio loop in a thread of its own; the methods of Link can be called from any other thread. A
link with a certificate encrypts the side of the worker, since the embedded PostgreSQL has no TLS.
"""

import asyncio
import ssl
import subprocess
import threading
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

HOST = "127.0.0.1"
CHUNK_BYTES = 65536
_CALL_TIMEOUT_S = 10
# The first message of a client that asks for TLS, in PostgreSQL's protocol: its length and the code of SSLRequest.
_SSL_REQUEST = (8).to_bytes(4) + (80877103).to_bytes(4)


def create_certificate(folder: Path) -> Path:
    """Create a self-signed certificate for this machine and its key in one file, with openssl."""
    path = folder / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=hpopt", "-addext", f"subjectAltName=IP:{HOST}"]
    subprocess.run([*command, "-keyout", path, "-out", path], check=True, capture_output=True)
    return path


class Network:
    """Links to one port of this machine, each of which listens on a port of its own."""

    def __init__(self, target_port: int, n_links: int, certificate: Path | None = None) -> None:
        """With a certificate, every second link has it."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="network", daemon=True)
        self.links = [Link(self._loop, target_port, certificate if number % 2 else None) for number in range(n_links)]

    def __enter__(self) -> Self:
        self._thread.start()
        for link in self.links:
            link.accept()
        return self

    def __exit__(self, *exc: object) -> None:
        for link in self.links:
            link.refuse()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Link:
    """The connections of one worker to the database."""

    def __init__(self, loop: asyncio.AbstractEventLoop, target_port: int, certificate: Path | None = None) -> None:
        self.port = 0
        self.certificate = certificate
        self._tls: ssl.SSLContext | None = None
        if certificate is not None:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(certificate)
        self._loop = loop
        self._target_port = target_port
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        # Data that is sent while a gate is closed waits, as TCP sends the packets of a cut cable again.
        self._requests, self._replies = asyncio.Event(), asyncio.Event()
        self._requests.set()
        self._replies.set()

    def __repr__(self) -> str:
        return f"Link({self.port})"

    @property
    def query(self) -> dict[str, str]:
        """The options of libpq for this link."""
        return {} if self.certificate is None else {"sslmode": "verify-full", "sslrootcert": str(self.certificate)}

    def accept(self) -> None:
        """Listen, on the same port each time."""
        self._call(self._listen())

    def refuse(self) -> None:
        """Close the listener and reset every connection; new ones are refused."""
        self._call(self._close())

    def stall(self, *, replies_only: bool) -> None:
        """Stop forwarding without closing the connections: replies only, or requests too."""
        self._call(self._set_gates(requests=replies_only, replies=False))

    def flow(self, *, reset: bool) -> None:
        """Forward again, also the data that waited, or reset the connections, which loses it."""
        self._call(self._reopen(reset=reset))

    def _call(self, coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(_CALL_TIMEOUT_S)

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, HOST, self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        await self._reset()

    async def _set_gates(self, *, requests: bool, replies: bool) -> None:
        for gate, is_open in ((self._requests, requests), (self._replies, replies)):
            if is_open:
                gate.set()
            else:
                gate.clear()

    async def _reopen(self, *, reset: bool) -> None:
        if reset:
            await self._reset()
        await self._set_gates(requests=True, replies=True)

    async def _reset(self) -> None:
        tasks = list(self._tasks)
        for writer in self._writers:
            writer.transport.abort()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None:
            return
        self._tasks.add(task)
        self._writers.add(to_client)
        try:
            with suppress(OSError, EOFError, asyncio.CancelledError):
                if self._tls is not None:
                    await self._encrypt(client, to_client, self._tls)
                await self._forward(client, to_client)
        finally:
            to_client.close()
            self._writers.discard(to_client)
            self._tasks.discard(task)

    async def _encrypt(
        self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter, tls: ssl.SSLContext
    ) -> None:
        """Answer the request for TLS; a client without one is refused."""
        if await client.readexactly(len(_SSL_REQUEST)) != _SSL_REQUEST:
            raise ConnectionError("the client asks for no TLS")
        await self._requests.wait()
        to_client.write(b"S")
        await to_client.drain()
        await to_client.start_tls(tls)

    async def _forward(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        server, to_server = await asyncio.open_connection(HOST, self._target_port)
        self._writers.add(to_server)
        pumps = [
            asyncio.ensure_future(_pump(client, to_server, self._requests)),
            asyncio.ensure_future(_pump(server, to_client, self._replies)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            # Closed and not reset, so that written data still arrives.
            to_server.close()
            self._writers.discard(to_server)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event) -> None:
    while True:
        data = await reader.read(CHUNK_BYTES)
        # A stalled link does not forward the end of a connection either.
        await gate.wait()
        if not data:
            return
        writer.write(data)
        await writer.drain()
