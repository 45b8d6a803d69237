"""The runtime: owns all workspaces of a home, in the daemon or embedded in a program."""
