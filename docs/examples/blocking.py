"""The SDK without async."""

from __future__ import annotations

from pyro_async import Pyro
from pyro_async.operations import ExecOutput


def main() -> None:
    """Creates a workspace, runs two commands and deletes it."""
    with Pyro() as client:
        workspace = client.create_workspace("debian:12").workspace_id
        try:
            print(client.exec_workspace(workspace, ["python3", "-c", "print(6*7)"]).stdout.strip())
            with client.stream_exec(workspace, "echo streamed") as events:
                for event in events:
                    if isinstance(event, ExecOutput):
                        print(event.data.decode().strip())
        finally:
            client.delete_workspace(workspace)


if __name__ == "__main__":
    main()
