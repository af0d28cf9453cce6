"""Optimizers, with one rule for which parameters decay.

All but LAMB are torch's. They work on sharded parameters (DTensors) as on whole ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

import torch
from torch import nn

from planner.trial import OptimizerConfig

__all__ = ["Lamb", "MuonWithAdamW", "build_optimizer", "decays", "follows_width"]

NamedParameters = Iterable[tuple[str, nn.Parameter]]
Groups = list[dict[str, Any]]

_MUON_MOMENTUM: Final = 0.95
_ADAM_WIDTH_POWERS: Final = (-1.0, 0.0)
_WIDTH_POWERS: Final = {"sgd": (0.0, 1.0), "lamb": (-0.5, 0.0), "adafactor": (-0.5, 0.0)}
"""Powers of the width with which the learning rates of hidden matrices and of all else go: Adam's and
SGD's from Yang et al. (2022, "Tensor Programs V", table 8). Updates that are scaled to the parameter's
own norm, which grows with the root of the width in a hidden matrix, need the root of Adam's."""


def decays(name: str, parameter: torch.Tensor) -> bool:
    """Return whether weight decay applies: to matrices, but not to positions, norms and biases."""
    return parameter.ndim >= 2 and not name.startswith("positions.")


def follows_width(name: str, parameter: torch.Tensor) -> bool:
    """Return whether a parameter is a hidden matrix, both of whose sides grow with the width."""
    return parameter.ndim >= 2 and name.startswith("layers.")


def build_optimizer(
    config: OptimizerConfig, parameters: NamedParameters, d_model: int
) -> torch.optim.Optimizer:
    """Return the optimizer over named parameters.

    Parameters are grouped by whether they decay, by how their learning rate follows the width
    (`lr_factor` of the group), by whether they are sharded, which fused updates cannot mix, and
    matrices of experts, which are three-dimensional and not Muon's, apart from the others.
    """
    width_ratio = d_model / config.base_width if config.width_scaling == "mup" else 1.0
    hidden_power, other_power = _WIDTH_POWERS.get(config.name, _ADAM_WIDTH_POWERS)
    groups: dict[tuple[object, ...], dict[str, Any]] = {}
    for name, parameter in parameters:
        decay, hidden = decays(name, parameter), follows_width(name, parameter)
        key = (decay, hidden, hasattr(parameter, "placements"), hidden and parameter.ndim > 2)
        group = groups.setdefault(
            key,
            {
                "params": [],
                "weight_decay": config.weight_decay if decay else 0.0,
                "lr_factor": width_ratio ** (hidden_power if hidden else other_power),
                "is_hidden": hidden,
            },
        )
        group["params"].append(parameter)
    return _BUILDERS[config.name](list(groups.values()), config)


class Lamb(torch.optim.Optimizer):
    """Adam's update, scaled for every parameter to the parameter's norm.

    r = m_hat / (sqrt(v_hat) + eps) + weight_decay x;  x <- x - lr |x| / |r| r, with |x| / |r| = 1
    where either is 0 (You et al., 2020, "Large batch optimization for deep learning", algorithm 2).
    """

    def __init__(self, params: Groups, lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        beta1, beta2 = group["betas"]
        state["exp_avg"].lerp_(parameter.grad, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(parameter.grad, parameter.grad, value=1 - beta2)
        steps = float(state["step"])
        mean = state["exp_avg"] / (1 - beta1**steps)
        root = (state["exp_avg_sq"] / (1 - beta2**steps)).sqrt()
        update = mean / (root + group["eps"]) + group["weight_decay"] * parameter
        norm, update_norm = _whole_norm(parameter), _whole_norm(update)
        trust = norm / update_norm if norm > 0 and update_norm > 0 else 1.0
        parameter.add_(update, alpha=-group["lr"] * trust)


def _whole_norm(tensor: Any) -> float:
    """Return the norm of a whole tensor, of which this worker may hold a part."""
    norm = torch.linalg.vector_norm(tensor)
    full = getattr(norm, "full_tensor", None)
    return float(norm if full is None else full())


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon for the layers' matrices, AdamW for everything else, as one optimizer.

    Muon's updates are scaled to AdamW's root mean square, so one learning rate serves both (Jordan
    et al., 2024; Liu et al., 2025, "Muon is scalable for LLM training", equation 4).
    """

    def __init__(self, params: Groups, config: OptimizerConfig) -> None:
        super().__init__(params, {"lr": config.learning_rate})
        momentum = _MUON_MOMENTUM if config.momentum is None else config.momentum
        hidden = [g for g in self.param_groups if g["is_hidden"] and g["params"][0].ndim == 2]
        rest = [g for g in self.param_groups if g not in hidden]
        self._parts: list[torch.optim.Optimizer] = []
        if hidden:
            self._parts.append(
                torch.optim.Muon(
                    hidden, lr=config.learning_rate, momentum=momentum,
                    adjust_lr_fn="match_rms_adamw",
                )
            )  # fmt: skip
        if rest:
            self._parts.append(_adamw(rest, config))
        self.param_groups = [group for part in self._parts for group in part.param_groups]
        for part in self._parts:
            part.state = self.state

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update every parameter that has a gradient."""
        for part in self._parts:
            part.step()


def _adamw(groups: Groups, config: OptimizerConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), eps=config.epsilon,
        fused=True,
    )  # fmt: skip


def _adam(groups: Groups, config: OptimizerConfig) -> torch.optim.Optimizer:
    return torch.optim.Adam(
        groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), eps=config.epsilon,
        fused=True,
    )  # fmt: skip


def _sgd(groups: Groups, config: OptimizerConfig) -> torch.optim.Optimizer:
    # torch's fused SGD, unlike its fused Adam, does not run on sharded parameters.
    is_whole = not any(hasattr(p, "placements") for group in groups for p in group["params"])
    return torch.optim.SGD(
        groups, lr=config.learning_rate, momentum=config.momentum or 0.0, nesterov=config.nesterov,
        fused=is_whole,
    )  # fmt: skip


def _rmsprop(groups: Groups, config: OptimizerConfig) -> torch.optim.Optimizer:
    return torch.optim.RMSprop(
        groups, lr=config.learning_rate, alpha=config.beta2, eps=config.epsilon,
        momentum=config.momentum or 0.0,
    )  # fmt: skip


def _adagrad(groups: Groups, config: OptimizerConfig) -> torch.optim.Optimizer:
    return torch.optim.Adagrad(groups, lr=config.learning_rate, eps=config.epsilon)


def _adafactor(groups: Groups, config: OptimizerConfig) -> torch.optim.Optimizer:
    return torch.optim.Adafactor(groups, lr=config.learning_rate)


def _lamb(groups: Groups, config: OptimizerConfig) -> torch.optim.Optimizer:
    return Lamb(groups, config.learning_rate, (config.beta1, config.beta2), config.epsilon)


_BUILDERS: Final[dict[str, Callable[[Groups, OptimizerConfig], torch.optim.Optimizer]]] = {
    "adafactor": _adafactor,
    "adagrad": _adagrad,
    "adam": _adam,
    "adamw": _adamw,
    "lamb": _lamb,
    "muon": MuonWithAdamW,
    "rmsprop": _rmsprop,
    "sgd": _sgd,
}
