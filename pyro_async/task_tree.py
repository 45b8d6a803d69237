"""The tree of living tasks of a process, for people who ask what it is doing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Final

import anyio
import msgspec

__all__ = ["TaskEntry", "TaskNode", "running_tasks", "subtree", "task_tree"]

#: What a task without a parent among the living is called: the program's own.
_ROOT: Final = "root"


class TaskEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One living task; the parent owns the group it runs in."""

    id: int
    parent_id: int | None
    name: str


class TaskNode(msgspec.Struct, frozen=True, kw_only=True):
    """A task with the tasks of the groups it owns, by name."""

    name: str
    children: list[TaskNode] = []


def running_tasks() -> list[TaskEntry]:
    """All tasks of this event loop."""
    return [TaskEntry(id=task.id, parent_id=task.parent_id, name=task.name or "") for task in anyio.get_running_tasks()]


def task_tree(entries: Iterable[TaskEntry]) -> TaskNode:
    """Arranges tasks below the one that owns all others."""
    children: defaultdict[int | None, list[TaskEntry]] = defaultdict(list)
    known = {entry.id: entry for entry in entries}
    for entry in known.values():
        children[entry.parent_id if entry.parent_id in known else None].append(entry)

    def node(entry: TaskEntry) -> TaskNode:
        return TaskNode(name=_readable(entry.name), children=nodes(children[entry.id]))

    def nodes(found: list[TaskEntry]) -> list[TaskNode]:
        return sorted((node(entry) for entry in found), key=lambda node: node.name)

    # More than one has no parent only where a library has started tasks of its own: they are shown beside ours.
    tops = sorted(children[None], key=lambda entry: -_size(entry, children))
    ours = nodes(children[tops[0].id]) if tops else []
    return TaskNode(name=_ROOT, children=[*ours, *nodes(tops[1:])])


def _size(entry: TaskEntry, children: dict[int | None, list[TaskEntry]]) -> int:
    return 1 + sum(_size(child, children) for child in children.get(entry.id, ()))


def subtree(tree: TaskNode, name: str) -> TaskNode | None:
    """The part below the first task of this name, or None."""
    if tree.name == name:
        return tree
    return next((found for child in tree.children if (found := subtree(child, name)) is not None), None)


def _readable(name: str) -> str:
    """Tasks that nobody named bear the name of their function: only its last part tells something."""
    return name if " " in name else name.rpartition(".")[2].strip("_").replace("_", " ")
