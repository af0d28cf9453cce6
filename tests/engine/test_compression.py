"""PowerSGD: what the factors carry, and that nothing is lost."""

from __future__ import annotations

import pytest
import torch

from planner.engine.parallel.compression import PowerSgd


def alone(shape=(24, 16), rank=2, seed=0):
    """Return a matrix and the compression of a single worker."""
    parameter = torch.nn.Parameter(torch.zeros(shape))
    return parameter, PowerSgd([("w", parameter)], None, 1, rank, seed)


def test_what_is_sent_and_what_is_owed_add_up_to_all_gradients():
    torch.manual_seed(0)
    parameter, compression = alone()
    given, sent = torch.zeros(24, 16), torch.zeros(24, 16)
    for number in (1, 4, 2):
        gradient = torch.randn(24, 16) * number
        parameter.grad = gradient.clone()
        compression.average(number)
        given += gradient / number
        sent += parameter.grad / number
    assert torch.allclose(sent + compression.tensors["w.error"], given, atol=1e-5)


def test_a_gradient_of_the_factors_rank_is_sent_whole():
    torch.manual_seed(0)
    parameter, compression = alone(rank=2)
    gradient = torch.randn(24, 2) @ torch.randn(2, 16)
    parameter.grad = gradient.clone()
    compression.average(1)
    assert torch.allclose(parameter.grad, gradient, atol=1e-4)
    assert torch.linalg.matrix_rank(parameter.grad, atol=1e-4) == 2


def test_repeated_steps_find_the_best_factors_of_a_matrix():
    # With the same matrix again and again and no error kept, the iteration is a power iteration:
    # it reaches the truncated singular value decomposition (Eckart and Young, 1936).
    torch.manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(n, n)).Q for n in (24, 16))
    values = 2.0 ** -torch.arange(16.0)
    matrix = u[:, :16] @ torch.diag(values) @ v.T
    parameter, compression = alone(rank=2)
    for _ in range(12):
        parameter.grad = matrix.clone()
        compression.tensors["w.error"].zero_()
        compression.average(1)
    best = float(values[2:].square().sum().sqrt())
    assert float((matrix - parameter.grad).norm()) == pytest.approx(best, rel=1e-3)


def test_vectors_and_matrices_that_factors_would_not_shrink_are_sent_whole():
    for shape in ((16,), (3, 3)):
        parameter, compression = alone(shape=shape)
        gradient = torch.randn(shape)
        parameter.grad = gradient.clone()
        compression.average(3)
        assert torch.equal(parameter.grad, gradient)
        assert compression.tensors == {}
