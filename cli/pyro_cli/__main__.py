"""``python -m pyro_cli``."""

from __future__ import annotations

from pyro_cli.main import main

main()
