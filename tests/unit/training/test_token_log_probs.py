"""Log-probabilities in chunks against the log-softmax of all logits, with gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from core_hpc.training import token_log_probs


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("trains_head", [False, True])
def test_chunked_log_softmax_equals_naive(
    monkeypatch: pytest.MonkeyPatch, temperature: float, bias: bool, trains_head: bool
) -> None:
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 37, bias=bias).requires_grad_(trains_head)
    targets = torch.randint(37, (23,))
    upstream = torch.randn(23)
    results = []
    for budget in (37 * 5, 10**6):
        monkeypatch.setitem(token_log_probs.MAX_LOGITS, "cpu", budget)
        hidden = (torch.randn(23, 8, generator=torch.Generator().manual_seed(1)) * 3).requires_grad_()
        head.zero_grad()
        arguments: dict[str, Any] = {"temperature": temperature, "vocabulary": 37, "trains_head": trains_head}
        logp, entropy = token_log_probs.token_log_probs(hidden, targets, head, **arguments)
        (logp * upstream).sum().backward()
        assert not entropy.requires_grad
        with torch.no_grad():
            alone, unknown = token_log_probs.token_log_probs(hidden, targets, head, **arguments)
        torch.testing.assert_close(alone, logp.detach(), atol=1e-5, rtol=1e-5)
        assert unknown.isnan().all()
        results.append((logp.detach(), entropy, hidden.grad, [p.grad for p in head.parameters()]))
    hidden = (torch.randn(23, 8, generator=torch.Generator().manual_seed(1)) * 3).requires_grad_()
    distribution = (head(hidden) / (temperature or 1)).log_softmax(-1)
    naive = distribution[torch.arange(23), targets]
    naive_entropy = torch.distributions.Categorical(logits=distribution.detach()).entropy()
    head.zero_grad()
    (naive * upstream).sum().backward()
    for logp, entropy, grad, head_grads in results:
        torch.testing.assert_close(logp, naive.detach(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(entropy, naive_entropy, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(grad, hidden.grad, atol=1e-5, rtol=1e-5)
        for found, wanted in zip(head_grads, head.parameters(), strict=True):
            assert (found is not None) is trains_head
            torch.testing.assert_close(found, wanted.grad, atol=1e-4, rtol=1e-5)


def test_a_head_of_several_operations_in_bfloat16() -> None:
    """Capped logits: the derivative includes every operation of the head."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(16, 53, bias=False).to(torch.bfloat16).requires_grad_(False)

    def head(hidden: torch.Tensor) -> torch.Tensor:
        return torch.tanh(linear(hidden) / 3.0) * 3.0

    states, targets = torch.randn(9, 16).to(torch.bfloat16), torch.randint(53, (9,))
    hidden, plain = (states.clone().requires_grad_() for _ in range(2))
    logp, entropy = token_log_probs.token_log_probs(hidden, targets, head, temperature=0.5, vocabulary=53)
    distribution = (head(plain).float() / 0.5).log_softmax(-1)
    wanted = distribution[torch.arange(9), targets]
    wanted_entropy = torch.distributions.Categorical(logits=distribution.detach()).entropy()
    torch.testing.assert_close(logp, wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropy, wanted_entropy, atol=1e-5, rtol=1e-5)
    logp.sum().backward()
    wanted.sum().backward()
    torch.testing.assert_close(hidden.grad, plain.grad, atol=2e-2, rtol=2e-2)
    assert float(plain.grad.abs().max()) > 0.3
