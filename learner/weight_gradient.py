"""The gradient of a large weight, summed over chunks of positions.

Shapes: C positions of one chunk, H hidden size, V rows of the weight.
"""

import torch
from torch import Tensor


class WeightGradient:
    """Sum over chunks of grad_CV.T @ hidden_CH, up to H positions at a time.

    Each product is as large as the weight, and adding it up costs more than a small one takes to compute. So
    chunks wait, in the model's dtype, until they would outgrow the weight themselves.
    """

    def __init__(self, weight_VH: Tensor, *, vocab_size: int, dtype: torch.dtype) -> None:
        """Sum up in `dtype`; the gradient of rows from `vocab_size` on is 0."""
        self._weight_VH = weight_VH
        self._vocab_size = vocab_size
        self._dtype = dtype
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self._num_waiting = 0
        self._sum_VH: Tensor | None = None

    def add(self, grad_CV: Tensor, hidden_CH: Tensor) -> None:
        """Take the next chunk: gradients of its logits, and its hidden states."""
        if self._num_waiting + len(grad_CV) > hidden_CH.shape[1]:
            self._multiply(is_last=False)
        self._waiting.append((grad_CV, hidden_CH))
        self._num_waiting += len(grad_CV)

    def result(self) -> Tensor:
        """Return the gradient in the weight's own dtype."""
        self._multiply(is_last=True)
        if self._sum_VH is None:
            return torch.zeros_like(self._weight_VH)
        grad_VH = self._sum_VH.to(self._weight_VH.dtype)
        if self._vocab_size == len(self._weight_VH):
            return grad_VH
        return torch.cat([grad_VH, grad_VH.new_zeros(len(self._weight_VH) - self._vocab_size, grad_VH.shape[1])])

    def _multiply(self, *, is_last: bool) -> None:
        if not self._waiting:
            return
        grads, hiddens = zip(*self._waiting, strict=True)
        self._waiting.clear()
        self._num_waiting = 0
        product_VH = torch.cat(grads).t() @ torch.cat(hiddens)
        if self._sum_VH is not None:
            self._sum_VH += product_VH
        else:  # one that stays alone needs no wider sum
            self._sum_VH = product_VH if is_last else product_VH.to(self._dtype)
