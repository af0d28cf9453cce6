"""What a configuration costs before it runs: parameters, FLOPs, memory, time, money, energy."""

from planner.costs.cluster import Cluster, ClusterConfig, parse_cluster, resolve_cluster
from planner.costs.devices import Device, known_devices
from planner.costs.estimates import CostEstimate, estimate
from planner.costs.flops import num_train_tokens, train_flops_per_token
from planner.costs.params import ParamCount, count_params

__all__ = [
    "Cluster",
    "ClusterConfig",
    "CostEstimate",
    "Device",
    "ParamCount",
    "count_params",
    "estimate",
    "known_devices",
    "num_train_tokens",
    "parse_cluster",
    "resolve_cluster",
    "train_flops_per_token",
]
