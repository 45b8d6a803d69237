"""Events of a call, as progress notifications."""

from __future__ import annotations

import anyio
from anyio.lowlevel import checkpoint

from pyro_async.operations import ExecOutput, ExecStarted, Progress
from pyro_mcp_server.progress import MESSAGE_CHARS, progress_feed


class Client:
    """Takes notifications once it is let."""

    def __init__(self, *, reading: bool = True) -> None:
        self.values: list[float] = []
        self.messages: list[str] = []
        self.reading = anyio.Event()
        self.told = anyio.Event()
        if reading:
            self.reading.set()

    async def report(self, progress: float, total: float | None, message: str | None) -> None:
        await self.reading.wait()
        self.values.append(progress)
        self.messages.append(message or "")
        self.told.set()


def out(data: bytes) -> ExecOutput:
    return ExecOutput(stream="stdout", data=data)


async def test_the_first_event_is_sent_at_once_and_the_rest_joined() -> None:
    client = Client()
    with anyio.fail_after(5):
        async with progress_feed(client.report) as take:
            take(ExecStarted(workspace_id="w", exec_id="e1", sequence=1, started_at=0))
            await client.told.wait()
            for number in range(100):
                take(out(b"%d\n" % number))
                await checkpoint()
    assert client.messages[0] == "started exec_id e1\n"
    assert "".join(client.messages[1:]) == "".join(f"{number}\n" for number in range(100))
    assert len(client.messages) < 10
    assert client.values == [float(number + 1) for number in range(len(client.values))]


async def test_a_client_that_does_not_read_holds_nothing_up_and_gets_the_tail() -> None:
    client = Client(reading=False)
    with anyio.fail_after(5):
        async with progress_feed(client.report) as take:
            take(out(b"begun\n"))
            await anyio.wait_all_tasks_blocked()
            for _ in range(1000):
                take(out(b"x" * 10_000))
            take(out(b"end"))
            client.reading.set()
    assert client.messages[0] == "begun\n"
    assert [len(message) for message in client.messages[1:]] == [MESSAGE_CHARS]
    assert client.messages[1].endswith("xend")


async def test_a_character_cut_in_two_arrives_whole() -> None:
    client = Client()
    async with progress_feed(client.report) as take:
        for byte in "süß €\n".encode():
            take(out(bytes([byte])))
            await checkpoint()
    assert "".join(client.messages) == "süß €\n"


async def test_steps_say_how_far_they_are() -> None:
    client = Client()
    async with progress_feed(client.report) as take:
        take(Progress(phase="packages", detail="fetching", fraction=0.25))
        take(Progress(phase="boot"))
    assert "".join(client.messages) == "packages (25%): fetching\nboot\n"


async def test_where_nothing_happens_nothing_is_sent() -> None:
    client = Client()
    async with progress_feed(client.report):
        pass
    assert client.messages == []
