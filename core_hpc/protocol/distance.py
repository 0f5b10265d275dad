r"""Distance and similarity of the completions of one problem (Eq. 13, METHOD.md section 3).

In: sentence embeddings and operation signatures, one per completion. Out: matrices over all pairs.
This module does not embed texts (`embeddings.py` does) and does not know models, phases or rewards.

Shapes: n completions, d embedding dimensions, s kinds of operations.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Signature = frozenset[str]
FloatArray = NDArray[np.float64]

_LEFT, _RIGHT = r"[0-9)\]}$]\s{0,3}", r"\s{0,3}[0-9(\\$]"
_SOURCES = {
    "addition": r"\b(?:add|adds|added|adding|addition|plus|sum|sums|total|totals|altogether)\b"
    rf"|{_LEFT}\+{_RIGHT}|\b[a-z]\s?\+\s?\w",
    "subtraction": r"\b(?:subtract(?:s|ed|ing|ion)?|minus|difference|take away|taken away|fewer|remaining|left over)\b"
    rf"|{_LEFT}[-−]{_RIGHT}|\b[a-z]\s?[-−]\s?[0-9]",
    "multiplication": r"\b(?:multipl(?:y|ies|ied|ying|ication)|times|product|doubled?|tripled?|twice)\b"
    rf"|\\(?:times|cdot)\b|×|·|{_LEFT}\*{_RIGHT}",
    "division": r"\b(?:divid(?:e|es|ed|ing)|division|quotient|per|split (?:equally|evenly)|shared equally)\b"
    r"|÷|\\div\b|[0-9)]\s{1,3}/\s{0,3}[0-9(]",
    "equation": r"\b(?:equations?|equals?|equal to)\b|=",
    "comparison": r"\b(?:compar(?:e|es|ed|ing|ison)|(?:greater|less|more|larger|smaller|higher|lower) than"
    r"|at (?:least|most)|inequality)\b|[≤≥]|\\(?:leq?|geq?|lt|gt)\b|\s[<>]=?\s|[0-9]\s{0,2}[<>]=?\s{0,2}[0-9]",
    "percentage": r"\b(?:percent|percents|percentages?|per cent)\b|[0-9]\s{0,2}\\?%",
    "fraction": r"\b(?:fractions?|numerator|denominator|half|halves|one[- ]third|two[- ]thirds|thirds|quarters?"
    r"|ratio)\b|\\[dt]?frac\b|[0-9]/[0-9]|[½⅓¼¾⅔]",
    "square": r"\b(?:squar(?:e|es|ed|ing)|power of (?:two|2))\b(?! root)|\^\s?\{?\s?2(?![0-9])|²",
    "root": r"\b(?:square|cube|cubic) roots?\b|\broots? of\b|\\sqrt\b|√|\bsqrt\b",
    "substitution": r"\b(?:substitut(?:e|es|ed|ing|ion)|plug(?:s|ged|ging)? in(?:to)?|replac(?:e|es|ed|ing))\b",
    "simplification": r"\b(?:simplif(?:y|ies|ied|ying|ication)|reduc(?:e|es|ed|ing) to|cancel(?:s|led|ling|ed|ing)?)\b"
    r"|\bcombin(?:e|ing) like terms\b",
    "factoring": r"\b(?:factor(?:s|ed|ing|ise|ize|ised|ized|ization|isation)?|common divisor|gcd)\b",
    "expansion": r"\b(?:expand(?:s|ed|ing)?|expansion|distribut(?:e|es|ed|ing|ive)|multiply(?:ing)? out|foil)\b",
    "isolation": r"\b(?:isolat(?:e|es|ed|ing)|solv(?:e|es|ed|ing) for|rearrang(?:e|es|ed|ing)|both sides)\b",
    "verification": r"\b(?:verif(?:y|ies|ied|ying|ication)|check(?:s|ed|ing)?|double[- ]check(?:s|ed|ing)?"
    r"|confirm(?:s|ed|ing)?)\b",
    "case analysis": r"\b(?:case analysis|by cases|case (?:[0-9]{1,3}|[ivx]{1,4}|one|two|three)|cases"
    r"|consider each|either case)\b",
    "induction": r"\b(?:induction|inductive(?:ly)?|base case|inductive (?:step|hypothesis))\b",
}
_NEEDED = {
    "addition": "add plus sum total altogether +",
    "subtraction": "subtract minus difference take~away taken~away fewer remaining left~over - −",
    "multiplication": "multipl times product double triple twice cdot × · *",
    "division": "divid divis quotient per split shared ÷ \\div /",
    "equation": "equa =",
    "comparison": "compar than at~least at~most inequality ≤ ≥ \\le \\ge \\lt \\gt < >",
    "percentage": "percent per~cent %",
    "fraction": "fraction numerator denominator half halves third quarter ratio frac / ½ ⅓ ¼ ¾ ⅔",
    "square": "squar power~of ^ ²",
    "root": "root √ sqrt",
    "substitution": "substitut plug replac",
    "simplification": "simplif reduc cancel combin",
    "factoring": "factor divisor gcd",
    "expansion": "expan distribut multiply foil",
    "isolation": "isolat solv rearrang both~sides",
    "verification": "verif check confirm",
    "case analysis": "case consider~each",
    "induction": "induct base~case",
}
"""For each operation, parts (~ is a space) of which every text that its pattern finds has at least one.

Looking for them is ten times faster than the search for a pattern that is not in the text.
"""
_PATTERNS = {
    name: (tuple(part.replace("~", " ") for part in _NEEDED[name].split()), re.compile(source))
    for name, source in _SOURCES.items()
}
OPERATIONS = tuple(_PATTERNS)


def operation_signature(text: str) -> Signature:
    r"""The mathematical operations (members of `OPERATIONS`) that a text uses, as words or symbols.

    >>> sorted(operation_signature("3 + 4 = 7, then halve: \\frac{7}{2}. A well-known additional fact."))
    ['addition', 'equation', 'fraction']
    """
    folded = _folded(text)
    return frozenset(
        name
        for name, (needed, pattern) in _PATTERNS.items()
        if any(part in folded for part in needed) and pattern.search(folded)
    )


def _folded(text: str) -> str:
    """The text in small letters, as a pattern with `re.IGNORECASE` would read it, character by character."""
    return text.replace("İ", "i").lower().replace("ı", "i").replace("ſ", "s")


def unit_rows(embeddings: ArrayLike) -> FloatArray:
    """Embeddings [n, d] scaled to length 1.

    Raises:
        ValueError: a row is zero or not finite; the message names the first such row.
    """
    rows = np.asarray(embeddings, dtype=np.float64)
    if rows.ndim != 2:
        raise ValueError(f"embeddings have {rows.ndim} axes, not [completions, dimensions]")
    if not len(rows):
        return rows
    largest = np.max(np.abs(rows), axis=1, initial=0.0, keepdims=True)
    bad = ~np.isfinite(rows).all(axis=1) | (largest[:, 0] == 0)
    if bad.any():
        row = int(np.argmax(bad))
        what = "zero" if np.isfinite(rows[row]).all() else "not finite"
        raise ValueError(f"embedding of row {row} is {what}: its cosine distance is undefined")
    rows = rows / largest  # done first, so the squares of huge or tiny entries stay in range
    unit: FloatArray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def cosine_matrix(embeddings: ArrayLike) -> FloatArray:
    """Cosine of every pair of rows, [n, n] in [-1, 1], symmetric with diagonal 1."""
    rows = unit_rows(embeddings)
    cosine = rows @ rows.T
    cosine = np.clip((cosine + cosine.T) / 2, -1.0, 1.0)
    np.fill_diagonal(cosine, 1.0)
    return cosine


def jaccard_matrix(signatures: Sequence[Signature]) -> FloatArray:
    """Jaccard similarity of every pair of sets, [n, n] in [0, 1]; that of two empty sets is 1.

    >>> jaccard_matrix([frozenset("ab"), frozenset("bc"), frozenset()]).round(3).tolist()
    [[1.0, 0.333, 0.0], [0.333, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    kinds = sorted(frozenset[str]().union(*signatures))
    members = np.array([[k in s for k in kinds] for s in signatures], dtype=np.float64).reshape(
        len(signatures), len(kinds)
    )
    shared = members @ members.T
    size = members.sum(axis=1)
    union = size[:, None] + size[None, :] - shared
    return np.where(union == 0, 1.0, shared / np.where(union == 0, 1.0, union))


def _features(embeddings: ArrayLike, signatures: Sequence[Signature], weight: float) -> tuple[FloatArray, FloatArray]:
    cosine = cosine_matrix(embeddings)
    if len(cosine) != len(signatures):
        raise ValueError(f"{len(cosine)} embeddings but {len(signatures)} operation signatures")
    if not 0 <= weight <= 1:
        raise ValueError(f"embedding_weight is {weight}, not in [0, 1]")
    return cosine, jaccard_matrix(signatures)


def distance_matrix(
    embeddings: ArrayLike, signatures: Sequence[Signature], embedding_weight: float = 0.6
) -> FloatArray:
    """Eq. 13: weight * (1 - cosine) + (1 - weight) * (1 - Jaccard) for every pair of completions.

    Args:
        embeddings: [n, d].
        signatures: n sets of operations.
        embedding_weight: the weight, in [0, 1].

    Returns:
        float64 [n, n] in [0, 1 + weight], symmetric with zero diagonal.

    Raises:
        ValueError: an embedding is zero or not finite, or the lengths differ.

    >>> distance_matrix([[1.0, 0.0], [0.0, 2.0]], [frozenset("ab"), frozenset("b")]).tolist()
    [[0.0, 0.8], [0.8, 0.0]]
    """
    cosine, jaccard = _features(embeddings, signatures, embedding_weight)
    return embedding_weight * (1 - cosine) + (1 - embedding_weight) * (1 - jaccard)


def similarity_matrix(
    embeddings: ArrayLike, signatures: Sequence[Signature], embedding_weight: float = 0.6
) -> FloatArray:
    """weight * (1 + cosine) / 2 + (1 - weight) * Jaccard, [n, n] in [0, 1] with diagonal 1.

    Both terms are positive semi-definite, and so is their sum. 1 - distance is not used because it
    leaves [0, 1], and clipping it would destroy positive semi-definiteness. Arguments and errors
    are those of `distance_matrix`.
    """
    cosine, jaccard = _features(embeddings, signatures, embedding_weight)
    return embedding_weight * (1 + cosine) / 2 + (1 - embedding_weight) * jaccard
