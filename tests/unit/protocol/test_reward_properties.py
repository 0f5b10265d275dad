"""Properties of rewards and advantages of random groups of completions."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from core_hpc.config.reward import FormatSection, LengthSection, RewardSection
from core_hpc.protocol.advantages import advantages
from core_hpc.protocol.format_reward import format_rewards
from core_hpc.protocol.length_reward import length_rewards
from core_hpc.protocol.rewards import EXTRA_PARTS, ProblemGroup, ScoredGroup, score_problem
from core_hpc.store.schema import COLD, RESCUE, REWARD_PARTS

RULES = ("leave_one_out", "greedy_outsider", "dpp")
GOLD = "12 apples and 3 pears left"
WORDS = ("12", "3", "apples", "pears", "and", "left", "no")


def settings(rule: str = "leave_one_out", cap: int = 2) -> RewardSection:
    """Settings that enable every part."""
    return RewardSection.model_validate(
        {
            "explore": {"rule": rule, "cap": cap, "weight": 0.2},
            "cross": {"weight": 0.1},
            "format": {"weight": 0.1},
            "length": {"weight": 0.05, "min_words": 1, "max_words": 6},
        }
    )


@st.composite
def problem_groups(draw: st.DrawFn, min_size: int = 1, max_size: int = 9, ties: bool = True) -> ProblemGroup:
    """Completions of up to three models.

    Without `ties` the answers differ, and so do the exploit rewards.
    """
    row = st.tuples(st.sampled_from("abc"), st.sampled_from((COLD, COLD, RESCUE)), st.booleans(), st.booleans())
    rows = draw(st.lists(row, min_size=min_size, max_size=max_size))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    models, phases, correct, hints = (np.array(column) for column in zip(*rows, strict=True))
    num = len(rows)
    written = [" ".join(rng.choice(WORDS, size=rng.integers(1, 5))) for _ in rows]
    correct = correct.astype(bool)
    if ties:
        answers = [GOLD if c else [None, s][int(rng.integers(4) > 0)] for c, s in zip(correct, written, strict=True)]
    else:
        answers = [" ".join([GOLD.split()[0], *["no"] * extra]) for extra in rng.permutation(num)]
    blocks = rng.integers(0, 4, num)
    return ProblemGroup(
        models=models,
        phases=phases,
        correct=correct,
        hint_given=hints.astype(bool),
        gold=GOLD,
        answers=answers,
        signatures=[frozenset(rng.choice(list("vwxyz"), size=rng.integers(0, 5), replace=False)) for _ in rows],
        embeddings=rng.normal(size=(num, 4)),
        texts=["<strategy id=1>so</strategy> " * n + "<final_answer>12</final_answer>" * int(n % 2) for n in blocks],
    )


def chosen(group: ProblemGroup, rows: list[int]) -> ProblemGroup:
    """The group with these rows of another group; rows may be repeated.

    All cold rows of a model must stay.
    """
    assert group.texts is not None
    picked = {name: getattr(group, name)[rows] for name in ("models", "phases", "correct", "hint_given", "embeddings")}
    listed = {name: [getattr(group, name)[i] for i in rows] for name in ("answers", "signatures", "texts")}
    return replace(group, **picked, **listed)


def parts_of(scored: ScoredGroup) -> dict[str, np.ndarray]:
    return {name: getattr(scored, name) for name in (*REWARD_PARTS, "total")}


@given(problem_groups(min_size=2, ties=False), st.randoms(use_true_random=False), st.sampled_from(RULES))
def test_permuting_samples_permutes_every_reward_and_advantage(group: ProblemGroup, random, rule: str) -> None:
    """Without ties, because in `greedy_outsider` the first completion wins them."""
    order = list(range(len(group.models)))
    random.shuffle(order)
    before, after = (score_problem(g, settings(rule), 0) for g in (group, chosen(group, order)))
    for name, values in parts_of(before).items():
        assert parts_of(after)[name].tolist() == pytest.approx(values[order].tolist(), abs=1e-9), name
    if np.ptp(before.total) > 1e-6:
        assert advantages(after.total).tolist() == pytest.approx(advantages(before.total)[order].tolist(), abs=1e-4)


@given(problem_groups(min_size=2), st.data(), st.sampled_from(RULES), st.integers(1, 10))
def test_a_copy_never_increases_the_diversity_reward_of_the_original(
    group: ProblemGroup, data: st.DataObject, rule: str, cap: int
) -> None:
    """Nor that of another completion.

    With `greedy_outsider` a copy outside the set gets the original's reward.
    """
    num = len(group.models)
    which = data.draw(st.integers(0, num - 1))
    before = score_problem(group, settings(rule, cap), 0).explore
    after = score_problem(chosen(group, [*range(num), which]), settings(rule, cap), 0).explore
    assert after[num] <= before[which] + 1e-9
    assert (after[:num] <= before + 1e-9).all()
    if rule != "greedy_outsider":
        assert after[[which, num]].tolist() == pytest.approx([0, 0], abs=1e-9)


@given(problem_groups(), st.sampled_from(RULES), st.sampled_from(["std", "none"]))
def test_advantages_of_a_problem_sum_to_zero(group: ProblemGroup, rule: str, scale) -> None:
    total = score_problem(group, settings(rule), 0).total
    found = advantages(total, scale=scale)
    assert abs(found.sum()) < 1e-6 * max(1.0, np.abs(found).max())
    exact = [Fraction(float(r)) for r in total]
    mean = sum(exact) / len(exact)
    above = [r > mean + Fraction(1, 10**9) for r in exact]
    assert all(a > 0 for a, is_above in zip(found, above, strict=True) if is_above)


def test_equation_3_is_positive_beyond_the_cap() -> None:
    models, phases, correct = np.array(["a", "b", "c"]), np.array([COLD] * 3), np.array([True, False, False])
    group = ProblemGroup(
        models=models,
        phases=phases,
        correct=correct,
        hint_given=np.zeros(3, dtype=bool),
        gold="1",
        answers=["1", None, None],
        signatures=[frozenset()] * 3,
        embeddings=np.eye(3),
        texts=[""] * 3,
    )
    one, two = (score_problem(group, settings("greedy_outsider", cap=cap), 0).explore for cap in (1, 2))
    assert one.tolist() == pytest.approx([0, 0.45, 0.45])
    assert sorted(two) == pytest.approx([0, 0, 0.45])


# --- extra parts ---------------------------------------------------------------------------------


@given(st.lists(st.text("ab \n", max_size=30), max_size=6), st.integers(0, 6), st.integers(1, 6))
def test_length_is_linear_between_its_bounds(texts: list[str], low: int, more: int) -> None:
    found = length_rewards(texts, LengthSection(min_words=low, max_words=low + more))
    for text, reward in zip(texts, found, strict=True):
        words = sum(1 for piece in text.replace("\n", " ").split(" ") if piece)
        assert reward == pytest.approx(float(min(max(Fraction(words - low, more), Fraction(0)), Fraction(1))))


FORMS = {
    "": 0,
    "so 12": 0,
    "<strategy id=1>a</strategy>": 0.2,
    "<strategy id=1>a</strategy><strategy id=2>b": 0.2,
    "<strategy id=1>a</strategy>" * 2 + "<final_answer>1</final_answer>": 0.9,
    "<strategy id=1>a</strategy>" * 9: 1,
    "<final_answer>1": 0,
    "</final_answer>1<final_answer>": 0,
    "<Final_Answer>1</FINAL_ANSWER>": 0.5,
    "<think><strategy>a</strategy></think>1": 0,
}


@pytest.mark.parametrize(("text", "expected"), FORMS.items())
def test_format_counts_closed_blocks_and_a_closed_final_answer(text: str, expected: float) -> None:
    assert format_rewards([text], FormatSection()).tolist() == pytest.approx([expected])


@given(problem_groups())
def test_extra_parts_are_off_by_default_and_added_with_their_weights(group: ProblemGroup) -> None:
    assert group.texts is not None
    without, with_all = (score_problem(group, s, 0).total for s in (RewardSection(cross=settings().cross), settings()))
    extra = 0.1 * format_rewards(group.texts, FormatSection()) + 0.05 * length_rewards(group.texts, settings().length)
    assert (with_all - without).tolist() == pytest.approx(extra.tolist())
    assert (score_problem(replace(group, texts=None), RewardSection(cross=settings().cross), 0).total == without).all()
    with pytest.raises(ValueError, match="format needs the texts"):
        score_problem(replace(group, texts=None), settings(), 0)


def test_every_extra_part_has_its_settings_with_a_schedule() -> None:
    for name in EXTRA_PARTS:
        assert getattr(RewardSection(), name).weight == 0
        section = RewardSection.model_validate({name: {"weight": [0.0, 0.5]}})
        assert getattr(section, name).weight == [0.0, 0.5]
    with pytest.raises(ValueError, match="greater than min_words"):
        RewardSection.model_validate({"length": {"min_words": 2000}})


@given(problem_groups(min_size=2, max_size=4))
def test_extra_parts_follow_the_schedule(group: ProblemGroup) -> None:
    assert group.texts is not None
    off_then_on = RewardSection.model_validate(
        {"length": {"weight": [0.0, 0.5], "min_words": 0, "max_words": 3}, "explore": {"weight": 0}}
    )
    assume(length_rewards(group.texts, off_then_on.length).any())
    first, second = (score_problem(group, off_then_on, i) for i in (0, 1))
    assert (second.total - first.total - 0.1 * first.cross).tolist() == pytest.approx(
        (0.5 * length_rewards(group.texts, off_then_on.length)).tolist()
    )
