"""A proxy that delays what a server answers: ``python -m benchmarks.delay HOST PORT SECONDS``.

It stands for the way to a hosted database. It prints its port, then serves until it is killed, and prints the
number of round trips so far every 50 ms: how often a client has sent something after an answer.
"""

import asyncio
import sys


class Delay:
    """Connections to one server, each with its own order."""

    def __init__(self, host: str, port: int, seconds: float) -> None:
        self._server = host, port
        self._seconds = seconds
        self.round_trips = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Relay one connection until one side closes it."""
        answers, requests = await asyncio.open_connection(*self._server)
        on_the_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        answered = True

        async def send() -> None:
            nonlocal answered
            while data := await reader.read(1 << 16):
                self.round_trips += answered
                answered = False
                requests.write(data)
                await requests.drain()

        async def receive() -> None:
            while data := await answers.read(1 << 16):
                on_the_way.put_nowait((asyncio.get_running_loop().time() + self._seconds, data))

        async def deliver() -> None:
            nonlocal answered
            while True:
                due, data = await on_the_way.get()
                await asyncio.sleep(due - asyncio.get_running_loop().time())
                answered = True
                writer.write(data)
                await writer.drain()

        tasks = [asyncio.ensure_future(part()) for part in (send, receive, deliver)]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            requests.close()
            writer.close()


async def main(host: str, port: str, seconds: str) -> None:
    """Serve until this process is killed."""
    delay = Delay(host, int(port), float(seconds))
    server = await asyncio.start_server(delay.serve, "127.0.0.1", 0)
    print("port", server.sockets[0].getsockname()[1], flush=True)
    before = 0
    while True:
        await asyncio.sleep(0.05)
        if delay.round_trips != before:
            before = delay.round_trips
            print(before, flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
