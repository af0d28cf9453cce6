"""Convolutional networks as lists of convolutions: ResNet and EfficientNet."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from planner.costs.cluster import Cluster
from planner.costs.links import all_reduce_seconds
from planner.costs.params import count_shape_params
from planner.costs.shapes import Convolution, ModelShape
from planner.costs.speed import default_efficiency
from planner.errors import ConfigError, did_you_mean

__all__ = ["ConvnetCost", "convnet_cost", "convnet_shape"]

_RESNETS: Final = {
    "resnet-18": (False, (2, 2, 2, 2)),
    "resnet-34": (False, (3, 4, 6, 3)),
    "resnet-50": (True, (3, 4, 6, 3)),
    "resnet-101": (True, (3, 4, 23, 3)),
    "resnet-152": (True, (3, 8, 36, 3)),
}
"""Bottleneck or basic blocks, and blocks per stage (He et al. 2016, arXiv:1512.03385, table 1)."""

_EFFICIENTNETS: Final = {
    "efficientnet-b0": (1.0, 1.0, 224),
    "efficientnet-b1": (1.0, 1.1, 240),
    "efficientnet-b2": (1.1, 1.2, 260),
    "efficientnet-b3": (1.2, 1.4, 300),
    "efficientnet-b4": (1.4, 1.8, 380),
    "efficientnet-b5": (1.6, 2.2, 456),
    "efficientnet-b6": (1.8, 2.6, 528),
    "efficientnet-b7": (2.0, 3.1, 600),
}
"""Width factor, depth factor, image side (Tan and Le 2019, arXiv:1905.11946, and its code)."""

_MBCONV: Final = (
    (1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3), (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4), (6, 3, 1, 320, 1),
)  # fmt: skip
"""Expansion, kernel, stride, channels, blocks of each stage (Tan and Le 2019, table 1)."""


def _resnet(name: str, num_classes: int) -> Iterator[Convolution]:
    bottleneck, stages = _RESNETS[name]
    yield Convolution(kernel=7, in_channels=3, out_channels=64, pixels=112**2)
    channels = 64
    for stage, blocks in enumerate(stages):
        width, side = 64 * 2**stage, 56 // 2**stage
        out = width * (4 if bottleneck else 1)
        for block in range(blocks):
            first = block == 0
            stride = 2 if first and stage else 1
            yield from _resnet_block(channels, width, out, side, stride, bottleneck)
            if first and (stride > 1 or channels != out):
                yield Convolution(kernel=1, in_channels=channels, out_channels=out, pixels=side**2)
            channels = out
    yield Convolution(
        kernel=1, in_channels=channels, out_channels=num_classes, pixels=1, norm=False, bias=True
    )


def _resnet_block(
    channels: int, width: int, out: int, side: int, stride: int, bottleneck: bool
) -> Iterator[Convolution]:
    if not bottleneck:
        yield Convolution(kernel=3, in_channels=channels, out_channels=width, pixels=side**2)
        yield Convolution(kernel=3, in_channels=width, out_channels=width, pixels=side**2)
        return
    before = (side * stride) ** 2
    yield Convolution(kernel=1, in_channels=channels, out_channels=width, pixels=before)
    yield Convolution(kernel=3, in_channels=width, out_channels=width, pixels=side**2)
    yield Convolution(kernel=1, in_channels=width, out_channels=out, pixels=side**2)


def round_channels(channels: float) -> int:
    """Return a multiple of 8 near a width, never more than 10 % below it.

    >>> round_channels(32 * 1.1), round_channels(320 * 1.2)
    (32, 384)
    """
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def _efficientnet(name: str, num_classes: int) -> Iterator[Convolution]:
    width, depth, image = _EFFICIENTNETS[name]
    channels, side = round_channels(32 * width), math.ceil(image / 2)
    yield Convolution(kernel=3, in_channels=3, out_channels=channels, pixels=side**2)
    for expansion, kernel, stride, base, blocks in _MBCONV:
        out = round_channels(base * width)
        for block in range(math.ceil(blocks * depth)):
            before, side = side, math.ceil(side / stride) if block == 0 else side
            yield from _mbconv(channels, out, expansion, kernel, before, side)
            channels = out
    top = round_channels(1280 * width)
    yield Convolution(kernel=1, in_channels=channels, out_channels=top, pixels=side**2)
    yield Convolution(
        kernel=1, in_channels=top, out_channels=num_classes, pixels=1, norm=False, bias=True
    )


def _mbconv(
    channels: int, out: int, expansion: int, kernel: int, before: int, side: int
) -> Iterator[Convolution]:
    """Yield an inverted bottleneck; its squeeze-and-excitation has a quarter of the input channels."""
    inner, squeezed = channels * expansion, max(1, channels // 4)
    if expansion > 1:
        yield Convolution(kernel=1, in_channels=channels, out_channels=inner, pixels=before**2)
    yield Convolution(
        kernel=kernel, in_channels=inner, out_channels=inner, pixels=side**2, groups=inner
    )
    for a, b in ((inner, squeezed), (squeezed, inner)):
        yield Convolution(kernel=1, in_channels=a, out_channels=b, pixels=1, norm=False, bias=True)
    yield Convolution(kernel=1, in_channels=inner, out_channels=out, pixels=side**2)


def convnet_shape(name: str, num_classes: int) -> ModelShape:
    """Return the shape of a ResNet or an EfficientNet for images of its native size.

    Raises:
        ConfigError: The network is not known.
    """
    if name in _RESNETS:
        layers = tuple(_resnet(name, num_classes))
    elif name in _EFFICIENTNETS:
        layers = tuple(_efficientnet(name, num_classes))
    else:
        known = [*_RESNETS, *_EFFICIENTNETS]
        raise ConfigError(f"no network named {name!r}. {did_you_mean(name, known)}")
    widest = max(layer.out_channels for layer in layers)
    return ModelShape(
        family="convnet", num_layers=len(layers), d_model=widest, num_heads=1, num_kv_heads=1,
        head_dim=widest, d_ff=0, vocab_size=num_classes, sequence_length=1, is_causal=False,
        convolutions=layers,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvnetCost:
    """A data-parallel training step of a convolutional network."""

    num_params: int
    forward_flops_per_image: float
    step_seconds: float
    memory_bytes: float
    """Per device."""


def convnet_cost(
    shape: ModelShape, cluster: Cluster, *, images_per_step: int, precision: str
) -> ConvnetCost:
    """Return the cost of a step: each layer the larger of its arithmetic and its memory traffic.

    Training is three forward passes; activations are kept before and after normalisation; gradients
    are reduced over all devices, half of it behind the backward pass.

    Raises:
        ConfigError: The images are no multiple of the devices, or the precision is lacking.
    """
    if images_per_step % cluster.num_devices:
        raise ConfigError(
            f"images per step must be a multiple of the devices: {images_per_step} on {cluster}."
        )
    device, e = cluster.device, default_efficiency(cluster)
    images, size = images_per_step // cluster.num_devices, 2.0 if precision != "fp32" else 4.0
    rate = device.peak_flops_per_second(precision) * device.achievable_fraction * e.gemm
    bandwidth = device.memory_bytes_per_second * e.memory
    forward = stored = flops = 0.0
    for layer in shape.convolutions:
        products = layer.kernel**2 * layer.in_channels * layer.out_channels // layer.groups
        out = layer.pixels * layer.out_channels
        flops += 2.0 * layer.pixels * products
        stored += 2.0 * size * out
        moved = size * (layer.pixels * layer.in_channels + 6.0 * out)
        forward += max(2.0 * layer.pixels * products / rate, moved / bandwidth) * images
    params = count_shape_params(shape).total
    reduced = float(
        all_reduce_seconds(4.0 * params, float(cluster.num_devices), 1.0, cluster, e.network)
    )
    memory = 16.0 * params + images * stored + (3e8 if device.is_cpu else 1.5e9)
    return ConvnetCost(
        num_params=params,
        forward_flops_per_image=flops,
        step_seconds=3.0 * forward + 0.5 * reduced,
        memory_bytes=memory,
    )
