"""Learning rate of an optimizer step in closed form (METHOD.md section 5).

The position in the schedule is the number of optimizer steps already done, so a resumed run needs
no scheduler object. This module does not decide the horizon: the caller passes the total number of
steps.
"""

from __future__ import annotations

import math

from core_hpc.config.update import UpdateSection


def learning_rate(settings: UpdateSection, *, steps_done: int, total_steps: int) -> float:
    """Learning rate of the step that follows `steps_done` steps, of `total_steps` in all.

    Warm-up is linear and starts above zero, since a first step of rate 0 would be wasted. The
    cosine ends at zero after the last step. Beyond the horizon the rate is that of the last planned
    step, so that a run which was made longer does not silently stop learning.

    >>> s = UpdateSection(learning_rate=1.0, warmup_share=0.2)
    >>> [round(learning_rate(s, steps_done=k, total_steps=10), 3) for k in (0, 1, 2, 6, 9, 30)]
    [0.5, 1.0, 1.0, 0.5, 0.038, 0.038]
    """
    warmup = math.ceil(settings.warmup_share * total_steps - 1e-9)  # 0.07 * 100 is slightly above 7
    position = min(steps_done, max(total_steps - 1, 0))
    if position < warmup:
        return settings.learning_rate * (position + 1) / warmup
    if settings.schedule == "constant":
        return settings.learning_rate
    progress = (position - warmup) / max(total_steps - warmup, 1)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
