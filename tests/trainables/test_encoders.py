"""Encoders: the published architecture by name, the laws every encoder keeps, and files that cannot be used."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from cadloc.config import AceEncoder, DenseHog, EncoderConfig, SmallEncoder, TrialConfig
from cadloc.contract import InputError
from cadloc.documents import Document
from cadloc.encoders import build
from cadloc.encoders.ace import AceFeatures, save_ace
from cadloc.encoders.small import SHIPPED, SmallFeatures
from cadloc.faults import validate

ALL: tuple[EncoderConfig, ...] = (AceEncoder(), SmallEncoder(weights="random"), SmallEncoder(), DenseHog())

# ACE, supplementary material: name, inputs, outputs, kernel side.
ACE_LAYERS = {
    "conv1": (1, 32, 3),
    "conv2": (32, 64, 3),
    "conv3": (64, 128, 3),
    "conv4": (128, 256, 3),
    "res1_conv1": (256, 256, 3),
    "res1_conv2": (256, 256, 1),
    "res1_conv3": (256, 256, 3),
    "res2_conv1": (256, 512, 3),
    "res2_conv2": (512, 512, 1),
    "res2_conv3": (512, 512, 3),
    "res2_skip": (256, 512, 1),
}


def random_image(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """(1, 3, H, W) uint8 with structure of several sizes."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(1, 3, height, width)
    for side in (4, 16, 64):
        coarse = torch.rand(1, 3, height // side + 1, width // side + 1, generator=generator)
        total += torch.nn.functional.interpolate(coarse, scale_factor=side, mode="bicubic")[..., :height, :width]
    return (total / 3 * 255).clamp(0, 255).to(torch.uint8)


def ace_state(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, (inputs, outputs, side) in ACE_LAYERS.items():
        state[f"{name}.weight"] = torch.randn(outputs, inputs, side, side, generator=generator) * 0.03
        state[f"{name}.bias"] = torch.randn(outputs, generator=generator) * 0.1
    return state


def ace_reference(state: dict[str, torch.Tensor], image: torch.Tensor) -> torch.Tensor:
    """ACE's encoder written out with plain convolutions."""

    def layer(name: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
        weight = state[f"{name}.weight"]
        convolved: torch.Tensor = torch.nn.functional.conv2d(
            x, weight, state[f"{name}.bias"], stride, weight.shape[-1] // 2
        )
        return convolved

    red, green, blue = image.float()[0] / 255
    x = ((0.299 * red + 0.587 * green + 0.114 * blue - 0.4) / 0.25)[None, None]
    for name, stride in (("conv1", 1), ("conv2", 2), ("conv3", 2), ("conv4", 2)):
        x = layer(name, x, stride).relu()
    r = x
    for name in ("res1_conv1", "res1_conv2", "res1_conv3"):
        x = layer(name, x).relu()
    r = r + x
    x = r
    for name in ("res2_conv1", "res2_conv2", "res2_conv3"):
        x = layer(name, x).relu()
    skipped: torch.Tensor = layer("res2_skip", r) + x
    return skipped


def test_ace_loads_a_published_state_dict_as_it_is(tmp_path: Path) -> None:
    """A flat state dict with ACE's names gives ACE's features, computed independently; 5,568,000 parameters."""
    state = ace_state()
    torch.save(state, tmp_path / "ace.pt")
    encoder = build(AceEncoder(weights=str(tmp_path / "ace.pt")))
    image = random_image(64, 80)
    torch.testing.assert_close(encoder.encode(image), ace_reference(state, image), rtol=1e-4, atol=1e-4)
    own = AceFeatures().state_dict()
    assert {name: value.shape for name, value in own.items()} == {name: value.shape for name, value in state.items()}
    assert sum(value.numel() for value in own.values()) == 5_568_000


def test_ace_takes_the_encoder_out_of_a_whole_regressor(tmp_path: Path) -> None:
    """A regressor's dict, with prefixes and a head beside, yields the same encoder as the encoder's own file."""
    state = ace_state()
    whole = {f"encoder.{name}": value.half() for name, value in state.items()} | {"heads.mean": torch.zeros(3)}
    torch.save(whole, tmp_path / "regressor.pt")
    loaded = AceFeatures.from_file(tmp_path / "regressor.pt").state_dict()
    assert all(torch.equal(loaded[name], value.half().float()) for name, value in state.items())


def test_ace_names_every_tensor_that_does_not_fit(tmp_path: Path) -> None:
    """Missing, unknown and misshapen tensors are all reported at once, under the key `encoder.weights`."""
    state = ace_state()
    del state["conv3.weight"]
    state["conv1.bias"] = torch.zeros(31)
    state["fc1.weight"] = torch.zeros(1)
    torch.save(state, tmp_path / "wrong.pt")
    with pytest.raises(InputError) as error:
        build(AceEncoder(weights=str(tmp_path / "wrong.pt")))
    found = [fault.found for fault in error.value.faults]
    assert {fault.key for fault in error.value.faults} == {"encoder.weights"}
    assert found == ["no conv3.weight", "unknown name fc1.weight", "conv1.bias of shape (31,)"]


def test_ace_survives_its_file(tmp_path: Path) -> None:
    """A flat dict of ACE's names and shapes is written, which loads without code and gives the same features."""
    encoder = AceFeatures().initialised(3).eval()
    save_ace(encoder, tmp_path / "own.pt", {"parameters": 5_568_000})
    written = torch.load(tmp_path / "own.pt", weights_only=True)
    assert {name: value.shape for name, value in written.items()} == {
        name: value.shape for name, value in ace_state().items()
    }
    image = random_image(64, 64)
    loaded = build(AceEncoder(weights=str(tmp_path / "own.pt")))
    assert torch.equal(loaded.encode(image), encoder.encode(image))
    torch.testing.assert_close(ace_reference(written, image), encoder.encode(image), rtol=1e-4, atol=1e-4)
    card = json.loads((tmp_path / "own.json").read_text())
    assert (card["architecture"], card["stride"], card["dimensions"]) == ("ace", 8, 512)


def test_a_refused_pickle_says_why(tmp_path: Path) -> None:
    """Where a file named by a trial needs code to load, the fault says so, what is allowed, and how to make it."""
    file, trace = tmp_path / "file.pt", tmp_path / "code_ran"
    torch.save({"conv1.weight": Payload(trace)}, file)
    data = {"scene": {"name": "gate", "built_in": True}, "encoder": {"name": "ace", "weights": str(file)}}
    encoder = validate(TrialConfig, Document("trial", data)).encoder
    with pytest.raises(InputError, match="a pickle with code") as error:
        build(encoder)
    (told,) = error.value.faults
    assert (told.file, told.key) == (str(file), "encoder.weights")
    assert "torch.save" in told.allowed
    assert "state_dict()" in told.action
    assert not trace.exists()
    torch.load(file, weights_only=False)
    assert trace.exists()  # a careless reader would have run it


class Payload:
    """Unpickling it runs a command that leaves a file behind."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch '{self.target}'",)


@pytest.mark.parametrize("kind", ["pickle", "torch", "text", "absent", "list"])
def test_files_that_are_no_weights_are_refused_unrun(tmp_path: Path, kind: str) -> None:
    """Code in a pickle is not run; whatever else is no state dict is an InputError too."""
    path, trace = tmp_path / "file.pt", tmp_path / "code_ran"
    match kind:
        case "pickle":
            path.write_bytes(pickle.dumps(Payload(trace)))
        case "torch":
            torch.save({"conv1.weight": Payload(trace)}, path)
        case "text":
            path.write_text("not weights")
        case "list":
            torch.save([torch.zeros(1)], path)
    for config in (AceEncoder(weights=str(path)), SmallEncoder(weights=str(path))):
        with pytest.raises(InputError) as error:
            build(config)
        assert error.value.faults[0].key == "encoder.weights"
    assert not trace.exists()


@pytest.mark.parametrize("config", ALL, ids=lambda config: f"{config.name}-{getattr(config, 'weights', '')}")
def test_features_come_one_per_cell(config: EncoderConfig) -> None:
    """(B, 3, H, W) becomes finite float32 (B, C, H/8, W/8); images of a batch do not see one another."""
    encoder = build(config)
    images = torch.cat([random_image(56, 72, seed) for seed in range(2)])
    features = encoder.encode(images)
    assert features.shape == (2, encoder.dimensions, 7, 9)
    assert features.dtype == torch.float32
    assert features.isfinite().all()
    torch.testing.assert_close(features[1:], encoder.encode(images[1:]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("config", ALL, ids=lambda config: f"{config.name}-{getattr(config, 'weights', '')}")
def test_sides_that_leave_half_a_cell_are_refused(config: EncoderConfig) -> None:
    """A side that is no multiple of 8, or an image of floats, is a ValueError, not a silent crop."""
    encoder = build(config)
    with pytest.raises(ValueError, match="multiples of 8"):
        encoder.encode(torch.zeros(1, 3, 60, 64, dtype=torch.uint8))
    with pytest.raises(ValueError, match="uint8"):
        encoder.encode(torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize("config", ALL, ids=lambda config: f"{config.name}-{getattr(config, 'weights', '')}")
def test_features_move_with_the_image(config: EncoderConfig) -> None:
    """Moving the image by 8 px moves the features by one cell, away from the borders."""
    encoder = build(config)
    image = random_image(272, 280)
    left, right = encoder.encode(image[..., :272]), encoder.encode(image[..., 8:])
    inner = slice(15, 19)
    torch.testing.assert_close(left[:, :, inner, 16:19], right[:, :, inner, 15:18], rtol=1e-3, atol=1e-3)


def test_small_looks_at_the_middle_of_its_cell() -> None:
    """The pixels that move a feature of `small` lie symmetrically about its cell's centre 8(i + .5)."""
    encoder = SmallFeatures().initialised(0).eval()
    x = torch.rand(1, 2, 256, 256, requires_grad=True)
    torch.autograd.backward(encoder.blocks(encoder.stem(x))[0, :, 15, 16].square().sum())
    assert x.grad is not None
    rows, columns = (np.flatnonzero(x.grad[0].abs().sum((0, axis)).numpy()) for axis in (2, 1))
    assert (rows[0] + rows[-1] + 1) / 2 == 8 * 15.5
    assert (columns[0] + columns[-1] + 1) / 2 == 8 * 16.5


def test_the_seed_decides_random_weights() -> None:
    """One seed gives one encoder, another seed another one."""
    image = random_image(64, 64)
    for make in (lambda seed: AceEncoder(seed=seed), lambda seed: SmallEncoder(weights="random", seed=seed)):
        first, again, other = (build(make(seed)).encode(image) for seed in (3, 3, 4))
        assert torch.equal(first, again)
        assert not torch.allclose(first, other, atol=1e-2)


def test_dense_hog_does_not_see_exposure() -> None:
    """Halving all brightness leaves gradient histograms as they are, up to the rounding of 8-bit images."""
    encoder = build(DenseHog())
    image = random_image(128, 128)
    bright, dark = encoder.encode(image), encoder.encode(image // 2)
    similarity = torch.nn.functional.cosine_similarity(bright, dark, dim=1)
    assert similarity.median() > 0.97


def test_dense_hog_tells_directions_apart() -> None:
    """A grating and the same grating turned by 90° have nearly orthogonal descriptors."""
    wave = (127 + 100 * torch.sin(torch.arange(128) * 0.8)).to(torch.uint8)
    upright = wave.expand(1, 3, 128, 128).contiguous()
    encoder = build(DenseHog())
    a, b = (encoder.encode(image)[0, :, 8, 8] for image in (upright, upright.transpose(2, 3).contiguous()))
    assert torch.nn.functional.cosine_similarity(a, b, dim=0) < 0.2


def test_small_survives_its_file(tmp_path: Path) -> None:
    """What `save` writes, `build` reads: the same features up to half precision, and a card beside it."""
    encoder = SmallFeatures().initialised(5).eval()
    encoder.save(tmp_path / "own.safetensors", {"parameters": 1})
    image = random_image(64, 64)
    loaded = build(SmallEncoder(weights=str(tmp_path / "own.safetensors")))
    torch.testing.assert_close(loaded.encode(image), encoder.encode(image), rtol=0, atol=0.02)
    card = json.loads((tmp_path / "own.json").read_text())
    assert (card["architecture"], card["stride"], card["dimensions"]) == ("small", 8, 128)


def test_shipped_weights_are_small_and_have_a_card() -> None:
    """The shipped encoder has at most 1 M parameters and 4 MB, and its card says what it was trained on."""
    card = json.loads(SHIPPED.with_suffix(".json").read_text())
    assert SHIPPED.stat().st_size <= 4_000_000
    assert card["parameters"] == sum(parameter.numel() for parameter in SmallFeatures().parameters()) <= 1_000_000
    assert card["training"]["data"]
