import pytest
import torch

from hpopt.training.model import Transformer
from hpopt.training.optim import Muon, lr_multiplier, make_optimizers, newton_schulz, parameter_groups

# Muon's default dtype, bfloat16, is the one in which torch.optim.Muon computes.
SETTINGS = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.9, "ns_steps": 5}


def draw(*shape, n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator) for _ in range(n)]


def optimize(optimizer_class, start, gradients, **settings):
    """Take a step along each gradient; return the parameter."""
    parameter = torch.nn.Parameter(start.clone())
    optimizer = optimizer_class([parameter], **{**SETTINGS, **settings})
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize("shape", [(16, 16), (16, 48), (48, 16)])
@pytest.mark.parametrize("ns_steps", [1, 5])
def test_muon_equals_torch_muon_on_matrices(shape, ns_steps):
    """A learning rate found here must be the same for other implementations of Muon; only rounding may differ."""
    start, *gradients = draw(*shape, n=6)
    ours = optimize(Muon, start, gradients, ns_steps=ns_steps)
    theirs = optimize(torch.optim.Muon, start, gradients, ns_steps=ns_steps)
    moved = (theirs - start).abs().max()
    assert (ours - theirs).abs().max() < 0.01 * moved


def test_each_stacked_expert_equals_an_expert_alone():
    """Orthogonalizing the flattened stack would let one expert's gradient scale another's."""
    start, *gradients = draw(4, 16, 48, n=4)
    stacked = optimize(Muon, start, gradients)
    for expert in range(4):
        alone = optimize(Muon, start[expert], [gradient[expert] for gradient in gradients])
        torch.testing.assert_close(stacked[expert], alone, rtol=0, atol=1e-3 * SETTINGS["lr"])


def test_parameters_batched_by_shape_equal_parameters_alone():
    """A matrix and its transpose share a batch; each must get its own update, not transposed."""
    shapes = [(16, 48), (48, 16), (2, 48, 16), (16, 16)]
    starts = [draw(*shape, n=1)[0] for shape in shapes]
    parameters = [torch.nn.Parameter(start.clone()) for start in starts]
    optimizer = Muon(parameters, **SETTINGS)
    for parameter, start in zip(parameters, starts, strict=True):
        parameter.grad = start.sin()
    optimizer.step()
    for parameter, start in zip(parameters, starts, strict=True):
        alone = optimize(Muon, start, [start.sin()])
        torch.testing.assert_close(parameter.detach(), alone, rtol=0, atol=1e-3 * SETTINGS["lr"])


@pytest.mark.parametrize("shape", [(3, 32, 64), (3, 64, 32)])
def test_newton_schulz_keeps_the_singular_vectors_and_brings_the_values_near_one(shape):
    """Against an SVD: five steps leave singular values in about [0.7, 1.2] (Jordan et al. 2024)."""
    (x_NRC,) = draw(*shape, n=1)
    u, _, v = torch.linalg.svd(x_NRC, full_matrices=False)
    core = u.mT @ newton_schulz(x_NRC, 5, torch.float32) @ v.mT
    values = core.diagonal(dim1=-2, dim2=-1)
    assert values.min() > 0.65
    assert values.max() < 1.25
    assert (core - torch.diag_embed(values)).abs().max() < 1e-3


def test_more_newton_schulz_steps_come_closer_to_orthogonal():
    """ns_steps is searched: it must trade cost for how even the singular values are."""
    (x_NRC,) = draw(1, 32, 64, n=1)
    smallest = [torch.linalg.svdvals(newton_schulz(x_NRC, n, torch.float32)).min().item() for n in (1, 3, 5)]
    assert smallest == sorted(smallest)
    assert smallest[0] < 0.5 * smallest[2]


def test_every_parameter_is_trained_by_exactly_one_optimizer(config_of):
    """A parameter in no optimizer never learns, one in two learns twice; neither raises by itself."""
    model = Transformer(config_of(), torch.Generator().manual_seed(0))
    for kind in ("muon", "adamw"):
        groups = parameter_groups(make_optimizers(model, config_of(optimizer=kind)))
        trained = [id(parameter) for group in groups for parameter in group["params"]]
        assert sorted(trained) == sorted(id(parameter) for parameter in model.parameters())


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_matrices_learn_at_learning_rate_and_the_rest_at_adamw_learning_rate(config_of, kind):
    """With AdamW alone, learning_rate must not be ignored."""
    model = Transformer(config_of(), torch.Generator().manual_seed(0))
    config = config_of(optimizer=kind, learning_rate=0.3, adamw_learning_rate=0.004)
    peak = {
        id(p): group["peak_lr"] for group in parameter_groups(make_optimizers(model, config)) for p in group["params"]
    }
    rates = {name: peak[id(parameter)] for name, parameter in model.named_parameters()}
    matrices = {name for name, rate in rates.items() if rate == 0.3}
    assert matrices == {name for name in rates if name.endswith(("qkv_3DD", "output_DD", "up_EFD", "down_EDF"))}
    assert {rates[name] for name in rates.keys() - matrices} == {0.004}


def schedule(kind, n_steps=10, warmup_ratio=0.2, min_lr_ratio=0.0):
    return [
        lr_multiplier(step, n_steps, kind=kind, warmup_ratio=warmup_ratio, min_lr_ratio=min_lr_ratio)
        for step in range(n_steps)
    ]


def test_warmup_rises_linearly_and_reaches_the_peak_after_its_last_step():
    """Two steps of warmup of ten: a third, two thirds, then 1. A first step at 0 would be wasted."""
    assert schedule("constant")[:4] == pytest.approx([1 / 3, 2 / 3, 1, 1])


def test_cosine_is_at_half_the_peak_in_the_middle():
    """(1 + cos(pi p)) / 2 at p = 0, 1/4, 1/2, 3/4 is 1, 0.853553, 0.5, 0.146447."""
    assert schedule("cosine", n_steps=4, warmup_ratio=0) == pytest.approx([1, 0.853553, 0.5, 0.146447], abs=1e-6)


def test_linear_falls_evenly_to_the_minimum():
    """From 1 towards 0.2 in four steps of -0.2."""
    assert schedule("linear", n_steps=4, warmup_ratio=0, min_lr_ratio=0.2) == pytest.approx([1, 0.8, 0.6, 0.4])


def test_wsd_is_constant_and_decays_over_the_last_fifth():
    assert schedule("wsd") == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1, 1, 0.5])


@pytest.mark.parametrize("kind", ["cosine", "linear", "wsd"])
def test_the_last_step_is_near_the_minimum_whatever_the_number_of_micro_steps(kind):
    """The schedule counts optimizer steps; counted in micro-steps, it would end near 90% of the peak."""
    assert schedule(kind, n_steps=250, warmup_ratio=0.05)[-1] < 0.03


def test_whole_run_of_warmup_never_decays():
    """warmup_ratio = 1 is allowed and must not divide by zero."""
    assert schedule("cosine", n_steps=3, warmup_ratio=1) == pytest.approx([0.25, 0.5, 0.75])


def test_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="'step' is not cosine, linear, wsd or constant"):
        schedule("step")
