"""The command `core-hpc status`: how far sweeps are."""
