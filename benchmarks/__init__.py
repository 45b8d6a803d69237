"""Benchmarks: pyro and a baseline for it, measured in turn in the same run.

``python -m benchmarks [--quick] [--only NAME…] [--output DIR]`` prints a table and writes ``results.json`` and
``results.png``. Nothing here fails because something is slow.
"""
