"""Reward parts, their sum and the advantages of one problem, against loops over completions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core_hpc.answers.extract import token_f1
from core_hpc.config.reward import OverlongSection, RewardSection
from core_hpc.protocol import explore
from core_hpc.protocol.advantages import advantages
from core_hpc.protocol.distance import distance_matrix, similarity_matrix
from core_hpc.protocol.failures import cold_failed
from core_hpc.protocol.length_reward import overlong_rewards
from core_hpc.protocol.rewards import ProblemGroup, cross_rewards, score_problem
from core_hpc.store.schema import COLD, RESCUE

MODELS = ("a", "b", "c")
PARTS = ("exploit", "explore", "rescue", "trace_accuracy", "cross")
SETTINGS = RewardSection()


def make_group(rows, *, gold="12", seed=0):
    """A group of completions; a row is (model, phase, correct, hint_given)."""
    rng = np.random.default_rng(seed)
    models, phases, correct, hints = (np.array(column) for column in zip(*rows, strict=True))
    correct = correct.astype(bool)
    return ProblemGroup(
        models=models,
        phases=phases,
        correct=correct,
        hint_given=hints.astype(bool),
        gold=gold,
        answers=[gold if c else [None, "13", "7"][int(rng.integers(3))] for c in correct],
        signatures=[frozenset(rng.choice(list("abcde"), size=rng.integers(0, 4), replace=False)) for _ in rows],
        embeddings=rng.normal(size=(len(rows), 6)),
    )


@st.composite
def groups(draw, min_size=1, max_size=9):
    row = st.tuples(st.sampled_from(MODELS), st.sampled_from((COLD, COLD, RESCUE)), st.booleans(), st.booleans())
    return make_group(draw(st.lists(row, min_size=min_size, max_size=max_size)), seed=draw(st.integers(0, 10**6)))


def reference_cross(d, group, exploit, margin, gate):
    out = []
    for i, (me, phase) in enumerate(zip(group.models, group.phases, strict=True)):
        terms = []
        for partner in MODELS:
            theirs = [j for j in range(len(d)) if group.models[j] == partner and group.phases[j] == phase]
            if partner == me or not theirs:
                continue
            indicator = 1.0 if max(exploit[j] for j in theirs) >= gate else 0.0
            terms.append(indicator * max(0.0, min(d[i, j] for j in theirs) - margin))
        out.append(sum(terms) / len(terms) if terms else 0.0)
    return out


def reference_rescue(group):
    out = []
    cold = [(m, c) for m, p, c in zip(group.models, group.phases, group.correct, strict=True) if p == COLD]
    for m, p, c, h in zip(group.models, group.phases, group.correct, group.hint_given, strict=True):
        own = [right for model, right in cold if model == m]
        peer = any(right for model, right in cold if model != m)
        out.append(float(p == RESCUE and c and h and len(own) > 0 and not any(own) and peer))
    return out


@given(groups())
def test_every_part_follows_its_definition(group):
    scored = score_problem(group, SETTINGS, 1)
    exploit = [float(c) + 0.3 * token_f1(a, group.gold) for c, a in zip(group.correct, group.answers, strict=True)]
    assert scored.exploit.tolist() == pytest.approx(exploit)
    assert scored.rescue.tolist() == reference_rescue(group)
    for i, (c, phase) in enumerate(zip(group.correct, group.phases, strict=True)):
        same = [bool(x) for x, p in zip(group.correct, group.phases, strict=True) if p == phase]
        assert scored.trace_accuracy[i] == pytest.approx(c * (1 - sum(same) / len(same)))
    d = distance_matrix(group.embeddings, group.signatures)
    assert scored.cross.tolist() == pytest.approx(reference_cross(d, group, exploit, 0.15, 0.1))
    total = (
        scored.exploit + 0.05 * scored.explore + 0.15 * scored.rescue + 0.2 * scored.trace_accuracy + 0.1 * scored.cross
    )
    assert scored.total.tolist() == pytest.approx(total.tolist())


@given(groups())
def test_cold_failed_follows_its_definition(group):
    cold = [(m, c) for m, p, c in zip(group.models, group.phases, group.correct, strict=True) if p == COLD]
    for model, failed in zip(group.models, cold_failed(group.models, group.phases, group.correct), strict=True):
        own = [correct for m, correct in cold if m == model]
        assert failed == (len(own) > 0 and not any(own))


def test_a_rescue_can_fire_and_needs_every_condition():
    """Trap 4: the condition for a hint and the condition for a rescue must be possible together."""
    cold = [("a", COLD, False, False), ("a", COLD, False, False), ("b", COLD, True, False), ("b", COLD, False, False)]
    rows = [*cold, ("a", RESCUE, True, True)]
    assert score_problem(make_group(rows), SETTINGS, 0).rescue.tolist() == [0, 0, 0, 0, 1]
    changes = {
        "wrong": (4, ("a", RESCUE, False, True)),
        "no hint": (4, ("a", RESCUE, True, False)),
        "own cold right": (0, ("a", COLD, True, False)),
        "no peer right": (2, ("b", COLD, False, False)),
        "own answer is no peer": (2, ("a", COLD, True, False)),
    }
    for name, (row, value) in changes.items():
        changed = list(rows)
        changed[row] = value
        assert not score_problem(make_group(changed), SETTINGS, 0).rescue.any(), name
    assert not score_problem(make_group(rows[2:]), SETTINGS, 0).rescue.any(), "own cold absent"


def test_with_three_models_the_peer_may_be_any_other():
    cold = [("a", COLD, False, False), ("b", COLD, False, False), ("c", COLD, True, False)]
    rows = [*cold, ("a", RESCUE, True, True), ("b", RESCUE, True, True)]
    assert score_problem(make_group(rows), SETTINGS, 0).rescue.tolist() == [0, 0, 0, 1, 1]


def test_weights_follow_the_schedule():
    group = make_group([("a", COLD, True, False), ("b", COLD, True, False), ("b", COLD, False, False)], seed=3)
    first, second, third = (score_problem(group, SETTINGS, i) for i in (0, 1, 5))
    assert (first.cross == second.cross).all()
    assert np.allclose(second.total - first.total, -0.15 * first.explore + 0.1 * first.cross)
    assert (second.total == third.total).all()
    assert first.cross.any()
    assert first.explore.any()


def test_the_gate_of_cross_is_inclusive_and_phases_are_separate():
    d = np.array([[0, 0.5, 0.9], [0.5, 0, 0.7], [0.9, 0.7, 0]])
    models, phases = np.array(["a", "b", "b"]), np.array([COLD, COLD, RESCUE])
    got = cross_rewards(d, models, phases, np.array([0.0, 0.1, 1.0]), margin=0.15, gate=0.1)
    assert got.tolist() == pytest.approx([0.35, 0.0, 0.0])


def test_partial_credit_can_be_disabled():
    group = replace(make_group([("a", COLD, False, False), ("a", COLD, True, False)], gold="12"), answers=["12", "12"])
    none = RewardSection.model_validate({"exploit": {"partial": "none"}})
    assert score_problem(group, none, 0).exploit.tolist() == [0, 1]
    assert score_problem(group, SETTINGS, 0).exploit.tolist() == pytest.approx([0.3, 1.3])


@pytest.mark.parametrize("rule", ["leave_one_out", "greedy_outsider", "dpp"])
def test_every_setting_reaches_its_part(rule):
    """All of them differ from each other and from their defaults."""
    rows = [(m, phase, c, False) for m in "ab" for phase in (COLD, RESCUE) for c in (True, False, True)]
    group = replace(make_group(rows, seed=8), answers=["12", "12 apples", None] * 4)
    settings = RewardSection.model_validate(
        {
            "exploit": {"partial_weight": 0.7},
            "explore": {"rule": rule, "margin": 0.05, "cap": 3},
            "cross": {"margin": 0.25, "gate": 1.2},
            "distance": {"embedding_weight": 0.9},
        }
    )
    scored = score_problem(group, settings, 0)
    exploit = [float(c) + 0.7 * token_f1(a, group.gold) for c, a in zip(group.correct, group.answers, strict=True)]
    assert scored.exploit.tolist() == pytest.approx(exploit)
    d = distance_matrix(group.embeddings, group.signatures, 0.9)
    assert scored.cross.tolist() == pytest.approx(reference_cross(d, group, exploit, 0.25, 1.2))
    similarity = similarity_matrix(group.embeddings, group.signatures, 0.9)
    expected = {
        "leave_one_out": explore.leave_one_out(d, margin=0.05),
        "greedy_outsider": explore.greedy_outsider(d, np.array(exploit), margin=0.05, cap=3),
        "dpp": explore.dpp(similarity, np.array(exploit) / 1.7),  # the best exploit reward is 1.7
    }
    assert scored.explore.tolist() == pytest.approx(expected[rule].tolist())
    assert scored.explore.any()
    assert scored.cross.any()


def test_a_problem_with_one_completion():
    for rule in ("leave_one_out", "dpp", "greedy_outsider"):
        settings = RewardSection.model_validate({"explore": {"rule": rule}})
        scored = score_problem(make_group([("a", COLD, True, False)]), settings, 0)
        assert scored.explore.tolist() == scored.cross.tolist() == scored.trace_accuracy.tolist() == [0]
        assert advantages(scored.total).tolist() == [0]


def test_groups_that_do_not_fit_are_rejected():
    group = make_group([("a", COLD, False, False), ("b", COLD, True, False), ("a", RESCUE, True, True)])
    with pytest.raises(ValueError, match="differ in length"):
        replace(group, answers=["1"])
    with pytest.raises(ValueError, match="evaluate"):
        replace(group, phases=np.array([COLD, COLD, "evaluate"]))


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=12))
def test_advantages_are_centred_and_scaled_by_the_population_deviation(rewards):
    got = advantages(rewards)
    assert abs(got.sum()) < 1e-3
    mean = sum(rewards) / len(rewards)
    deviation = (sum((r - mean) ** 2 for r in rewards) / len(rewards)) ** 0.5
    if deviation > 1e-6:
        assert got.tolist() == pytest.approx([(r - mean) / (deviation + 1e-8) for r in rewards], rel=1e-5, abs=1e-5)


@given(st.floats(-1e6, 1e6), st.integers(0, 9))
def test_constant_groups_have_exactly_no_advantage(value, n):
    assert advantages([value] * n).tolist() == [0.0] * n


def test_advantages_of_invalid_rewards_are_an_error():
    with pytest.raises(ValueError, match="row 1"):
        advantages([0.0, float("nan")])
    with pytest.raises(ValueError, match="axes"):
        advantages([[0.0]])


@pytest.mark.parametrize("buffer_share", [0.05, 0.2, 1.0])
def test_the_overlong_reward_is_that_of_dapo(buffer_share):
    """Compared with Eq. 13 of arXiv 2503.14476, one length at a time."""
    limit = 200
    buffer = buffer_share * limit

    def reference(length):
        if length <= limit - buffer:
            return 0.0
        return ((limit - buffer) - length) / buffer if length <= limit else -1.0

    lengths = np.arange(1, limit + 1)
    found = overlong_rewards(lengths / limit, OverlongSection(buffer_share=buffer_share))
    assert found.tolist() == pytest.approx([reference(n) for n in lengths])


def test_overlong_enters_the_total_with_its_weight_and_needs_lengths():
    group = make_group([("a", COLD, True, False), ("b", COLD, False, False)])
    plain = score_problem(group, SETTINGS, 0).total
    settings = RewardSection(overlong={"weight": [0.0, 0.5]})
    with_lengths = replace(group, length_shares=np.array([0.3, 0.95]))
    assert score_problem(with_lengths, settings, 0).total.tolist() == plain.tolist()
    after = score_problem(with_lengths, settings, 1).total - score_problem(group, SETTINGS, 1).total
    assert after.tolist() == pytest.approx([0.0, -0.5 * 0.75])
    with pytest.raises(ValueError, match="overlong needs the lengths"):
        score_problem(group, settings, 1)
