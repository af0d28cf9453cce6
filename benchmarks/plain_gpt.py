"""A plain PyTorch GPT with the usual training loop: what the engine is measured against.

GPT-2's architecture (Radford et al., 2019) written the obvious way: fused query-key-value
projection, LayerNorm without bias, learned positions, tied head, AdamW, clipping at 1.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class PlainBlock(nn.Module):
    """Pre-norm block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, bias=False)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.norm2 = nn.LayerNorm(width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (batch, length, width)."""
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).split(width, dim=2)
        q, k, v = (t.view(batch, length, self.heads, -1).transpose(1, 2) for t in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).contiguous().view(batch, length, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class PlainGpt(nn.Module):
    """A GPT-2 of any size."""

    def __init__(self, layers: int, heads: int, width: int, vocabulary: int, length: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(length, width)
        self.blocks = nn.ModuleList(PlainBlock(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width, bias=False)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.tokens.weight = self.head.weight
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                scale = 1 / math.sqrt(2 * layers) if "out" in name or "down" in name else 1.0
                nn.init.normal_(parameter, std=0.02 * scale)

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the mean loss in nats per token."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.tokens(tokens) + self.positions(places)
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))


class PlainTrainer:
    """The usual loop: random windows, one forward and backward, clip, step."""

    def __init__(
        self, model: PlainGpt, tokens: np.ndarray, batch: int, length: int, rate: float
    ) -> None:
        self.model, self.tokens, self.batch, self.length = model, tokens, batch, length
        matrices = [p for p in model.parameters() if p.ndim >= 2]
        vectors = [p for p in model.parameters() if p.ndim < 2]
        groups = [
            {"params": matrices, "weight_decay": 0.1},
            {"params": vectors, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.99))
        self.generator = torch.Generator().manual_seed(1337)

    def step(
        self, rate: float | None = None, batch: tuple[torch.Tensor, torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Take one step, on windows of its own choice or on a given batch; return its loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate if rate is not None else group["lr"]
        loss = self.model(*(self._windows() if batch is None else batch))
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def _windows(self) -> tuple[torch.Tensor, torch.Tensor]:
        starts = torch.randint(
            len(self.tokens) - self.length, (self.batch,), generator=self.generator
        ).tolist()
        rows = [self.tokens[s : s + self.length + 1].astype(np.int64) for s in starts]
        windows = torch.stack([torch.from_numpy(row) for row in rows])
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()
