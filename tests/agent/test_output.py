"""The retained output against a model of what host and agent know."""

from __future__ import annotations

import random

import pytest

from pyro_agent.output import RetainedOutput
from pyro_async.errors import InvalidArgument
from pyro_async.wire.guest import STDERR, STDOUT


@pytest.mark.parametrize("seed", range(200))
def test_whatever_is_lost_and_resumed_the_host_stores_each_byte_once(seed: int) -> None:
    dice = random.Random(seed)
    output = RetainedOutput(1000)
    produced = {STDOUT: b"", STDERR: b""}
    stored = {STDOUT: b"", STDERR: b""}
    flight: list[tuple[int, bytes]] = []  # sent, not yet stored by the host; channel -1 is a message
    granted = 0  # what the host has acknowledged on this stream
    owed = 0  # stored but not yet acknowledged

    for _ in range(300):
        action = dice.randrange(6)
        if action == 0 and not output.full:
            channel = dice.choice((STDOUT, STDERR))
            data = dice.randbytes(dice.randint(1, max(1, output.room)))[: output.room]
            output.append(channel, data)
            produced[channel] += data
        elif action == 1:
            chunk = output.take()
            if chunk is not None:
                flight.append((chunk[0], bytes(chunk[1])))
        elif action == 2 and flight:
            channel, data = flight.pop(0)
            if channel in stored:
                stored[channel] += data
            owed += len(data)
        elif action == 3 and owed:
            step = dice.randint(1, owed)
            owed -= step
            granted += step
            output.acknowledge(granted)
        elif action == 4:
            size = dice.randint(1, 50)
            output.sent_message(size)
            flight.append((-1, bytes(size)))
        elif action == 5 and dice.random() < 0.1:
            flight.clear()
            granted = owed = 0
            output.rewind(len(stored[STDOUT]), len(stored[STDERR]))
        assert 0 <= output.retained <= 1000
    flight.clear()
    output.rewind(len(stored[STDOUT]), len(stored[STDERR]))
    while (chunk := output.take()) is not None:
        stored[chunk[0]] += bytes(chunk[1])
    assert stored == produced


def test_acknowledging_makes_room() -> None:
    output = RetainedOutput(10)
    output.append(STDOUT, b"0123456789")
    assert output.full
    output.take()
    output.acknowledge(4)
    assert (output.room, output.full) == (4, False)


def test_without_offsets_everything_retained_is_sent_again() -> None:
    output = RetainedOutput(10)
    output.append(STDOUT, b"abc")
    output.take()
    output.acknowledge(1)
    output.rewind()
    chunk = output.take()
    assert chunk is not None
    assert bytes(chunk[1]) == b"bc"


@pytest.mark.parametrize(("stdout", "stderr"), [(0, 0), (4, 0), (1, 1)])
def test_an_offset_outside_of_what_is_held_is_refused_and_changes_nothing(stdout: int, stderr: int) -> None:
    output = RetainedOutput(10)
    output.append(STDOUT, b"abc")
    output.take()
    output.acknowledge(1)
    with pytest.raises(InvalidArgument):
        output.rewind(stdout, stderr)
    output.rewind(1, 0)
    assert output.retained == 2
