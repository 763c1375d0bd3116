"""The gradient of a large weight, summed over chunks of positions.

Shapes: C positions of one chunk, H hidden size, V rows of the weight, W rows of one slice of it.
"""

import torch
from torch import Tensor

SLICE_ELEMENTS, CACHED_SLICE_ELEMENTS = 2**26, 2**22
"""Elements of a product that are added up at once, and on CPUs, where they must not leave the cache."""


class WeightGradient:
    """Sum over chunks of grad_CV.T @ hidden_CH.

    A product of whole chunks is as large as the weight. It is made and added up slice by slice, so that no second
    tensor of that size exists beside the sum.
    """

    def __init__(self, weight_VH: Tensor, *, vocab_size: int, dtype: torch.dtype, num_chunks: int) -> None:
        """Sum up `num_chunks` products in `dtype`; the gradient of rows from `vocab_size` on is 0."""
        self._like_VH = weight_VH
        self._vocab_size = vocab_size
        # One that stays alone needs no wider sum.
        dtype = dtype if num_chunks > 1 else weight_VH.dtype
        shape = (len(weight_VH), weight_VH.shape[1])
        self._sum_VH = weight_VH.new_empty(shape, dtype=dtype) if num_chunks else weight_VH.new_zeros(shape)
        self._sum_VH[vocab_size:] = 0
        self._is_empty = True

    def add(self, grad_CV: Tensor, hidden_CH: Tensor) -> None:
        """Add a chunk: the gradients of its logits, and its hidden states."""
        sum_VH, is_first, self._is_empty = self._sum_VH, self._is_empty, False
        elements = CACHED_SLICE_ELEMENTS if sum_VH.device.type == "cpu" else SLICE_ELEMENTS
        num_rows = max(elements // sum_VH.shape[1], 1)
        product_WH = None
        if sum_VH.dtype != grad_CV.dtype:
            product_WH = grad_CV.new_empty(min(num_rows, self._vocab_size), sum_VH.shape[1])
        for start in range(0, self._vocab_size, num_rows):
            part = slice(start, min(start + num_rows, self._vocab_size))
            grad_WC, sum_WH = grad_CV[:, part].t(), sum_VH[part]
            if product_WH is None:
                torch.addmm(sum_WH, grad_WC, hidden_CH, beta=0 if is_first else 1, out=sum_WH)
                continue
            torch.mm(grad_WC, hidden_CH, out=product_WH[: len(sum_WH)])
            if is_first:
                sum_WH.copy_(product_WH[: len(sum_WH)])
            else:
                sum_WH.add_(product_WH[: len(sum_WH)])

    def result(self) -> Tensor:
        """Return the gradient in the weight's own dtype."""
        return self._sum_VH.to(self._like_VH.dtype)
