"""A hint maker of your own: only the first steps of the teacher's text.

A hint maker gets a problem and the completion of the teacher, and returns the text for the hint, or
None if there is to be no hint. Afterwards answers are removed, and the text is cut to
`protocol.hint_tokens`, as without a hint maker. See core_hpc/README.md, Extension points.
"""

import re


def first_steps(problem, text, *, num_steps=1):
    """The first `num_steps` sentences after a heading; None if the text has fewer."""
    steps = [step for step in re.split(r"(?<=\.)\s+", text.strip()) if step]
    return f"Begin like this: {' '.join(steps[:num_steps])}" if len(steps) >= num_steps else None
