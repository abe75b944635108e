"""Mixture of experts: the routing of tokens, its load balancing loss, and the matrix products of the experts.

Legend: T tokens, D width, E experts, K chosen, F hidden, N = T * K rows sorted by expert, P = N rows and padding,
n rows of one expert.
"""

from collections.abc import Callable
from itertools import accumulate
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx

from hpopt.training.hardware import is_eager_cpu

# oneDNN compiles a bfloat16 product for each number of rows, which takes longer than the product: multiples of 64
# leave few numbers, and a CPU with matrix units computes 16 rows at once anyway.
_ROWS_MULTIPLE = {torch.bfloat16: 64}
# torch.nn.functional.grouped_mm requires rows whose length is a multiple of 16 bytes.
_GROUPED_ALIGNMENT_BYTES = 16


class Routing(NamedTuple):
    """The routing of one layer.

    `balance_loss` is the load balancing loss (scalar, differentiable), `count_E` the tokens of each expert (int64),
    `entropy` the mean entropy of the router's probabilities (scalar, nats, not differentiable).
    """

    balance_loss: Tensor
    count_E: Tensor
    entropy: Tensor


def mixture_of_experts(
    x_TD: Tensor, logit_TE: Tensor, up_EFD: Tensor, down_EDF: Tensor, top_k: int
) -> tuple[Tensor, Routing]:
    """Send each token through its top_k experts, down(silu(up(x))), and sum their outputs by weight.

    Returns y_TD in x's dtype, and the routing. Raises ValueError if top_k > E. Source: Shazeer et al. 2017, eq. 1-5.
    """
    weight_TK, expert_TK = route(logit_TE, top_k)
    count_E = count_tokens(expert_TK, logit_TE.shape[1])
    y_TD = run_experts(x_TD, weight_TK, expert_TK, up_EFD, down_EDF)
    return y_TD, Routing(load_balancing_loss(logit_TE, count_E), count_E, _router_entropy(logit_TE))


def route(logit_TE: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Choose the top_k experts of each token from the router's logits.

    Returns weight_TK (the softmax over the chosen: rows sum to 1) and expert_TK (int64).
    Raises ValueError if top_k > E. Source: Shazeer et al. 2017, eq. 3-5.
    """
    if top_k > logit_TE.shape[1]:
        raise ValueError(f"top_k: {top_k} is above the number of experts {logit_TE.shape[1]}")
    chosen_TK, expert_TK = logit_TE.topk(top_k, dim=-1)
    return chosen_TK.softmax(-1), expert_TK


def load_balancing_loss(logit_TE: Tensor, count_E: Tensor) -> Tensor:
    """Compute E * sum_e f_e P_e: 1 for an even load, up to E / K if all tokens go to the same K experts.

    f_e is the share of the T * K choices that went to e, P_e the mean probability that the router assigns to it.
    Returns a scalar in the logits' dtype, differentiable through P alone. Source: Fedus et al. 2021 (Switch
    Transformer), eq. 4-6; f counts all K choices of a token instead of one.
    """
    share_E = count_E / count_E.sum()
    return logit_TE.shape[1] * (share_E.to(logit_TE.dtype) * logit_TE.softmax(-1).mean(0)).sum()


@torch.no_grad()
def _router_entropy(logit_TE: Tensor) -> Tensor:
    log_probability_TE = logit_TE.log_softmax(-1)
    return -(log_probability_TE.exp() * log_probability_TE).sum(-1).mean()


def count_tokens(expert_TK: Tensor, n_experts: int) -> Tensor:
    """Count the tokens of each expert: count_E (int64). Unlike bincount, it does not synchronize with a GPU."""
    is_chosen_TKE: Tensor = expert_TK.unsqueeze(-1) == torch.arange(n_experts, device=expert_TK.device)
    return is_chosen_TKE.sum((0, 1))


def run_experts(x_TD: Tensor, weight_TK: Tensor, expert_TK: Tensor, up_EFD: Tensor, down_EDF: Tensor) -> Tensor:
    """Compute y_TD = sum_k weight_k * down(silu(up(x))) over the experts of each token, in x's dtype."""
    is_aligned = all(size * x_TD.element_size() % _GROUPED_ALIGNMENT_BYTES == 0 for size in up_EFD.shape[1:])
    if torch.compiler.is_compiling() and not (is_aligned and x_TD.dtype == torch.bfloat16):
        return _run_experts_uncompiled(x_TD, weight_TK, expert_TK, up_EFD, down_EDF)
    if is_eager_cpu(x_TD) or not is_aligned:
        y_TD: Tensor = _SlicedExperts.apply(x_TD, weight_TK, up_EFD, down_EDF, expert_TK)  # type: ignore[no-untyped-call]
        return y_TD
    return _run_grouped(x_TD, weight_TK, expert_TK, up_EFD, down_EDF)


# torch.compile supports the grouped product in bfloat16 only, and cannot trace _SlicedExperts.
_run_experts_uncompiled: Callable[..., Tensor] = torch.compiler.disable(run_experts)  # type: ignore[no-untyped-call]


def _run_grouped(x_TD: Tensor, weight_TK: Tensor, expert_TK: Tensor, up_EFD: Tensor, down_EDF: Tensor) -> Tensor:
    """Compute on a GPU: the grouped product needs no count on the host."""
    top_k = expert_TK.shape[1]
    order_N = expert_TK.flatten().argsort(stable=True)
    inverse_N = torch.empty_like(order_N).scatter_(0, order_N, torch.arange(len(order_N), device=order_N.device))
    end_E = count_tokens(expert_TK, len(up_EFD)).cumsum(0).to(torch.int32)
    hidden_NF = F.silu(F.grouped_mm(x_TD.index_select(0, order_N // top_k), up_EFD.mT, offs=end_E))
    y_ND = F.grouped_mm(hidden_NF, down_EDF.mT, offs=end_E)
    # Gathering by the inverse order keeps every sum in a fixed order; a scatter would not.
    y_TKD = y_ND.index_select(0, inverse_N).view(-1, top_k, x_TD.shape[1])
    return (weight_TK.to(y_TKD.dtype).unsqueeze(-1) * y_TKD).sum(1)


class _Rows(NamedTuple):
    """The rows of all experts: how many each has (padded), the token of each row, and the K rows of each token."""

    sizes: list[int]
    token_P: Tensor
    row_TK: Tensor


def _place_rows(expert_TK: Tensor, n_experts: int, multiple: int) -> _Rows:
    """Assign each expert a row per token that chose it, rounded up to a multiple; the padding repeats token 0."""
    n_tokens, top_k = expert_TK.shape
    order_N = expert_TK.flatten().argsort(stable=True)
    counts: list[int] = count_tokens(expert_TK, n_experts).tolist()
    sizes = [-(-count // multiple) * multiple for count in counts]
    ends = list(accumulate(sizes))
    padding = [end - total for end, total in zip(ends, accumulate(counts), strict=True)]
    device = expert_TK.device
    shift_E, count_E = torch.tensor([[0, *padding[:-1]], counts], device=device)
    row_N = torch.arange(n_tokens * top_k, device=device) + shift_E.repeat_interleave(count_E)
    return _Rows(
        sizes=sizes,
        token_P=torch.zeros(ends[-1], dtype=torch.int64, device=device).index_copy_(0, row_N, order_N // top_k),
        row_TK=torch.empty_like(order_N).index_copy_(0, order_N, row_N).view(n_tokens, top_k),
    )


class _SlicedExperts(torch.autograd.Function):
    """run_experts on a CPU, and for widths that are not aligned: a slice of rows per expert, written in place.

    Compared with autograd's backward pass of the same slices: 10 instead of 44 ms in bfloat16, 17 instead of 19 in
    float32, for 4096 rows of 128 x 512 and 8 experts on two cores with matrix units.
    """

    @staticmethod
    def forward(  # noqa: PLR0917 - autograd passes by position.
        ctx: FunctionCtx, x_TD: Tensor, weight_TK: Tensor, up_EFD: Tensor, down_EDF: Tensor, expert_TK: Tensor
    ) -> Tensor:
        rows = _place_rows(expert_TK, len(up_EFD), _ROWS_MULTIPLE.get(x_TD.dtype, 1))
        x_PD = x_TD.index_select(0, rows.token_P)
        hidden_PF, y_PD = x_PD.new_empty(len(x_PD), up_EFD.shape[1]), torch.empty_like(x_PD)
        x, hidden, y = (torch.split(rows_P, rows.sizes) for rows_P in (x_PD, hidden_PF, y_PD))
        for e, (up_DF, down_FD) in enumerate(zip(up_EFD.mT.unbind(0), down_EDF.mT.unbind(0), strict=True)):
            torch.mm(x[e], up_DF, out=hidden[e])
            torch.mm(F.silu(hidden[e]), down_FD, out=y[e])
        weight_TK = weight_TK.to(x_TD.dtype)
        ctx.save_for_backward(x_PD, hidden_PF, y_PD, weight_TK, up_EFD, down_EDF, rows.token_P, rows.row_TK)
        ctx.sizes = rows.sizes  # type: ignore[attr-defined]
        return _sum_rows(y_PD, rows.row_TK, weight_TK)

    @staticmethod
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:  # noqa: ANN401 - torch has no type for it.
        x_PD, hidden_PF, y_PD, weight_TK, up_EFD, down_EDF, token_P, row_TK = ctx.saved_tensors
        # The weight of the padding is 0, so it adds nothing to the gradients below.
        weight_P = weight_TK.new_zeros(len(token_P)).index_copy_(0, row_TK.flatten(), weight_TK.flatten())
        grad_PD = grad_TD.index_select(0, token_P)
        grad_weight_TK = torch.linalg.vecdot(grad_PD, y_PD)[row_TK]
        grad_PD *= weight_P.unsqueeze(1)
        grad_x_PD, grad_up_EFD, grad_down_EDF = map(torch.empty_like, (x_PD, up_EFD, down_EDF))
        x, hidden, grad, grad_x = (torch.split(rows_P, ctx.sizes) for rows_P in (x_PD, hidden_PF, grad_PD, grad_x_PD))
        up, down, grad_up, grad_down = (m.unbind(0) for m in (up_EFD, down_EDF, grad_up_EFD, grad_down_EDF))
        for e in range(len(up)):
            torch.mm(grad[e].t(), F.silu(hidden[e]), out=grad_down[e])
            grad_nF = torch.ops.aten.silu_backward(grad[e] @ down[e], hidden[e])
            torch.mm(grad_nF.t(), x[e], out=grad_up[e])
            torch.mm(grad_nF, up[e], out=grad_x[e])
        return _sum_rows(grad_x_PD, row_TK), grad_weight_TK, grad_up_EFD, grad_down_EDF, None


def _sum_rows(y_PD: Tensor, row_TK: Tensor, weight_TK: Tensor | None = None) -> Tensor:
    """Sum the K rows of each token, multiplied by their weights if there are any; returns y_TD."""
    y_TD = y_PD.new_zeros(len(row_TK), y_PD.shape[1])
    for k, row_T in enumerate(row_TK.unbind(1)):
        chosen_TD = y_PD.index_select(0, row_T)
        if weight_TK is None:
            y_TD += chosen_TD
        else:
            y_TD.addcmul_(chosen_TD, weight_TK[:, k : k + 1])
    return y_TD
