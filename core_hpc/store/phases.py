"""Names of the phases. They are in paths, in keys of tasks and in rows.

This module loads nothing, so the configuration can use the names without Polars.
"""

WARMUP, COLD, HINT, RESCUE = "warmup", "cold", "hint", "rescue"
SCORE, UPDATE, EVALUATE = "score", "update", "evaluate"
PHASES = (WARMUP, COLD, HINT, RESCUE, SCORE, UPDATE, EVALUATE)
GENERATION_PHASES = (COLD, RESCUE, EVALUATE)
TRAINING_PHASES = (WARMUP, UPDATE)
"""Phases whose tasks train weights, on one or several ranks."""
OUTSIDE_ITERATIONS = (WARMUP, EVALUATE)
"""Phases that are not steps of an iteration."""
