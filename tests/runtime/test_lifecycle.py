from __future__ import annotations

import itertools

import pytest

from pyro_async.errors import WrongState
from pyro_async.runtime.lifecycle import Phase, check_transition, public_state

LEGAL = {
    ("creating", "started"),
    ("starting", "started"),
    ("starting", "failed"),
    ("starting", "stopped"),
    ("starting", "deleting"),
    ("started", "stopping"),
    ("started", "stopped"),
    ("started", "failed"),
    ("started", "deleting"),
    ("stopping", "stopped"),
    ("stopping", "failed"),
    ("stopping", "deleting"),
    ("stopped", "starting"),
    ("stopped", "deleting"),
    ("failed", "starting"),
    ("failed", "deleting"),
}


@pytest.mark.parametrize(("current", "target"), list(itertools.product(Phase, Phase)))
def test_exactly_the_listed_transitions_are_legal(current: Phase, target: Phase) -> None:
    if (current, target) in LEGAL:
        check_transition("ws", current, target)
    else:
        with pytest.raises(WrongState, match=f"workspace ws is {current}"):
            check_transition("ws", current, target)


@pytest.mark.parametrize("phase", Phase)
def test_every_phase_has_a_public_state(phase: Phase) -> None:
    assert public_state(phase) in {"created", "started", "stopped", "failed"}


@pytest.mark.parametrize("phase", [phase for phase in Phase if phase is not Phase.DELETING])
def test_every_phase_leads_to_an_end(phase: Phase) -> None:
    reached, frontier = {phase}, {phase}
    while frontier:
        frontier = {b for a in frontier for b in Phase if (a, b) in LEGAL} - reached
        reached |= frontier
    assert Phase.DELETING in reached
