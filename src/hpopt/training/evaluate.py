"""Evaluate a model on held-out text.

Legend: B sequences, S positions, T tokens, L layers, E experts, V vocabulary.
"""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hpopt.training.loss import token_losses
from hpopt.training.model import Transformer


@torch.no_grad()
def evaluate(
    model: Transformer,
    windows_BS: npt.NDArray[np.int64],
    token_bytes_V: npt.NDArray[np.int64],
    *,
    batch_size: int,
    before_batch: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Evaluate the model on windows of S + 1 tokens, each of which predicts S; `before_batch` may raise to stop it.

    `token_bytes_V` is the number of bytes of text that each token represents. Returns loss (nats per token), accuracy,
    perplexity, bits_per_byte (bits per byte of the text, comparable across vocabularies), expert_load_cv and
    router_entropy (nats).
    """
    device = model.embedding_VD.device
    losses, n_corrects, counts, entropies = [], [], [], []
    for batch in torch.split(torch.from_numpy(windows_BS), batch_size):
        before_batch()
        token_BS = batch.to(device)
        x_TD, load = model(token_BS[:, :-1])
        loss_T, correct_T = token_losses(x_TD, model.output_VD, token_BS[:, 1:].flatten())
        losses.append(loss_T.double().sum())
        n_corrects.append(correct_T.sum())
        counts.append(load.count_LE)
        entropies.append(load.entropy * len(batch))
    targets = windows_BS[:, 1:]
    total = float(torch.stack(losses).sum())
    loss = total / targets.size
    return {
        "loss": loss,
        "accuracy": float(torch.stack(n_corrects).sum()) / targets.size,
        # The exponential of more than 709 nats overflows a float.
        "perplexity": math.exp(min(loss, 700.0)),
        "bits_per_byte": total / math.log(2) / max(1, int(token_bytes_V[targets].sum())),
        "expert_load_cv": expert_load_cv(torch.stack(counts).sum(0)),
        "router_entropy": float(torch.stack(entropies).sum()) / len(windows_BS),
    }


def expert_load_cv(count_LE: Tensor) -> float:
    """Return the coefficient of variation of the tokens per expert (standard deviation / mean), averaged over layers.

    0 for an even load; sqrt(E - 1) if one expert gets all tokens.
    """
    count_LE = count_LE.double()
    return float((count_LE.std(dim=1, correction=0) / count_LE.mean(dim=1)).mean())
