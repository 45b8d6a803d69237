"""The ``pyro`` command."""
