"""The command `core-hpc doctor`: look for what would stop a sweep on this machine or cluster."""
