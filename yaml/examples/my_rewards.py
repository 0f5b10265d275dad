"""A reward part of your own: correct completions that need fewer words than others.

A reward part gets all completions of one problem and returns one number for each. Keyword arguments
are options of the sweep file. See core_hpc/README.md, Extension points.
"""


def brevity(problem, completions, *, max_words=50):
    """1 for a correct completion without words, falling to 0 at `max_words`; 0 for a wrong one."""
    shares = [min(len(completion.text.split()) / max_words, 1) for completion in completions]
    return [(1 - share) * completion.correct for share, completion in zip(shares, completions, strict=True)]
