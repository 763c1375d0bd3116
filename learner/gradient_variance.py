"""How noisy the policy gradient of one sampled token is, exactly, from both distributions at its position.

With the student's distribution p and the advantage A of each token, one sampled token y gives the gradient
`A(y) * (onehot(y) - p)` with respect to the logits. Its variance, the mean squared distance from its expectation,
is

    sum of p * A**2 * |onehot(y) - p|**2  -  sum of (p * (A - mean))**2,        mean = sum of p * A,

where `|onehot(y) - p|**2 = 1 - 2 * p(y) + sum of p**2` and the expectation has the components `p * (A - mean)`. A
baseline shifts A and the mean alike, so that it leaves the expectation as it is and changes the first sum alone.

Shapes: N positions, V vocabulary.
"""

import torch
from torch import Tensor


@torch.no_grad()
def gradient_variance(log_p_NV: Tensor, advantage_NV: Tensor) -> Tensor:
    """Return variance_N of the gradient of one sampled token per position, from every token's advantage.

    Advantages count as fixed numbers, as in the loss. Rounding may not take the result below 0.
    """
    p_NV = log_p_NV.exp()
    mean_N1 = (p_NV * advantage_NV).sum(-1, keepdim=True)
    distance_NV = 1.0 - 2.0 * p_NV + p_NV.square().sum(-1, keepdim=True)
    second_moment_N = (p_NV * advantage_NV.square() * distance_NV).sum(-1)
    squared_mean_N = (p_NV * (advantage_NV - mean_N1)).square().sum(-1)
    return (second_moment_N - squared_mean_N).clamp(min=0.0)
