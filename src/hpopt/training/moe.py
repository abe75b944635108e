"""Owns the routing of a mixture of experts, and its load. Leaves the experts' products to experts.py.

Legend: T tokens, D width, E experts, K chosen, F hidden.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from hpopt.training.experts import count_tokens, run_experts


class Routing(NamedTuple):
    """What a layer did: the balance loss (scalar, differentiable), count_E (int64) and the router's entropy (nats)."""

    balance: Tensor
    count_E: Tensor
    entropy: Tensor


def moe(x_TD: Tensor, logit_TE: Tensor, up_EFD: Tensor, down_EDF: Tensor, top_k: int) -> tuple[Tensor, Routing]:
    """Send each token through its top_k experts, down(silu(up(x))), and add the answers up by weight.

    Returns y_TD in x's dtype. Raises ValueError if top_k > E. Source: Shazeer et al. 2017, eq. 1-5.
    """
    weight_TK, expert_TK = choose(logit_TE, top_k)
    count_E = count_tokens(expert_TK, logit_TE.shape[1])
    y_TD = run_experts(x_TD, weight_TK, expert_TK, up_EFD, down_EDF)
    return y_TD, Routing(load_balance(logit_TE, count_E), count_E, _entropy(logit_TE))


def choose(logit_TE: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Choose the top_k experts of each token from the router's logits.

    Returns weight_TK (rows sum to 1: the softmax over the chosen) and expert_TK (int64).
    Raises ValueError if top_k > E. Source: Shazeer et al. 2017, eq. 3-5.
    """
    if top_k > logit_TE.shape[1]:
        raise ValueError(f"top_k: {top_k} is above the number of experts {logit_TE.shape[1]}")
    chosen_TK, expert_TK = logit_TE.topk(top_k, dim=-1)
    return chosen_TK.softmax(-1), expert_TK


def load_balance(logit_TE: Tensor, count_E: Tensor) -> Tensor:
    """Give E * sum_e f_e P_e: 1 when the load is even, up to E / K when all tokens go to the same K experts.

    f_e is the share of the T * K choices that went to e, P_e the mean probability that the router gives it.
    Source: Fedus et al. 2021 (Switch Transformer), eq. 4-6; f counts all K choices of a token instead of one.
    """
    share_E = count_E / count_E.sum()
    return logit_TE.shape[1] * (share_E.to(logit_TE.dtype) * logit_TE.softmax(-1).mean(0)).sum()


@torch.no_grad()
def _entropy(logit_TE: Tensor) -> Tensor:
    log_probability_TE = logit_TE.log_softmax(-1)
    return -(log_probability_TE.exp() * log_probability_TE).sum(-1).mean()
