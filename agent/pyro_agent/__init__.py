"""pyro's agent: PID 1 of every workspace. It runs commands for the host over one connection at a time."""
