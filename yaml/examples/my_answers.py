"""A kind of answers of your own: Roman numerals, so that IX, ix and 9 are the same answer.

`normalize` returns the canonical form of an answer, or None if a text is none. `extract` finds the
answer in a completion, after the thoughts of a model. `verify` compares an answer with the canonical
gold answer. `extract` and `verify` may be left out of the sweep file: then the usual places are
searched (tags, boxes, ####, sentences), and answers are equal if their canonical forms are.
See core_hpc/README.md, Extension points.
"""

import re

VALUES = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}
NUMERAL = r"M{0,3}(?:CM|CD|D?C{0,3})(?:XC|XL|L?X{0,3})(?:IX|IV|V?I{0,3})"


def normalize(text):
    """The value as digits: 9 for IX and for 9."""
    text = text.strip(" .$*").upper()
    if text.isdecimal() and len(text) < 5:
        return str(int(text))
    if not text or not re.fullmatch(NUMERAL, text):
        return None
    values = [VALUES[letter] for letter in text]
    smaller = [value < following for value, following in zip(values, [*values[1:], 0], strict=True)]
    return str(sum(-value if minus else value for value, minus in zip(values, smaller, strict=True)))


def extract(text):
    """The last numeral or number behind `####`."""
    found = re.findall(r"####\s*(\w+)", text)
    return normalize(found[-1]) if found else None


def verify(answer, gold):
    """Whether both have the same value."""
    return normalize(answer) == gold
