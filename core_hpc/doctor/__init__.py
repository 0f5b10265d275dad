"""What would stop a sweep here (python -m core_hpc.doctor)."""
