"""Fine-tuning, its parts: losses against slow ones, gradients that agree, two passes for one, adapters, reversal."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cadloc.contract import InputError
from cadloc.encoders.ace import AceFeatures
from cadloc.encoders.dense_hog import DenseHogFeatures
from cadloc.encoders.small import SmallFeatures
from cadloc.finetuning.adapters import (
    CARD,
    WEIGHTS,
    LearnedEncoder,
    learned,
    load_tuned,
    parameters_of,
    save_tuned,
    with_adapters,
)
from cadloc.finetuning.cells import CellBatch, Step, neighbourhood, read_cells
from cadloc.finetuning.discriminator import PatchDiscriminator, domain_loss, ramp, reversed_gradient
from cadloc.finetuning.feature_losses import (
    anchor_loss,
    barlow_twins,
    cosine_margin,
    near_points,
    neighbourhood_max,
    pair_loss,
    reach_of,
    symmetric_info_nce,
    vicreg,
)
from cadloc.finetuning.gradients import combined, cosines, equalised, flat, pcgrad, unflatten
from cadloc.finetuning.settings import BarlowTwins, CosineMargin, InfoNce, MeanSquaredError, VicReg
from cadloc.finetuning.two_pass import batch_gradients
from cadloc.geometry import Array, cell_pixels
from cadloc.head_config import AceHead
from cadloc.heads import build as build_head


def rows(seed: int, count: int = 6, channels: int = 5) -> Array:
    """Features (count, channels)."""
    return np.random.default_rng(seed).normal(size=(count, channels))


def tensor(array: Array) -> Tensor:
    return torch.from_numpy(array)


def cosine(a: Array, b: Array) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


POINTS = np.array([[0.0, 0, 0], [0.5, 0, 0], [5, 0, 0], [9, 0, 0], [9, 0.3, 0], [2, 7, 0]])


def small(seed: int = 0) -> SmallFeatures:
    """A seeded encoder in evaluation mode."""
    return SmallFeatures().initialised(seed).eval()


def images(count: int, seed: int = 0) -> Tensor:
    """Noise pictures (count, 3, 48, 64)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 48, 64), generator=generator, dtype=torch.uint8)


# --- losses -----------------------------------------------------------------------------------------------


def slow_info_nce(a: Array, b: Array, points: Array, reach_m: float, temperature: float) -> float:
    total = 0.0
    for rows_a, rows_b in ((a, b), (b, a)):
        for i in range(len(a)):
            scores = []
            for j in range(len(a)):
                far = np.linalg.norm(points[i] - points[j]) > reach_m
                if i == j or far:
                    scores.append(cosine(rows_a[i], rows_b[j]) / temperature)
                if far:
                    scores.append(cosine(rows_a[i], rows_a[j]) / temperature)
            own = cosine(rows_a[i], rows_b[i]) / temperature
            total += math.log(sum(math.exp(score) for score in scores)) - own
    return total / (2 * len(a))


def test_info_nce_is_its_definition() -> None:
    """Both directions, negatives of both sides, near points left out: the sum written out in loops."""
    a, b = rows(0), rows(1)
    near = near_points(tensor(POINTS), 1.0)
    assert near.sum() == 10
    expected = slow_info_nce(a, b, POINTS, 1.0, 0.2)
    assert symmetric_info_nce(tensor(a), tensor(b), near, 0.2).item() == pytest.approx(expected, abs=1e-9)


def test_the_reach_is_a_length_or_a_share_of_the_scene() -> None:
    """The larger of the two tells negatives from the same place."""
    loss = InfoNce(reach_m=0.5, reach_share=0.01)
    assert reach_of(loss, 20.0) == 0.5
    assert reach_of(loss, 100.0) == pytest.approx(1.0)


def test_nearness_does_not_drown_far_from_the_origin() -> None:
    """Half a metre is near and two are not, in float32, at coordinates of tens of kilometres."""
    far = torch.tensor([[40_000.0, 50_000.0, 10.0]]) + torch.tensor([[0.0, 0, 0], [0.5, 0, 0], [2.0, 0, 0]])
    assert near_points(far, 1.0).tolist() == [[True, True, False], [True, True, False], [False, False, True]]


def test_cosine_margin_is_the_source_works_form() -> None:
    """Hinges of 1 − cos − 0.1 to the pair and cos + 1 − 0.3 to the farthest point's cell, in loops."""
    a, b = rows(2), rows(3)
    total = 0.0
    for i in range(len(a)):
        other = max(range(len(a)), key=lambda j: float(np.linalg.norm(POINTS[i] - POINTS[j])))
        total += max(0.0, 1 - cosine(a[i], b[i]) - 0.1) + max(0.0, cosine(a[i], b[other]) + 1 - 0.3)
    loss = cosine_margin(tensor(a), tensor(b), tensor(POINTS), CosineMargin())
    assert loss.item() == pytest.approx(total / len(a), abs=1e-9)


def test_vicreg_is_its_definition() -> None:
    """Invariance, variance and covariance from NumPy's own variances and covariances, weighted 25, 25, 1."""
    a, b = 0.3 * rows(4, 20, 4), rows(5, 20, 4)
    variance = covariance = 0.0
    for x in (a, b):
        variance += float(np.mean([max(0.0, 1 - math.sqrt(np.var(x[:, k], ddof=1) + 1e-4)) for k in range(4)])) / 2
        C = np.cov(x.T)
        covariance += sum(C[i, j] ** 2 for i in range(4) for j in range(4) if i != j) / 4
    expected = 25 * np.mean((a - b) ** 2) + 25 * variance + covariance
    assert vicreg(tensor(a), tensor(b), VicReg()).item() == pytest.approx(expected, rel=1e-9)


def test_barlow_twins_is_its_definition() -> None:
    """Squared distance of NumPy's cross-correlation from the identity, off-diagonal entries at 0.0051."""
    a, b = rows(6, 30, 4), rows(7, 30, 4)
    expected = 0.0
    for i in range(4):
        for j in range(4):
            spread = math.sqrt((a[:, i].var() + 1e-4) * (b[:, j].var() + 1e-4))
            c = np.mean((a[:, i] - a[:, i].mean()) * (b[:, j] - b[:, j].mean())) / spread
            expected += (c - 1) ** 2 if i == j else 0.0051 * c**2
    assert barlow_twins(tensor(a), tensor(b), 0.0051).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("config", [MeanSquaredError(), CosineMargin(), InfoNce(), VicReg(), BarlowTwins()])
def test_every_pair_loss_prefers_pairs_to_strangers(
    config: MeanSquaredError | CosineMargin | InfoNce | VicReg | BarlowTwins,
) -> None:
    """Almost equal features of a pair cost less than those of the next row, and the gradient reaches both sides."""
    a = tensor(rows(8, 12, 6)).requires_grad_()
    b = (a.detach() + 0.01 * tensor(rows(9, 12, 6))).requires_grad_()
    points = 10 * tensor(rows(10, 12, 3))
    right = pair_loss(config, a, b, points, 20.0)
    wrong = pair_loss(config, a, b.roll(1, dims=0), points, 20.0)
    assert right < wrong
    torch.autograd.backward(wrong)
    assert a.grad is not None
    assert b.grad is not None
    assert min(float(a.grad.abs().max()), float(b.grad.abs().max())) > 0


def test_tolerance_takes_the_most_similar_neighbour() -> None:
    """Of nine candidates the one of largest cosine is chosen, whatever its length, and only it gets a gradient."""
    wanted = tensor(rows(11))
    candidates = tensor(np.random.default_rng(12).normal(size=(6, 9, 5)))
    places = torch.tensor([0, 8, 3, 4, 1, 7])
    candidates[torch.arange(6), places] = 0.1 * wanted
    candidates.requires_grad_()
    chosen = neighbourhood_max(wanted, candidates)
    torch.testing.assert_close(chosen, 0.1 * wanted)
    torch.autograd.backward(chosen.sum())
    assert candidates.grad is not None
    touched = candidates.grad.abs().sum(dim=2) > 0
    assert touched.nonzero()[:, 1].tolist() == places.tolist()


def test_the_anchor_measures_relative_distance() -> None:
    """Zero at the original; a quarter where all is half as long again; the same at every scale of the features."""
    original = tensor(rows(13))
    assert anchor_loss(original, original).item() == 0
    assert anchor_loss(1.5 * original, original).item() == pytest.approx(0.25)
    assert anchor_loss(150 * original, 100 * original).item() == pytest.approx(0.25)


# --- gradients --------------------------------------------------------------------------------------------


@given(st.integers(0, 10_000), st.integers(2, 40))
def test_pcgrad_leaves_two_objectives_without_conflict(seed: int, size: int) -> None:
    """Neither projected gradient works against the other's original; without conflict nothing changes."""
    generator = np.random.default_rng(seed)
    one, two = (tensor(generator.normal(size=size) + shift) for shift in (0.3, -0.3))
    projected = pcgrad({"photos": one, "renders": two}, generator)
    assert projected["photos"] @ two >= -1e-9
    assert projected["renders"] @ one >= -1e-9
    assert (projected["photos"] + projected["renders"]) @ one >= -1e-9
    if one @ two >= 0:
        assert torch.equal(projected["photos"], one)
        assert torch.equal(projected["renders"], two)


def test_pcgrad_projects_on_originals_in_random_order() -> None:
    """With three objectives it is the published algorithm in loops; the order is drawn, the gradients stay theirs."""
    gradients = {name: tensor(row) for name, row in zip("abc", rows(3, 3, 2), strict=True)}
    kept = {name: gradient.clone() for name, gradient in gradients.items()}
    generator, results = np.random.default_rng(0), set()
    for seed in range(6):
        projected = pcgrad(gradients, np.random.default_rng(seed))
        generator = np.random.default_rng(seed)
        for name in gradients:
            g, others = kept[name].numpy().copy(), [other for other in gradients if other != name]
            for k in generator.permutation(2):
                other = kept[others[k]].numpy()
                if g @ other < 0:
                    g = g - g @ other / (other @ other) * other
            np.testing.assert_allclose(projected[name].numpy(), g, atol=1e-12)
        results.add(tuple(round(float(value), 6) for value in flat(list(projected.values()))))
    assert all(torch.equal(gradients[name], kept[name]) for name in kept)
    assert len(results) > 1


def test_equalised_gradients_have_one_norm() -> None:
    """A gradient a thousand times larger pulls as hard as the other, no harder; one of zero stays zero."""
    gradients = {"a": tensor(rows(0)[0]), "b": 1000 * tensor(rows(0)[1]), "c": torch.zeros(5, dtype=torch.float64)}
    equal = equalised(gradients)
    assert equal["a"].norm().item() == pytest.approx(equal["b"].norm().item())
    assert equal["c"].norm() == 0
    assert cosines(equal)["a~b"] == pytest.approx(cosines(gradients)["a~b"])
    total = combined(gradients, "equalised", np.random.default_rng(0))
    torch.testing.assert_close(total, equal["a"] + equal["b"])


def test_a_flattened_gradient_comes_apart_again() -> None:
    """Vectors return to the parameters' shapes."""
    parameters = [torch.randn(3, 2), torch.randn(4), torch.randn(1, 2, 2)]
    back = unflatten(flat(parameters), parameters)
    assert all(torch.equal(a, b) for a, b in zip(parameters, back, strict=True))


# --- two passes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_two_passes_give_the_gradients_of_one(chunk: int) -> None:
    """Encoder, head, losses: what chunks of images give equals plain backpropagation through the whole batch."""
    encoder, pictures = small(), images(5)
    parameters = list(parameters_of(encoder, "full").values())
    head = build_head(AceHead(width=16), encoder.dimensions, 0)
    pixels = [torch.from_numpy(cell_pixels(6, 8).reshape(-1, 2)[k::9]).float() for k in range(5)]
    targets = torch.randn(sum(len(places) for places in pixels), 3, generator=torch.Generator().manual_seed(1))

    def objectives(features: Tensor) -> dict[str, Tensor]:
        near = torch.eye(len(features) // 2, dtype=torch.bool)
        half = len(near)
        nce = symmetric_info_nce(features[:half], features[half : 2 * half], near, 0.2)
        return {"nce": nce, "head": (head(features).coordinates - targets).square().mean()}

    whole = objectives(read_cells(encoder(pictures), pixels))
    expected = torch.autograd.grad(whole["nce"] + whole["head"], [*parameters, *head.parameters()])

    def encode(some: slice) -> Tensor:
        return read_cells(encoder(pictures[some]), pixels[some])

    for separate in (False, True):
        own = list(head.parameters())
        found = batch_gradients(encode, 5, objectives, parameters, own, chunk=chunk, separate=separate)
        assert set(found.encoder) == ({"nce", "head"} if separate else {"sum"})
        total = combined(found.encoder, "sum", np.random.default_rng(0))
        reference = flat(expected[: len(parameters)])
        assert (total - reference).norm() < 1e-5 * reference.norm()
        for mine, theirs in zip(found.own, expected[len(parameters) :], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found.losses["head"], whole["head"].detach())


def test_an_objective_that_ignores_the_features_has_no_gradient() -> None:
    """Its gradient is zero, not an error, and the others' stay."""
    encoder, pictures = small(), images(2)
    parameters = list(parameters_of(encoder, "last_block").values())
    pixels = [torch.full((1, 2), 20.0)] * 2
    weight = torch.ones(1, requires_grad=True)
    found = batch_gradients(
        lambda some: read_cells(encoder(pictures[some]), pixels[some]), 2,
        lambda features: {"idle": weight.square().sum(), "busy": features[0, :3].sum()}, parameters, [weight],
        chunk=1, separate=True,
    )  # fmt: skip
    assert found.encoder["idle"].abs().max() == 0
    assert found.encoder["busy"].abs().max() > 0
    assert found.own[0] == torch.tensor([2.0])


# --- adapters and tuned encoders --------------------------------------------------------------------------


def encoders() -> tuple[LearnedEncoder, ...]:
    """One of each architecture, ACE's in a narrow version."""
    return small(), AceFeatures(32).initialised(0).eval()


@pytest.mark.parametrize("index", [0, 1])
def test_new_adapters_change_nothing(index: int) -> None:
    """Features before and after putting adapters in are equal bit for bit, and the original has none."""
    encoder = encoders()[index]
    adapted = with_adapters(encoder, 8)
    assert torch.equal(adapted.encode(images(1)), encoder.encode(images(1)))
    with pytest.raises(ValueError, match="no adapters"):
        parameters_of(encoder, "adapters")


@pytest.mark.parametrize("index", [0, 1])
def test_adapters_learn_once_they_may(index: int) -> None:
    """At first only the zero layer has a gradient; after one step the whole bottleneck has, and features differ."""
    adapted = with_adapters(encoders()[index], 8)
    parameters = parameters_of(adapted, "adapters")
    before = adapted.encode(images(1))
    for _ in range(2):
        gradients = torch.autograd.grad(
            adapted(images(1)).square().mean() + adapted(images(1)).sum(), list(parameters.values())
        )
        moved = {name: bool(g.abs().max() > 0) for name, g in zip(parameters, gradients, strict=True)}
        with torch.no_grad():
            for parameter, gradient in zip(parameters.values(), gradients, strict=True):
                parameter.sub_(0.1 * gradient / gradient.norm().clamp_min(1e-6))
    assert all(moved.values())
    assert not torch.equal(adapted.encode(images(1)), before)


def test_parameter_sets_are_what_they_say() -> None:
    """The last block is a small part of all; adapters are no part of the pre-trained encoder."""
    for encoder in encoders():
        full, last = parameters_of(encoder, "full"), parameters_of(encoder, "last_block")
        assert set(last) < set(full)
        adapted = with_adapters(encoder, 8)
        adapters = parameters_of(adapted, "adapters")
        assert len(adapters) == 4 * (4 if isinstance(encoder, SmallFeatures) else 2)
        assert sum(p.numel() for p in parameters_of(adapted, "full").values()) == sum(
            p.numel() for p in [*full.values(), *adapters.values()]
        )


@pytest.mark.parametrize("channels", [None, 8])
@pytest.mark.parametrize("index", [0, 1])
def test_a_tuned_encoder_read_back_is_the_same(index: int, channels: int | None, tmp_path: Path) -> None:
    """Weights, running statistics and adapters survive the disk: features are equal bit for bit, and frozen."""
    encoder = encoders()[index] if channels is None else with_adapters(encoders()[index], channels)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for value in encoder.state_dict().values():
            if value.is_floating_point():
                value.add_(0.02 * torch.rand(value.shape, generator=generator))
    save_tuned(tmp_path, encoder, {"note": 1})
    back = load_tuned(tmp_path)
    assert torch.equal(back.encode(images(1)), encoder.encode(images(1)))
    assert not any(parameter.requires_grad for parameter in learned(back).parameters())


def test_what_is_no_tuned_encoder_is_an_input_error(tmp_path: Path) -> None:
    """A missing card, one of another architecture, cut weights and weights that do not fit are told with the file."""
    with pytest.raises(InputError, match=CARD):
        load_tuned(tmp_path)
    save_tuned(tmp_path, small(), {})
    card = (tmp_path / CARD).read_text()
    (tmp_path / CARD).write_text(card.replace('"small"', '"large"'))
    with pytest.raises(InputError, match="large"):
        load_tuned(tmp_path)
    (tmp_path / CARD).write_text(card.replace('"adapter_channels": null', '"adapter_channels": 4'))
    with pytest.raises(InputError, match=r"no blocks\.0\.adapter\.down\.weight"):
        load_tuned(tmp_path)
    (tmp_path / CARD).write_text(card)
    (tmp_path / WEIGHTS).write_bytes((tmp_path / WEIGHTS).read_bytes()[:-100])
    with pytest.raises(InputError, match=WEIGHTS):
        load_tuned(tmp_path)


def test_gradient_histograms_cannot_be_tuned() -> None:
    """The encoder without weights is refused by name."""
    with pytest.raises(InputError, match="DenseHogFeatures"):
        learned(DenseHogFeatures())


# --- discriminator and cells ------------------------------------------------------------------------------


def test_reversal_turns_the_gradient_round() -> None:
    """Forward it is the identity; backward the gradient is −weight times the plain one."""
    features = tensor(rows(20)).requires_grad_()
    assert torch.equal(reversed_gradient(features, 0.3), features)
    (plain,) = torch.autograd.grad(features.square().sum(), features)
    (turned,) = torch.autograd.grad(reversed_gradient(features, 0.3).square().sum(), features)
    torch.testing.assert_close(turned, -0.3 * plain)
    assert ramp(0) == 0
    assert ramp(1) == pytest.approx(2 / (1 + math.exp(-10)) - 1)


def test_the_discriminator_learns_what_the_features_unlearn() -> None:
    """One loss, two sides: descending it tells two sets of features apart, and its features' gradient mixes them."""
    generator = torch.Generator().manual_seed(0)
    photos = (torch.randn(200, 4, generator=generator) + 1).requires_grad_()
    renders = torch.randn(200, 4, generator=generator) - 1
    discriminator = PatchDiscriminator(4, 16, seed=0)
    start = domain_loss(discriminator, photos, renders, 1.0).item()
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=0.02)
    for _ in range(40):
        optimizer.zero_grad()
        torch.autograd.backward(domain_loss(discriminator, photos, renders, 1.0))
        optimizer.step()
    end = domain_loss(discriminator, photos, renders, 1.0)
    assert start == pytest.approx(math.log(2), abs=0.1)
    assert end.item() < 0.2
    (gradient,) = torch.autograd.grad(end, photos)
    assert domain_loss(discriminator, photos - 300 * gradient, renders, 1.0) > end


def test_cells_are_read_where_they_are() -> None:
    """At cell centres maps give the cells' own features; renders with tolerance give the nine about each."""
    maps = torch.randn(2, 4, 5, 7, generator=torch.Generator().manual_seed(0))
    grid = torch.from_numpy(cell_pixels(5, 7)).float()
    batch = CellBatch(
        torch.zeros(2, 3, 40, 56, dtype=torch.uint8), torch.stack([grid[2, 3:5], grid[1, 1:3]]),
        torch.zeros(2, 2, 3), torch.eye(4).repeat(2, 1, 1), torch.eye(3).repeat(2, 1, 1),
    )  # fmt: skip
    step = Step({"photos": batch, "renders": batch}, tolerance_cells=1)
    assert len(step) == 4
    parts = step.by_role(read_cells(torch.cat([maps, maps]), step.pixels))
    torch.testing.assert_close(
        parts["photos"], torch.stack([maps[0, :, 2, 3], maps[0, :, 2, 4], maps[1, :, 1, 1], maps[1, :, 1, 2]])
    )
    assert parts["renders"].shape == (4, 9, 4)
    torch.testing.assert_close(parts["renders"][:, 4], parts["photos"])
    torch.testing.assert_close(parts["renders"][0], maps[0, :, 1:4, 2:5].mT.flatten(1).T)
    assert neighbourhood(grid[2, 3:5], 0).tolist() == grid[2, 3:5].tolist()
