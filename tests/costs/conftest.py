"""Workloads and clusters that the tests of the cost model build on."""

from collections.abc import Callable

import pytest

from planner.costs import Cluster, parse_cluster, resolve_cluster
from planner.costs.shapes import ModelShape, named_shape
from planner.costs.workload import Workload, model_fields, precision_fields


@pytest.fixture(scope="session")
def cluster_of() -> Callable[[str], Cluster]:
    return lambda text: resolve_cluster(parse_cluster(text))


@pytest.fixture(scope="session")
def workload_on(cluster_of) -> Callable[..., Workload]:
    peaks = cluster_of("8xh100-sxm").device.peaks

    def build(shape="llama-3-8b", precision="bf16", optimizer="adamw", **layout) -> Workload:
        found = shape if isinstance(shape, ModelShape) else named_shape(shape)
        fields = model_fields(found) | precision_fields(precision, optimizer, peaks)
        return Workload(**(fields | layout))

    return build
