"""The wire between client, daemon and guest: frames, a sans-IO multiplexer, and connections over any byte stream.

Nothing here knows virtual machines. The guest imports this package, so importing it stays cheap.
"""
