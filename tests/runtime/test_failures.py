"""A guest that dies, hangs or lies fails its own workspace, with a cause, and nothing else."""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import msgspec
import pytest
from anyio.abc import ByteStream

from pyro_async import AsyncPyro
from pyro_async.errors import (
    GuestUnresponsive,
    HostDiskFull,
    InvalidArgument,
    LinkLost,
    ProtocolError,
    PyroError,
    VersionMismatch,
    WorkspaceFailed,
    WorkspaceNotFound,
    WrongState,
)
from pyro_async.wire.codec import Hello, Request, encode
from pyro_async.wire.connection import Connection
from pyro_async.wire.frames import HEADER, FrameType
from pyro_async.wire.guest import (
    STDOUT,
    Configure,
    Configured,
    Exec,
    ExecExit,
    ExecStarted,
    Shutdown,
)
from pyro_async.wire.mux import Role
from pyro_async.wire.resync import accept_epoch
from pyro_async.wire.stream import Stream
from tests.runtime.conftest import Open
from tests.support.eventually import eventually
from tests.support.memory_guest import MemoryDriver, MemoryMachine, Serve

pytestmark = pytest.mark.usefixtures("no_task_left")


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guests that do not power off are not waited for."""
    monkeypatch.setattr("pyro_async.runtime.workspace.POWER_OFF_GRACE", 0.1)


# --- machines that die ------------------------------------------------------------------------------------------------


async def test_death_of_a_machine_is_told_to_everyone_who_waits_and_to_nobody_else(
    client: AsyncPyro, guests: MemoryDriver
) -> None:
    await client.create_workspace("debian:12", name="doomed")
    doomed = guests.newest
    doomed.console = "line one\nkernel: everything is broken\n"
    await client.create_workspace("debian:12", name="sibling")
    failures: list[PyroError] = []

    async def expect_failure(wait: Callable[[], Awaitable[object]]) -> None:
        with pytest.raises(WorkspaceFailed) as caught:
            await wait()
        failures.append(caught.value)

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(expect_failure, lambda: client.exec_workspace("doomed", "echo part; sleep 1000"))
            tasks.start_soon(client.exec_workspace, "sibling", "sleep 0.3")
            await started(client, "doomed", 3)
            await doomed.die()
        assert (await client.exec_workspace("sibling", "echo fine")).stdout == "fine\n"
    assert len(failures) == 3
    assert all("killed by signal 9" in error.message for error in failures)
    assert all("kernel: everything is broken" in error.message for error in failures)
    status = await client.status_workspace("doomed")
    assert status.state == "failed"
    assert "everything is broken" in (status.failure or "")
    entries = (await client.logs_workspace("doomed")).entries
    assert [(entry.cause, entry.stdout) for entry in entries] == [("lost", "part\n")] * 3


async def started(client: AsyncPyro, workspace: str, count: int) -> None:
    """Waits until so many commands of the workspace have printed something."""

    async def printed() -> bool:
        return sum(1 for entry in (await client.logs_workspace(workspace)).entries if entry.stdout) >= count

    await eventually(printed)


async def test_a_failed_workspace_refuses_commands_and_can_be_started_or_deleted(
    client: AsyncPyro, guests: MemoryDriver, workspace_running: str
) -> None:
    await client.exec_workspace("ws", "echo kept >file")
    await guests.newest.die()
    await state_is(client, "failed")
    with pytest.raises(WorkspaceFailed, match=r"has failed.*killed by signal 9"):
        await client.exec_workspace("ws", "true")
    assert (await client.start_workspace("ws")).failure is None
    assert (await client.exec_workspace("ws", "cat file")).stdout == "kept\n"
    await guests.newest.die()
    await state_is(client, "failed")
    await client.delete_workspace("ws")
    with pytest.raises(WorkspaceNotFound):
        await client.status_workspace("ws")


async def state_is(client: AsyncPyro, state: str) -> None:
    async def reached() -> bool:
        return (await client.status_workspace("ws")).state == state

    await eventually(reached)


async def test_a_guest_that_powers_itself_off_is_stopped_not_failed(
    client: AsyncPyro, guests: MemoryDriver, workspace_running: str
) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(power_off_soon, guests.newest)
        with anyio.fail_after(10), pytest.raises(WorkspaceFailed, match="powered itself off"):
            await client.exec_workspace("ws", "sleep 1000")
    assert (await client.status_workspace("ws")).state == "stopped"
    assert (await client.start_workspace("ws")).state == "started"


async def power_off_soon(machine: MemoryMachine) -> None:
    await anyio.sleep(0.05)
    await machine.die("powered off", clean=True)


@pytest.mark.parametrize("clean", [False, True])
async def test_a_machine_that_dies_while_it_boots_leaves_nothing(
    client: AsyncPyro, guests: MemoryDriver, home: Path, clean: bool
) -> None:
    async def die(stream: ByteStream) -> None:
        await guests.newest.die("guest panicked", clean=clean)

    guests.impostor = die
    reason = "powered itself off" if clean else "guest panicked"
    with anyio.fail_after(10), pytest.raises(WorkspaceFailed, match=reason):
        await client.create_workspace("debian:12", name="ws")
    assert (await client.list_workspaces()).workspaces == []
    assert list((home / "workspaces").iterdir()) == []
    guests.impostor = None
    assert (await client.create_workspace("debian:12", name="ws")).state == "started"


# --- guests that do not answer ----------------------------------------------------------------------------------------


async def never_answer(stream: ByteStream) -> None:
    await anyio.sleep_forever()


async def test_an_agent_that_never_answers_is_given_up_with_its_console(
    client: AsyncPyro, guests: MemoryDriver, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyro_async.runtime.workspace.BOOT_SECONDS", 0.2)
    guests.impostor = never_answer
    with pytest.raises(GuestUnresponsive, match=r"did not answer within 0.2 s(.|\n)*agent up"):
        await client.create_workspace("debian:12", name="ws")
    assert not guests.newest.alive
    assert list((home / "workspaces").iterdir()) == []


async def test_a_link_that_cannot_be_mended_fails_the_workspace(
    client: AsyncPyro, guests: MemoryDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyro_async.runtime.link._RECONNECT_SECONDS", 0.2)
    await client.create_workspace("debian:12", name="ws")
    guests.newest.serve = never_answer
    await guests.newest.break_link()
    with anyio.fail_after(5), pytest.raises(GuestUnresponsive):
        await client.exec_workspace("ws", "true")
    await state_is(client, "failed")


async def test_cancelling_a_creation_undoes_it(client: AsyncPyro, guests: MemoryDriver, home: Path) -> None:
    guests.impostor = never_answer
    with anyio.move_on_after(0.1):
        await client.create_workspace("debian:12", name="ws")
    assert not guests.newest.alive
    assert (await client.list_workspaces()).workspaces == []
    assert list((home / "workspaces").iterdir()) == []


async def test_cancelling_a_start_stops_it(client: AsyncPyro, guests: MemoryDriver, workspace_running: str) -> None:
    await client.stop_workspace("ws")
    guests.impostor = never_answer
    with anyio.move_on_after(0.1):
        await client.start_workspace("ws")
    assert (await client.status_workspace("ws")).state == "stopped"
    assert not guests.newest.alive
    guests.impostor = None
    assert (await client.start_workspace("ws")).state == "started"


async def test_an_agent_that_does_not_shut_down_is_ended_by_force(
    client: AsyncPyro, guests: MemoryDriver, workspace_running: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyro_async.runtime.workspace.STOP_GRACE", 0.05)
    monkeypatch.setattr("pyro_async.runtime.workspace.SHUTDOWN_SECONDS", 0.05)
    monkeypatch.setattr("pyro_async.runtime.workspace.POWER_OFF_GRACE", 0.05)
    guests.newest.serve = never_answer
    await guests.newest.break_link()
    with anyio.fail_after(5):
        assert (await client.stop_workspace("ws")).state == "stopped"
    assert not guests.newest.alive


# --- guests that lie --------------------------------------------------------------------------------------------------


def hostile(exec_: Callable[[Stream, Exec], Awaitable[object]] | None = None, **answers: object) -> Serve:
    """A guest that keeps the wire's rules and answers what it likes."""

    async def handle(stream: Stream, request: Request) -> object:
        if request.method == Exec.method and exec_ is not None:
            return await exec_(stream, msgspec.msgpack.decode(request.params, type=Exec))
        if request.method in answers:
            return answers[request.method]
        if request.method == Configure.method:
            return Configured(kernel="hostile", seconds=0.0)
        if request.method == Shutdown.method:
            raise LinkLost("no")
        await anyio.sleep_forever()
        return None

    async def serve(stream: ByteStream) -> None:
        try:
            await Connection(await accept_epoch(stream), role=Role.SERVER, hello=Hello(), handler=handle).run()
        except PyroError:
            pass

    return serve


def saying(*answer: bytes) -> Serve:
    """A guest that synchronises and then says these bytes."""

    async def serve(stream: ByteStream) -> None:
        positioned = await accept_epoch(stream)
        for part in answer:
            await positioned.send(part)
        await anyio.sleep_forever()

    return serve


def frame(kind: int, stream_id: int, payload: bytes = b"") -> bytes:
    return HEADER.pack(len(payload), stream_id, kind) + payload


GREETING = frame(FrameType.HELLO, 0, encode(Hello()))


@pytest.mark.parametrize(
    ("guest", "failure"),
    [
        (saying(b"\xff" * 64), ProtocolError),
        (saying(os.urandom(4096)), ProtocolError),
        (saying(frame(FrameType.HELLO, 0, b"\xc1")), ProtocolError),
        (saying(frame(FrameType.HELLO, 0, encode(Hello(protocol=7, software="old")))), VersionMismatch),
        (saying(GREETING, frame(FrameType.OPEN, 2, b"")), ProtocolError),
        (saying(GREETING, frame(FrameType.END, 1, b"")), ProtocolError),
        (saying(GREETING, frame(FrameType.END, 1, b"\x92\xc0\x01")), ProtocolError),
        (saying(GREETING, frame(FrameType.DATA, 77, b"x")), ProtocolError),
        (hostile(configure="fine"), ProtocolError),
    ],
    ids=[
        "impossible length",
        "noise",
        "undecodable greeting",
        "another version",
        "opens a stream",
        "an empty ending",
        "an ending of the wrong type",
        "data nobody asked for",
        "a result of the wrong type",
    ],
)
async def test_a_guest_that_talks_nonsense_at_boot_is_refused_with_the_reason(
    client: AsyncPyro, guests: MemoryDriver, home: Path, guest: Serve, failure: type[PyroError]
) -> None:
    guests.impostor = guest
    with anyio.fail_after(10), pytest.raises(failure):
        await client.create_workspace("debian:12", name="ws")
    assert not guests.newest.alive
    assert list((home / "workspaces").iterdir()) == []


async def says_started(stream: Stream) -> None:
    await stream.send_message(ExecStarted(pid=1, started_at=0.0))


async def unknown_channel(stream: Stream, call: Exec) -> object:
    await says_started(stream)
    await stream.send(b"x", 9)
    return ExecExit(exit_code=0)


async def wrong_result(stream: Stream, call: Exec) -> object:
    await says_started(stream)
    return ["not an exit"]


async def impossible_exit(stream: Stream, call: Exec) -> object:
    await says_started(stream)
    return [999, None, False, False, None, 0.0]


async def wrong_message(stream: Stream, call: Exec) -> object:
    await stream.send_message({"pid": "many"})
    return ExecExit(exit_code=0)


async def started_twice(stream: Stream, call: Exec) -> object:
    await says_started(stream)
    await says_started(stream)
    return ExecExit(exit_code=0)


async def raw_frames(stream: Stream, call: Exec) -> object:
    stream._connection.mux._out.append(b"\xff" * 64)
    await says_started(stream)
    return ExecExit(exit_code=0)


async def beyond_credit(stream: Stream, call: Exec) -> object:
    await says_started(stream)
    for _ in range(5):
        stream._connection.mux._emit(FrameType.DATA + STDOUT, stream._id, bytes(4 * 1024 * 1024))
        stream._connection.wake_writer()
    return ExecExit(exit_code=0)


LIES = [unknown_channel, wrong_result, impossible_exit, wrong_message, started_twice, raw_frames, beyond_credit]


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
async def test_a_guest_that_lies_about_a_command_fails_its_workspace_only(
    client: AsyncPyro, guests: MemoryDriver, lie: Callable[[Stream, Exec], Awaitable[object]]
) -> None:
    await client.create_workspace("debian:12", name="honest")
    guests.impostor = hostile(lie)
    await client.create_workspace("debian:12", name="ws")
    with anyio.fail_after(10):
        with pytest.raises(ProtocolError):
            await client.exec_workspace("ws", "true")
        await state_is(client, "failed")
        assert not guests.newest.alive
        assert (await client.exec_workspace("honest", "echo fine")).stdout == "fine\n"
        await client.delete_workspace("ws")


async def test_an_error_code_from_the_future_reaches_the_caller_as_text(
    client: AsyncPyro, guests: MemoryDriver
) -> None:
    async def refuse(stream: Stream, call: Exec) -> object:
        raise type("FromTheFuture", (PyroError,), {"code": "from_the_future"})("cannot yet")

    guests.impostor = hostile(refuse)
    await client.create_workspace("debian:12", name="ws")
    with pytest.raises(PyroError, match="from_the_future: cannot yet"):
        await client.exec_workspace("ws", "true")


async def test_a_guest_that_ignores_cancellation_is_told_to_the_caller(
    client: AsyncPyro, guests: MemoryDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def deaf(stream: Stream, call: Exec) -> object:
        await says_started(stream)
        await anyio.sleep_forever()
        return None

    monkeypatch.setattr("pyro_async.runtime.execution.CANCEL_GRACE", 0.1)
    guests.impostor = hostile(deaf)
    await client.create_workspace("debian:12", name="ws")
    with anyio.fail_after(5), pytest.raises(GuestUnresponsive, match="has not confirmed"):
        with anyio.move_on_after(0.05):
            await client.exec_workspace("ws", "true")


# --- a full host disk -------------------------------------------------------------------------------------------------


async def test_a_full_host_disk_ends_the_command_and_tells_its_caller(
    client: AsyncPyro, guests: MemoryDriver, workspace_running: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = 0

    def limited(descriptor: int, parts: tuple[bytes, bytes]) -> int:
        nonlocal written
        written += sum(map(len, parts))
        if written > 1_000_000:
            raise OSError(errno.ENOSPC, "no space left on device")
        return os.write(descriptor, b"".join(parts))

    with monkeypatch.context() as patch:
        patch.setattr("pyro_async.runtime.output.os.writev", limited)
        with anyio.fail_after(10), pytest.raises(HostDiskFull, match="no space left for a command's output"):
            await client.exec_workspace("ws", "yes")
    assert guests.newest.system.leftovers() == []
    assert (await client.status_workspace("ws")).state == "started"
    assert (await client.exec_workspace("ws", "echo on")).stdout == "on\n"
    (entry, _) = (await client.logs_workspace("ws", limit=2)).entries
    assert entry.stdout.startswith("y\ny\n")


async def test_too_little_room_refuses_a_new_workspace(client: AsyncPyro, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyro_async.runtime.supervisor.MIN_FREE_BYTES", 1 << 60)
    with pytest.raises(HostDiskFull, match="are free below"):
        await client.create_workspace("debian:12")
    assert (await client.list_workspaces()).workspaces == []


async def test_a_disk_that_fills_up_while_a_workspace_is_made_leaves_nothing(
    client: AsyncPyro, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pyro_async.runtime.supervisor.clone_file", full)
        with pytest.raises(HostDiskFull, match="cannot make the workspace's disk"):
            await client.create_workspace("debian:12", name="ws")
    assert list((home / "workspaces").iterdir()) == []
    await client.create_workspace("debian:12", name="ws")


async def test_records_that_cannot_be_written_refuse_the_command(
    client: AsyncPyro, workspace_running: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise HostDiskFull("no space left for pyro's records")

    with monkeypatch.context() as patch:
        patch.setattr("pyro_async.runtime.store.Store.save_exec", full)
        with pytest.raises(HostDiskFull):
            await client.exec_workspace("ws", "true")
    assert (await client.exec_workspace("ws", "echo on")).stdout == "on\n"


# --- states -----------------------------------------------------------------------------------------------------------


async def test_what_a_state_does_not_allow_is_refused_with_a_hint(client: AsyncPyro, workspace_running: str) -> None:
    await client.stop_workspace("ws")
    with pytest.raises(WrongState, match=r"is stopped .start it first"):
        await client.exec_workspace("ws", "true")
    assert (await client.stop_workspace("ws")).state == "stopped"


async def test_a_refused_command_leaves_no_trace(client: AsyncPyro, workspace_running: str) -> None:
    await client.exec_workspace("ws", "true")
    with pytest.raises(InvalidArgument, match="working directory"):
        await client.exec_workspace("ws", "true", cwd="/no/such/place")
    assert (await client.status_workspace("ws")).command_count == 1
    assert (await client.exec_workspace("ws", "true")).sequence == 2


@pytest.mark.parametrize("state", ["started", "stopped", "failed", "busy"])
async def test_a_workspace_can_be_deleted_in_every_state(
    client: AsyncPyro, guests: MemoryDriver, home: Path, workspace_running: str, state: str
) -> None:
    async with anyio.create_task_group() as tasks:
        if state == "stopped":
            await client.stop_workspace("ws")
        elif state == "failed":
            await guests.newest.die()
            await state_is(client, "failed")
        elif state == "busy":

            async def run() -> None:
                with pytest.raises(WorkspaceNotFound, match="was deleted"):
                    await client.exec_workspace("ws", "echo up; sleep 1000")

            tasks.start_soon(run)
            await started(client, "ws", 1)
        with anyio.fail_after(5):
            assert (await client.delete_workspace("ws")).name == "ws"
    assert not guests.newest.alive
    assert guests.newest.system.leftovers() == []
    assert list((home / "workspaces").iterdir()) == []
    with pytest.raises(WorkspaceNotFound):
        await client.delete_workspace("ws")


async def test_transitions_of_one_workspace_take_turns(
    client: AsyncPyro, guests: MemoryDriver, workspace_running: str
) -> None:
    for _ in range(3):
        async with anyio.create_task_group() as tasks:
            for transition in (client.stop_workspace, client.start_workspace, client.stop_workspace) * 3:
                tasks.start_soon(transition, "ws")
        assert (await client.status_workspace("ws")).state in ("started", "stopped")
        await client.start_workspace("ws")
        assert (await client.exec_workspace("ws", "echo on")).stdout == "on\n"
        assert sum(machine.alive for machine in guests.machines.values()) == 1


async def test_of_several_deletions_one_succeeds_and_the_rest_find_nothing(
    client: AsyncPyro, workspace_running: str
) -> None:
    outcomes: list[str] = []

    async def delete() -> None:
        try:
            await client.delete_workspace("ws")
            outcomes.append("deleted")
        except WorkspaceNotFound:
            outcomes.append("not found")

    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(delete)
    assert sorted(outcomes) == ["deleted", "not found", "not found", "not found"]


async def test_creating_one_name_twice_at_once_makes_one_workspace(client: AsyncPyro) -> None:
    outcomes: list[str] = []

    async def create() -> None:
        try:
            await client.create_workspace("debian:12", name="ws")
            outcomes.append("created")
        except PyroError as error:
            outcomes.append(error.code)

    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(create)
    assert sorted(outcomes) == ["conflict", "conflict", "conflict", "created"]


async def test_stopping_ends_running_commands_with_a_reason(client: AsyncPyro, workspace_running: str) -> None:
    results = []

    async def run() -> None:
        results.append(await client.exec_workspace("ws", "trap '' TERM; echo up; sleep 1000 & wait; wait; sleep 1000"))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        await started(client, "ws", 1)
        await client.stop_workspace("ws")
    assert results[0].stdout == "up\n"
    assert results[0].exit_code is not None


async def test_everything_can_be_opened_twice_in_turn(open_runtime: Open) -> None:
    for _ in range(2):
        async with open_runtime() as client:
            await client.create_workspace("debian:12")
    async with open_runtime() as client:
        assert len((await client.list_workspaces()).workspaces) == 2
