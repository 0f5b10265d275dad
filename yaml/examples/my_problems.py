"""A problem source of your own: questions about the smallest and largest of some numbers.

A problem source returns `count` rows with the fields question and answer. Other fields are metadata;
`solution` is a worked solution, which worked examples and warm-ups need. Equal seeds must give equal
rows. See core_hpc/README.md, Extension points.
"""

import random


def generate(count, seed, split, *, num_values=4):
    """Problems such as `What is 7 - 2?`, asked as the range of a list of numbers."""
    rng = random.Random(seed)
    return [_problem(rng, num_values) for _ in range(count)]


def _problem(rng, num_values):
    values = rng.sample(range(1, 60), num_values)
    low, high = min(values), max(values)
    return {
        "question": f"The numbers are {', '.join(map(str, values))}. What is {high} - {low}?",
        "answer": high - low,
        "solution": f"{high} - {low} = {high - low}. #### {high - low}",
        "subject": "range",
    }
