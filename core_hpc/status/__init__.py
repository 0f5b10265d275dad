"""How sweeps are getting on (python -m core_hpc.status)."""
