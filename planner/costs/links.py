"""Time of collectives on a cluster: who talks to whom over what.

Ranks are laid out tensor first, then context, data and pipeline, as Megatron and the engine do. A
group is described by its size and by its stride, the distance between neighbours in rank order.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from planner.costs.cluster import Cluster
from planner.costs.workload import Array, Number

__all__ = [
    "all_reduce_seconds",
    "all_to_all_seconds",
    "gather_seconds",
    "group_bytes_per_second",
    "latency_seconds",
]

LATENCY_SECONDS: Final = 60e-6
"""Start of an all-reduce inside a node: 44 us, with the next the fit to vTrain's tables of A100 with
NVSwitch (50 us for 2 ranks, 87 us for 8), and 16 us for the streams that wait for each other in a
training step. Gathers and scatters, its halves, take half."""
HOP_SECONDS: Final = 6e-6
"""Per further rank of an all-reduce inside a node."""
NETWORK_HOP_SECONDS: Final = 8e-6
"""Per node of a ring between nodes (recalled: 5-10 us with InfiniBand)."""
NETWORK_SECONDS: Final = 15e-6
"""Per doubling of the nodes that a collective spans."""


def members_per_domain(size: Number, stride: Number, cluster: Cluster) -> Array:
    """Return how many members of a group share a scale-up domain.

    >>> from planner.costs.cluster import parse_cluster, resolve_cluster
    >>> members_per_domain(16.0, 1.0, resolve_cluster(parse_cluster("16xa100-sxm")))
    array(8.)
    """
    domain = float(cluster.devices_per_domain)
    return np.asarray(np.minimum(size, np.maximum(1.0, np.floor(domain / stride))))


def group_bytes_per_second(
    size: Number, stride: Number, cluster: Cluster, ports: Number = 64.0
) -> Array:
    """Return the bandwidth that each ring of a group gets, one direction.

    Inside a domain: the scale-up link. Across: the node's network is shared by the rings that
    leave the node, so a group gets its members in the node times a device's share of the network.
    16 ranks over two nodes get the whole node's network, eight strided pairs an eighth each. A library
    that runs a single ring leaves through one port however many members the node has.

    Source: Galvatron's two-node table (PKU-DAIR/Hetu-Galvatron, hardware_configs): 44.7 GB/s for 16
    ranks; 20.8, 16.2 and 8.1 GB/s for strided groups.
    """
    device = cluster.device
    members = members_per_domain(size, stride, cluster)
    across = np.minimum(
        device.scale_up_bytes_per_second,
        np.minimum(members, ports) * device.scale_out_bytes_per_second,
    )
    return np.where(members >= size, device.scale_up_bytes_per_second, across)


def latency_seconds(size: Number, stride: Number, cluster: Cluster) -> Array:
    """Return the time before the first byte: a ring inside the node, a tree between nodes."""
    members = members_per_domain(size, stride, cluster)
    nodes = np.maximum(size / members, 1.0)
    inside = LATENCY_SECONDS + HOP_SECONDS * (members - 1.0)
    return np.where(np.asarray(size) > 1, inside + NETWORK_SECONDS * np.log2(nodes), 0.0)


def _ring(size: Number) -> Array:
    """Return (n - 1) / n, the share of the data that a ring moves past each rank."""
    return np.asarray((size - 1.0) / size)


def all_reduce_seconds(
    num_bytes: Number, size: Number, stride: Number, cluster: Cluster, efficiency: float = 1.0
) -> Array:
    """Return the time of a ring all-reduce, alpha + 2 (n - 1) / n S / beta.

    Args:
        num_bytes: S, on every rank.
        size: n, ranks.
        stride: Distance between neighbours in rank order.
        cluster: Whose links.
        efficiency: Bus bandwidth over link bandwidth; 0.65-0.76 on A100 NVSwitch.
    """
    beta = group_bytes_per_second(size, stride, cluster) * efficiency
    return latency_seconds(size, stride, cluster) + 2.0 * _ring(size) * num_bytes / beta


def gather_seconds(
    num_bytes: Number,
    size: Number,
    stride: Number,
    cluster: Cluster,
    efficiency: float = 1.0,
    ports: Number = 64.0,
) -> Array:
    """Return the time of an all-gather or a reduce-scatter, alpha + (n - 1) / n S / beta; S is the whole.

    Their rings pass every rank, so the latency grows with the ranks and not with their logarithm.
    """
    beta = group_bytes_per_second(size, stride, cluster, ports) * efficiency
    nodes = np.maximum(size / members_per_domain(size, stride, cluster), 1.0)
    around = 0.5 * HOP_SECONDS * (size - nodes) + NETWORK_HOP_SECONDS * (nodes - 1.0)
    start = np.where(np.asarray(size) > 1, 0.5 * LATENCY_SECONDS + around, 0.0)
    return start + _ring(size) * num_bytes / beta


def all_to_all_seconds(
    num_bytes: Number, size: Number, stride: Number, cluster: Cluster, efficiency: float = 1.0
) -> Array:
    """Return the time of an all-to-all, alpha + (n - 1) / n S / beta; S leaves every rank.

    What leaves the domain has only the device's own share of the network.
    """
    members = members_per_domain(size, stride, cluster)
    outside = (size - members) / size * num_bytes
    inside = (members - 1.0) / size * num_bytes
    device = cluster.device
    links = device.scale_up_bytes_per_second * efficiency
    network = device.scale_out_bytes_per_second * efficiency
    return latency_seconds(size, stride, cluster) + np.maximum(inside / links, outside / network)
