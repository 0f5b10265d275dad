"""Plans of steps, ranks and micro-batches; log-probabilities of a policy.

Trees, padded batches and single rows must compute the same.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import peft
import pytest
import torch
import transformers

from core_hpc.common.errors import InputError
from core_hpc.config.model import LoraSection
from core_hpc.config.update import UpdateSection
from core_hpc.training import policy as policy_module
from core_hpc.training.batching import KEYS_PER_TOKEN, Layout, Row, StepPlan, idle_batches, plan_steps
from core_hpc.training.forward import Capabilities
from core_hpc.training.lora import LoraLinear, LoraPolicy
from core_hpc.training.losses import LOSSES, StepSize, TokenBatch, objective
from core_hpc.training.memory import ActivationMemory
from core_hpc.training.metrics import StepTotals
from core_hpc.training.micro_batch import collate

VOCABULARY = 61
LAYOUTS: tuple[Layout, ...] = ("tree", "padded")


def make_row(prompt: Sequence[int], completion: Sequence[int], **changes: Any) -> Row:
    """A row with one log-probability per completion token, advantage 1 and weight 1."""
    values: dict[str, Any] = {"key": (), "problem_id": "p", "advantage": 1.0, "weight": 1.0}
    values |= {"behaviour_logprobs": [-0.1] * len(completion), **changes}
    return Row(prompt_token_ids=prompt, completion_token_ids=completion, **values)


def make_rows(num_problems: int = 7, *, seed: int = 0) -> list[Row]:
    """Two cold completions of every problem, and a rescue completion whose prompt has a hint.

    All prompts have the same beginning.
    """
    rng = random.Random(seed)
    examples = [rng.randrange(VOCABULARY) for _ in range(6)]
    rows = []
    for p in range(num_problems):
        prompt = [*examples, *(rng.randrange(VOCABULARY) for _ in range(rng.randint(6, 14)))]
        hinted = [*prompt, *(rng.randrange(VOCABULARY) for _ in range(5))]
        for k in range(3):
            ids = [rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 11))]
            logprobs = [-rng.random() for _ in ids]
            rows.append(
                make_row(
                    hinted if k == 2 else prompt,
                    ids,
                    key=(p, k),
                    problem_id=f"p{p}",
                    behaviour_logprobs=logprobs,
                    advantage=rng.gauss(0, 1),
                    weight=0.8 if k == 2 else 1.0,
                )
            )
    return rows


def plan(rows: list[Row], *, per_step: int = 3, **changes: Any) -> list[StepPlan]:
    """The steps of some rows, with usual options."""
    options: dict[str, Any] = {"num_ranks": 1, "max_tokens": 100, "seed": 0, "layout": "tree", "with_zero_signal": True}
    return plan_steps(rows, problems_per_step=per_step, **{**options, **changes})


def tree_size(rows: list[list[int]]) -> int:
    """Nodes of the tree of some sequences: their distinct beginnings."""
    return len({tuple(ids[:n]) for ids in rows for n in range(1, len(ids) + 1)})


@pytest.mark.parametrize("num_ranks", [1, 2, 5])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_row_is_dealt_once_with_its_problem(num_ranks: int, layout: Layout) -> None:
    rows = make_rows()
    plans = plan(rows, num_ranks=num_ranks, layout=layout)
    assert [len(p.problem_ids) for p in plans] == [3, 3, 1]
    assert sorted(i for p in plans for i in p.rows) == list(range(len(rows)))
    for p in plans:
        assert len(p.micro_batches) == num_ranks
        assert sorted(p.rows_run) == sorted(p.rows)
        assert {rows[i].problem_id for i in p.rows_run} == set(p.problem_ids)
        for batch in (b for rank in p.micro_batches for b in rank):
            inputs = [rows[i].inputs for i in batch.rows]
            if layout == "tree":
                assert batch.num_tokens == batch.num_padded_tokens == tree_size(inputs)
                assert collate(rows, batch.rows, layout).input_ids_BL.shape == (1, batch.num_tokens)
            else:
                assert batch.num_tokens == sum(map(len, inputs))
                assert batch.num_padded_tokens == len(inputs) * max(map(len, inputs))
            assert len(batch.rows) == 1 or batch.num_padded_tokens <= 100


def test_the_model_reads_all_but_the_last_token_of_a_row() -> None:
    assert make_row([1, 2], [3, 4]).inputs == [1, 2, 3]
    assert make_row([1, 2], [3]).inputs == [1, 2]


def test_order_is_drawn_by_the_seed_and_steps_do_not_depend_on_ranks() -> None:
    rows = make_rows()
    first, again, other = plan(rows), plan(rows, num_ranks=4), plan(rows, seed=1)
    assert [(p.problem_ids, p.rows) for p in first] == [(p.problem_ids, p.rows) for p in again]
    assert [p.problem_ids for p in first] != [p.problem_ids for p in other]
    assert plan(rows, num_ranks=4) == again


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ranks_are_balanced_by_tokens(layout: Layout) -> None:
    rows = make_rows(40)
    for num_ranks in (2, 3):
        for p in plan(rows, num_ranks=num_ranks, per_step=20, max_tokens=200, layout=layout):
            loads = [sum(b.num_tokens for b in rank) for rank in p.micro_batches]
            assert max(loads) <= 1.1 * min(loads)


def test_padding_is_small_and_what_rows_share_is_computed_once() -> None:
    rows = make_rows(40)
    tree, padded = (plan(rows, per_step=40, max_tokens=400, layout=layout)[0] for layout in LAYOUTS)
    assert padded.num_padded_tokens < 1.1 * padded.num_tokens
    assert padded.num_tokens == sum(len(r.inputs) for r in rows)
    assert tree.num_tokens < 0.65 * padded.num_tokens
    (whole,) = plan(rows, per_step=40, max_tokens=10**6)
    assert whole.num_tokens == tree_size([r.inputs for r in rows])


def test_keys_of_a_micro_batch_are_bounded() -> None:
    """Short completions after a long prompt: few tokens, each with a copy of the prompt's keys."""
    rows = [make_row(range(90), [k, 7], key=(k,)) for k in range(40)]
    (step,) = plan(rows, per_step=1)
    assert len(step.micro_batches[0]) > 1
    for batch in step.micro_batches[0]:
        assert sum(len(rows[i].inputs) for i in batch.rows) <= KEYS_PER_TOKEN * 100
    assert sorted(step.rows_run) == list(range(40))


def test_a_row_whose_values_do_not_belong_together_is_named() -> None:
    rows = make_rows(1)
    broken = make_row([1], [1, 2], key=("m", "p0", 2), problem_id="p0", behaviour_logprobs=[-0.1])
    with pytest.raises(InputError, match=r"'m', 'p0', 2.*1 log-probabilities for 2"):
        plan([*rows, broken])
    with pytest.raises(InputError, match="no completion"):
        plan([])


def test_an_empty_completion_counts_but_is_not_computed() -> None:
    rows = [*make_rows(1), make_row([1, 2], [], key=("e",), problem_id="p0")]
    (step,) = plan(rows)
    assert len(step.rows) == 4
    assert sorted(step.rows_run) == [0, 1, 2]


def zero_signal_rows() -> tuple[list[Row], list[int]]:
    """Rows of six problems, and the indices of those whose loss without KL has a gradient."""
    rows = make_rows(6)
    for i in (3, 4, 5, 10, 15, 16, 17):  # two whole problems and one completion
        rows[i] = replace(rows[i], advantage=0.0)
    rows[2] = replace(rows[2], weight=0.0)
    return rows, [0, 1, 6, 7, 8, 9, 11, 12, 13, 14]


def test_rows_without_gradient_are_not_computed_but_count() -> None:
    rows, moving = zero_signal_rows()
    for num_ranks in (1, 2, 3):
        skipped, everything = (plan(rows, num_ranks=num_ranks, with_zero_signal=zero) for zero in (False, True))
        assert sorted(i for p in skipped for i in p.rows_run) == moving
        # The KL term needs all rows that have a weight.
        assert sorted(i for p in everything for i in p.rows_run) == [i for i in range(18) if i != 2]
        for ours, theirs in zip(skipped, everything, strict=True):
            assert (ours.problem_ids, ours.rows) == (theirs.problem_ids, theirs.rows)
            num_tokens = sum(len(rows[i].completion_token_ids) for i in ours.rows)
            assert ours.num_completion_tokens == theirs.num_completion_tokens == num_tokens
    silent = [replace(r, advantage=0.0) for r in make_rows(2)]
    (step,) = plan(silent, num_ranks=2, with_zero_signal=False)
    assert step.micro_batches == ((), ())
    assert len(step.rows) == 6
    means = StepTotals(step, silent, torch.device("cpu")).means(with_kl=False)
    assert (means["num_completions"], means["num_tokens"]) == (6, step.num_completion_tokens)
    assert (means["loss"], means["clip_share"]) == (0, 0)
    undefined = ("kl", "entropy", "mismatch_mean", "mismatch_max", "importance_mean", "kept_mass", "ratio_max")
    assert all(math.isnan(means[name]) for name in undefined)


@pytest.mark.parametrize("loss", LOSSES)
def test_leaving_rows_out_changes_neither_loss_nor_gradient(loss: str) -> None:
    """Every step has the value, gradient and counts of a step that computes every completion."""
    settings = UpdateSection(loss=loss, kl_weight=0)
    rows, _ = zero_signal_rows()
    policy = LoraPolicy(tiny("llama"), LoraSection(rank=4), name="m")
    parameters = policy.start(seed=3, from_base=True)
    results = []
    for with_zero_signal in (False, True):
        found = []
        for step in plan(rows, with_zero_signal=with_zero_signal):
            totals = StepTotals(step, rows, torch.device("cpu"))
            for planned in step.micro_batches[0]:
                batch = collate(rows, planned.rows, policy.layout)
                current, entropy = policy.log_probs(batch, temperature=0.7)
                # Some ratios are clipped. The shift depends on the row, not on its micro-batch.
                size = 0.001 if loss == "gspo" else 0.4
                shift = torch.tensor([size * (i % 3 - 1) for i in batch.rows])
                tokens = TokenBatch(
                    old_M=current.detach() - shift[batch.row_M],
                    reference_M=None,
                    importance_M=torch.ones_like(current),
                    row_M=batch.row_M,
                    lengths_N=batch.lengths_N,
                    advantage_N=batch.advantage_N,
                    weight_N=batch.weight_N,
                    rescue_N=batch.rescue_N,
                )
                terms = objective(current, tokens, settings, StepSize(len(step.rows), step.num_completion_tokens, 16))
                terms.loss.backward()
                totals.add(batch, tokens, terms, entropy)
            found.append((totals.means(with_kl=False), {n: p.grad.clone() for n, p in parameters.items()}))
            for p in parameters.values():
                p.grad = None
        results.append(found)
    for (skipped, ours), (plain, theirs) in zip(*results, strict=True):
        for name in ("num_completions", "num_tokens", "loss", "policy_loss", "clip_share"):
            assert skipped[name] == pytest.approx(plain[name], rel=1e-5, abs=1e-7), name
        assert skipped["loss"] != 0
        assert max(grad.abs().max() for grad in ours.values()) > 1e-3
        for name, grad in ours.items():
            torch.testing.assert_close(grad, theirs[name], atol=1e-6, rtol=1e-4)


def tiny(kind: str) -> torch.nn.Module:
    """A small model of a family with random weights, always the same."""
    torch.manual_seed(0)
    shape = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    if kind == "gemma3":
        config = transformers.Gemma3TextConfig(
            **shape,
            head_dim=8,
            vocab_size=VOCABULARY,
            sliding_window=24,
            final_logit_softcapping=2.0,
            query_pre_attn_scalar=8,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    elif kind == "gemma2":
        config = transformers.Gemma2Config(
            **shape, head_dim=8, vocab_size=VOCABULARY, query_pre_attn_scalar=8, attn_logit_softcapping=3.0
        )
    elif kind == "granite":
        # It scales its logits, so the probe must not take the head for a separate one.
        config = transformers.GraniteConfig(**shape, vocab_size=VOCABULARY, logits_scaling=3.0)
    elif kind == "gpt2":
        # It has dropout in the base, which must never be active, and no linear layers for LoRA.
        ends = {"bos_token_id": 1, "eos_token_id": 2}
        config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=VOCABULARY, n_positions=64, **ends)
    else:
        config = transformers.LlamaConfig(**shape, vocab_size=VOCABULARY, tie_word_embeddings=True)
    return transformers.AutoModelForCausalLM.from_config(config).requires_grad_(False)


def naive_log_probs(model: torch.nn.Module, row: Row, temperature: float) -> torch.Tensor:
    """Log-probabilities of a row's completion, from one plain forward pass of transformers."""
    ids, start = torch.tensor([[*row.prompt_token_ids, *row.completion_token_ids]]), len(row.prompt_token_ids)
    distribution = (model(ids, use_cache=False).logits[0].float() / temperature).log_softmax(-1)
    return torch.stack([distribution[start - 1 + t, token] for t, token in enumerate(row.completion_token_ids)])


@pytest.mark.parametrize("kind", ["llama", "gemma3", "granite", "gemma2"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_log_probs_equal_a_plain_forward_of_each_row(kind: str, checkpointing: bool) -> None:
    """Trap 1: every completion follows exactly its own prompt ids, with or without a hint.

    The results are compared with those of PEFT's own layers, row by row.
    """
    section = LoraSection(rank=4)
    policy = LoraPolicy(tiny(kind), section, name="m")
    ActivationMemory(policy, checkpointing=checkpointing)
    assert policy.capabilities.separate_head is (kind != "granite")
    # Flash attention does not support the capped scores of gemma2.
    assert policy.layout == ("padded" if kind == "gemma2" else "tree")
    parameters = policy.start(seed=3, from_base=True)
    with torch.no_grad():
        for name, p in parameters.items():
            if "lora_B" in name:
                p.normal_(std=0.1)
    config = peft.LoraConfig(r=4, lora_alpha=32, target_modules=section.targets, task_type="CAUSAL_LM")
    plain = peft.get_peft_model(tiny(kind), config).eval()
    expected = {n.replace(".default.", "."): p for n, p in plain.named_parameters() if p.requires_grad}
    assert expected.keys() == parameters.keys()
    with torch.no_grad():
        for name, p in expected.items():
            p.copy_(parameters[name])
    rows = [*make_rows(3), replace(make_rows(1)[0], key=("again",))]  # the first row is there twice
    (step,) = plan(rows, max_tokens=80, layout=policy.layout)
    assert len(step.micro_batches[0]) > 1
    total = torch.zeros(())
    for planned in step.micro_batches[0]:
        batch = collate(rows, planned.rows, policy.layout)
        logp, entropy = policy.log_probs(batch, temperature=0.7)
        with torch.no_grad():
            reference, _ = policy.log_probs(batch, temperature=0.7, reference=True)
        assert not torch.allclose(logp, reference)
        assert entropy.shape == logp.shape
        for n, index in enumerate(batch.rows):
            wanted = naive_log_probs(plain, rows[index], 0.7)
            torch.testing.assert_close(logp[batch.row_M == n], wanted, atol=2e-5, rtol=1e-4)
            with torch.no_grad(), plain.disable_adapter():
                wanted_reference = naive_log_probs(plain, rows[index], 0.7)
            torch.testing.assert_close(reference[batch.row_M == n], wanted_reference, atol=2e-5, rtol=1e-4)
            assert batch.behaviour_M[batch.row_M == n].tolist() == pytest.approx(rows[index].behaviour_logprobs)
            total = total + (wanted * (index + 1)).sum()
        (logp * (torch.tensor(batch.rows)[batch.row_M] + 1)).sum().backward()
    total.backward()
    for name, p in parameters.items():
        torch.testing.assert_close(p.grad, expected[name].grad, atol=1e-3, rtol=1e-3)


def test_a_model_without_arguments_for_its_attention_gets_padded_batches(capsys: pytest.CaptureFixture[str]) -> None:
    class OldModel(transformers.LlamaForCausalLM):  # type: ignore[misc]  # transformers is not type-checked here
        def forward(
            self, input_ids: Any = None, position_ids: Any = None, attention_mask: Any = None, use_cache: Any = None
        ) -> Any:
            return super().forward(input_ids, attention_mask, position_ids, use_cache=use_cache)

    torch.manual_seed(0)
    policy = LoraPolicy(OldModel(tiny("llama").config), LoraSection(rank=4), name="m")
    assert policy.layout == "padded"
    printed = capsys.readouterr().out
    assert "OldModel computes padded batches" in printed
    assert "takes no arguments for its attention" in printed


def test_gradients_in_bfloat16_are_as_exact_as_those_of_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trees with our layers, and padded batches with PEFT's layers, both against float32.

    PEFT's layers compute adapters in float32.
    """
    rows, found = make_rows(6), {}
    padded = Capabilities(layout="padded", separate_head=True)
    for way, dtype in (("exact", torch.float32), ("ours", torch.bfloat16), ("peft", torch.bfloat16)):
        if way == "peft":
            monkeypatch.setattr(policy_module, "find_capabilities", lambda _: padded)
            monkeypatch.setattr(peft.LoraConfig, "_register_custom_module", lambda *_: None)
        model = tiny("llama").to(dtype)
        policy = LoraPolicy(model, LoraSection(rank=4), name="m")
        parameters = policy.start(seed=3, from_base=True)
        assert policy.layout == ("padded" if way == "peft" else "tree")
        assert (type(model.model.layers[0].self_attn.q_proj) is LoraLinear) is (way != "peft")
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(5)
            for key, p in parameters.items():
                assert p.dtype == torch.float32
                if "lora_B" in key:
                    p.normal_(std=0.01)
        (step,) = plan(rows, max_tokens=10**6, per_step=6, layout=policy.layout)
        for planned in step.micro_batches[0]:
            batch = collate(rows, planned.rows, policy.layout)
            logp, _ = policy.log_probs(batch, temperature=0.7)
            (logp * batch.advantage_N[batch.row_M]).sum().backward()
        found[way] = torch.cat([p.grad.flatten() for p in parameters.values()])
    errors = {way: float((found[way] - found["exact"]).norm() / found["exact"].norm()) for way in ("ours", "peft")}
    assert errors["ours"] < 1.3 * errors["peft"] < 0.1, errors


def test_the_seed_draws_the_adapter_and_missing_targets_are_refused() -> None:
    policy = LoraPolicy(tiny("llama"), LoraSection(rank=2), name="m")
    first = {n: p.detach().clone() for n, p in policy.start(seed=5, from_base=True).items()}
    torch.rand(3)
    again = policy.start(seed=5, from_base=True)
    other = {n: p.detach().clone() for n, p in again.items()}
    assert first.keys() == other.keys()
    assert all(torch.equal(first[n], other[n]) for n in first)
    changed = LoraPolicy(tiny("llama"), LoraSection(rank=2, targets=["q_proj"]), name="m").start(seed=6, from_base=True)
    assert len(changed) == 6
    assert not torch.equal(first[next(iter(changed))], next(iter(changed.values())))
    with pytest.raises(InputError, match=r"no such layer.*q_proj"):
        LoraPolicy(tiny("llama"), LoraSection(targets=["lm_head"]), name="m").start(seed=0, from_base=True)


def test_base_dropout_is_never_active() -> None:
    policy = LoraPolicy(tiny("gpt2").train(), LoraSection(), name="m")
    rows = make_rows(1)
    batch = collate(rows, [0], policy.layout)
    first, second = (policy.log_probs(batch, temperature=1)[0] for _ in range(2))
    torch.testing.assert_close(first, second, atol=0, rtol=0)
    with pytest.raises(InputError, match="no such layer"):
        policy.start(seed=0, from_base=True)


@pytest.mark.parametrize("num_ranks", [1, 2, 5])
def test_with_idle_batches_all_ranks_compute_equally_many(num_ranks: int) -> None:
    plans = plan_steps(make_rows(), problems_per_step=2, seed=0, num_ranks=num_ranks, max_tokens=30, layout="tree")
    for plan in plans:
        ranks = plan.micro_batches
        idle = [idle_batches(ranks, rank) for rank in range(num_ranks)]
        assert {len(own) + len(more) for own, more in zip(ranks, idle, strict=True)} == {max(map(len, ranks))}
        sizes = [batch.num_padded_tokens for own in ranks for batch in own]
        assert all(batch.num_padded_tokens == min(sizes) for more in idle for batch in more)
    assert idle_batches([(), ()], 0) == []
