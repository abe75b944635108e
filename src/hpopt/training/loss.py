"""Cross-entropy over a vocabulary, in chunks of tokens.

Legend: T tokens, D width, V vocabulary, C tokens of one chunk.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

# The most logits in memory at once. On the CPU a chunk stays within the cache, which makes the loss three times as
# fast; a GPU needs large products, and 2^27 logits are 512 MiB in float32.
_CHUNK_LOGITS = {"cpu": 2**20, "cuda": 2**27}


def cross_entropy(x_TD: Tensor, weight_VD: Tensor, target_T: Tensor) -> Tensor:
    """Compute the mean cross-entropy of softmax(x @ weight.T) and the targets, in nats: a scalar, float32 or float64.

    `target_T` is int64. The logits are computed chunk by chunk, together with their gradient, so the result can be
    differentiated once, not twice. Source: Liger kernel, Hsu et al. 2024, section 3.2.
    """
    loss: Tensor = _ChunkedCrossEntropy.apply(x_TD, weight_VD, target_T)  # type: ignore[no-untyped-call]
    return loss


@torch.no_grad()
def token_losses(x_TD: Tensor, weight_VD: Tensor, target_T: Tensor) -> tuple[Tensor, Tensor]:
    """Return loss_T (nats, float32 or float64) and correct_T (bool: the target is the likeliest token), detached."""
    losses, corrects = [], []
    for x_CD, target_C in _chunks(x_TD, target_T, weight_VD.shape[0]):
        log_probability_CV = _logits(x_CD, weight_VD).log_softmax(-1)
        losses.append(-log_probability_CV.gather(1, target_C[:, None]).squeeze(1))
        corrects.append(log_probability_CV.argmax(-1) == target_C)
    return torch.cat(losses), torch.cat(corrects)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """cross_entropy: the forward pass also computes the gradients, the backward pass scales them."""

    @staticmethod
    def forward(ctx: FunctionCtx, x_TD: Tensor, weight_VD: Tensor, target_T: Tensor) -> Tensor:
        n_tokens, vocabulary = x_TD.shape[0], weight_VD.shape[0]
        grad_x_TD = torch.empty_like(x_TD)
        # Sums over many chunks lose small terms in bfloat16, hence at least float32.
        sum_dtype = torch.promote_types(weight_VD.dtype, torch.float32)
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=sum_dtype)
        total = torch.zeros((), dtype=sum_dtype, device=x_TD.device)
        start = 0
        for x_CD, target_C in _chunks(x_TD, target_T, vocabulary):
            log_probability_CV = _logits(x_CD, weight_VD).log_softmax(-1)
            total -= log_probability_CV.gather(1, target_C[:, None]).sum()
            # The gradient of the loss with respect to the logits is softmax - onehot.
            grad_logit_CV = log_probability_CV.exp_()
            grad_logit_CV.scatter_add_(1, target_C[:, None], grad_logit_CV.new_full((len(target_C), 1), -1.0))
            grad_logit_CV = grad_logit_CV.to(x_TD.dtype)
            torch.mm(grad_logit_CV, weight_VD, out=grad_x_TD[start : start + len(target_C)])
            if grad_weight_VD.dtype == x_CD.dtype:
                grad_weight_VD.addmm_(grad_logit_CV.t(), x_CD)
            else:
                grad_weight_VD += grad_logit_CV.t() @ x_CD
            start += len(target_C)
        ctx.save_for_backward(grad_x_TD.div_(n_tokens), grad_weight_VD.div_(n_tokens))
        return total / n_tokens

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # noqa: ANN401 - torch has no type for it.
        grad_x_TD, grad_weight_VD = ctx.saved_tensors
        return grad_x_TD * grad.to(grad_x_TD.dtype), grad_weight_VD * grad, None


def _logits(x_CD: Tensor, weight_VD: Tensor) -> Tensor:
    logit_CV = x_CD @ weight_VD.t()
    return logit_CV.to(torch.promote_types(logit_CV.dtype, torch.float32))


def _chunks(x_TD: Tensor, target_T: Tensor, vocabulary: int) -> Iterator[tuple[Tensor, Tensor]]:
    size = max(1, _CHUNK_LOGITS[x_TD.device.type] // vocabulary)
    return zip(torch.split(x_TD, size), torch.split(target_T, size), strict=True)
