"""Near-duplicates, compared with a search over all pairs of texts."""

import random
import time
from itertools import combinations

import pytest

from core_hpc.problems.duplicates import NearDuplicates, shingles

TEXTS = [
    "Tom has 3 apples and 4 pears; how many pieces of fruit does Tom have in all?",
    "Tom has 3 apples and 5 pears; how many pieces of fruit does Tom have?",
    "Tom has 3 apples and 4 pears, how many pieces of fruit does tom have in all",
    "What is 2 + 2?",
    "What is 2+2",
    "What is 2 - 2?",
    "",
    "x",
    "1,000 m",
    "1000 m",
    "Ann has 3 apples and 4 pears; how many pieces of fruit does Ann have in all?",
]


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 1.0])
def test_near_duplicates_equal_those_of_a_search_over_all_pairs(threshold: float) -> None:
    texts = [*TEXTS, *(" ".join(t.split()[i:]) for t in TEXTS[:2] for i in range(8))]
    index = NearDuplicates(texts, threshold=threshold)
    for text in [*texts, "Tom has 3 apples", "a completely different text"]:
        own = shingles(text)
        best, place = max((len(own & shingles(t)) / len(own | shingles(t)), -i) for i, t in enumerate(texts))
        assert index.nearest(text) == ((best, -place) if best >= threshold else None)


def test_other_numbers_or_operators_are_another_problem_but_other_punctuation_is_not() -> None:
    same = {
        frozenset(pair) for pair in combinations(TEXTS, 2) if NearDuplicates([pair[0]], threshold=1.0).nearest(pair[1])
    }
    assert same == {frozenset(TEXTS[i] for i in pair) for pair in ((0, 2), (3, 4), (8, 9))}


def test_near_duplicates_of_12000_and_5000_problems_take_seconds() -> None:
    rng = random.Random(0)
    words = [f"w{chr(97 + i % 26)}{chr(97 + i // 26 % 26)}{chr(97 + i // 676)}" for i in range(3000)]
    weights = [1 / (i + 1) for i in range(len(words))]  # the distribution of words in real texts
    texts = [" ".join(rng.choices(words, weights, k=50)) for _ in range(17000)]
    start = time.process_time()
    index = NearDuplicates(texts[:5000])
    found = [index.nearest(text) for text in texts[5000:]]
    assert time.process_time() - start < 15
    assert found == [None] * 12000
    similarity, place = index.nearest(f"{texts[77]} and more") or (0.0, 0)
    assert (round(similarity, 2), place) == (0.96, 77)  # 48 of 50 shingles
