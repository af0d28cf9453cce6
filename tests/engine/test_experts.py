"""Mixture of experts: routing, and the loss that balances it."""

from __future__ import annotations

import torch

from planner.engine.models.experts import ExpertsMlp, _order_by_expert
from planner.trial import ModelConfig


def make(**changes):
    torch.manual_seed(0)
    model = ModelConfig(num_layers=1, d_model=8, num_heads=1, d_ff=16, num_experts=4, **changes)
    mlp = ExpertsMlp(model, 4)
    for parameter in mlp.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return mlp


def by_hand(mlp, x):
    """Return the output token by token, from the definition."""
    rows = []
    for token in x.reshape(-1, 8):
        shares = (mlp.router.weight @ token).softmax(0)
        gates, chosen = shares.topk(mlp.per_token)
        gates = gates / gates.sum() if mlp.per_token > 1 else gates
        w = mlp.experts
        rows.append(
            sum(
                gate * (w.w2[e] @ torch.nn.functional.gelu(w.w1[e] @ token))
                for gate, e in zip(gates, chosen, strict=True)
            )
        )
    return torch.stack(rows).view_as(x)


def test_every_token_passes_its_best_experts():
    for per_token in (1, 2):
        mlp, x = make(experts_per_token=per_token), torch.randn(3, 5, 8)
        assert torch.allclose(mlp.eval()(x), by_hand(mlp, x), atol=1e-6)


def test_the_balance_loss_is_least_where_tokens_spread_evenly():
    mlp = make()
    shares = torch.full((1, 8, 4), 0.25)
    even = mlp._balance_loss(shares, torch.arange(8).view(1, 8, 1) % 4)
    skewed = torch.zeros(1, 8, 4)
    skewed[..., 0] = 1.0
    one = mlp._balance_loss(skewed, torch.zeros(1, 8, 1, dtype=torch.int64))
    assert torch.isclose(even, torch.tensor(mlp.balance))
    assert torch.isclose(one, torch.tensor(4 * mlp.balance))


def test_the_balance_loss_reaches_the_router_with_its_weight():
    x = torch.randn(2, 6, 8)
    gradients = []
    for weight in (0.0, 1.0):
        mlp = make(router_balance_weight=weight).train()
        mlp(x).sum().backward()
        gradients.append(mlp.router.weight.grad.clone())
    mlp = make(router_balance_weight=1.0).train()
    shares = torch.nn.functional.linear(x, mlp.router.weight).softmax(-1)
    mlp._balance_loss(shares, shares.topk(1, dim=-1)[1]).backward()
    assert torch.allclose(gradients[1] - gradients[0], mlp.router.weight.grad, atol=1e-6)


def test_tokens_of_several_senders_are_sorted_by_expert():
    assert _order_by_expert(torch.tensor([[1, 2], [1, 0]])).tolist() == [0, 3, 1, 2]
