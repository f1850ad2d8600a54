"""The proxy of a site, as a process of its own: it knows CONNECT and nothing else.

`python site_proxy.py [USER:PASSWORD]` prints its port, then each request line that it answers; with an argument it
wants those credentials.
"""

from __future__ import annotations

import asyncio
import base64
import sys


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        return
    finally:
        writer.close()


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    first, *headers = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
    wanted = [f"proxy-authorization: Basic {base64.b64encode(user.encode()).decode()}" for user in sys.argv[1:]]
    shown = [f"{name.lower()}:{value}" for name, _, value in (line.partition(":") for line in headers)]
    allowed = set(wanted) <= set(shown)
    print(first if allowed else f"407 {first}", flush=True)
    if not allowed:
        writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
        writer.close()
        return
    host, port = first.split()[1].rsplit(":", 1)
    there = await asyncio.open_connection(host, int(port))
    writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
    await asyncio.gather(pump(reader, there[1]), pump(there[0], writer))


async def main() -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
