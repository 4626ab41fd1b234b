"""ACE's head file: the same map on both sides, half precision only where it does no harm."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, relu, softplus

from cadloc.contract import InputError
from cadloc.head_config import AceHead
from cadloc.heads import build
from cadloc.heads.ace import AcePerceptron
from cadloc.heads.ace_file import ace_state, read_ace_head, write_ace_head

CHANNELS = 48
STANDARD = AceHead(width=32)


def made(config: AceHead = STANDARD, inputs: int = CHANNELS, seed: int = 0) -> AcePerceptron:
    """An untrained head whose centre lies anywhere."""
    head = build(config, inputs, seed)
    assert isinstance(head, AcePerceptron)
    head.centre.copy_(torch.tensor([12.345, -6.789, 1.5]))
    return head.eval()


def file_of(state: Mapping[str, Tensor], path: Path) -> Path:
    torch.save(dict(state), path)
    return path


def published(state: Mapping[str, Tensor], features: Tensor) -> Tensor:
    """ACE's head as section 3.2 and supplement of the paper have it, on features (C, h, w): coordinates (3, h, w)."""

    def layer(name: str, x: Tensor) -> Tensor:
        return conv2d(x[None], state[f"{name}.weight"].float(), state[f"{name}.bias"].float())[0]

    def triple(names: tuple[str, str, str], x: Tensor) -> Tensor:
        for name in names:
            x = relu(layer(name, x))
        return x

    x = layer("head_skip", features) if "head_skip.weight" in state else features
    x = x + triple(("res3_conv1", "res3_conv2", "res3_conv3"), features)
    for block in range(sum(name.endswith("c0.weight") for name in state)):
        x = x + triple((f"{block}c0", f"{block}c1", f"{block}c2"), x)
    raw = layer("fc3", relu(layer("fc2", relu(layer("fc1", x)))))
    if len(raw) == 4:
        h = softplus(raw[3], beta=state["h_beta"].item()) + state["max_inv_scale"]
        raw = raw[:3] / h.clamp(max=state["min_inv_scale"].item())
    return raw + state["mean"][0]


CONFIGS = [STANDARD, AceHead(width=48, blocks=0), AceHead(blocks=3, width=16, homogeneous=False)]


@pytest.mark.parametrize("config", CONFIGS)
def test_the_file_read_as_published_predicts_what_the_head_does(config: AceHead, tmp_path: Path) -> None:
    """Convolutions over the file's tensors, by ACE's names, agree with our head; with a skip and without."""
    head = made(config)
    write_ace_head(tmp_path / "head.pt", head, float32=True)
    state = torch.load(tmp_path / "head.pt", weights_only=True)
    features = torch.randn(CHANNELS, 5, 7, generator=torch.Generator().manual_seed(1))
    expected = head.predict(features.reshape(CHANNELS, -1).T).T.reshape(3, 5, 7)
    torch.testing.assert_close(published(state, features), expected, rtol=0, atol=1e-4)


def test_names_shapes_and_sizes_are_aces() -> None:
    """On ACE's own features a file holds exactly the published names, 2,103,300 weights, the scales and the centre."""
    state = ace_state(made(AceHead(), 512))
    layers = ["res3_conv1", "res3_conv2", "res3_conv3", "0c0", "0c1", "0c2", "fc1", "fc2", "fc3"]
    scales = {
        "max_scale": 4,
        "min_scale": 0.01,
        "max_inv_scale": 0.25,
        "min_inv_scale": 100,
        "h_beta": math.log(2) / 0.75,
    }
    assert set(state) == {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")} | {"mean", *scales}
    assert all(state[f"{layer}.weight"].shape == (4 if layer == "fc3" else 512, 512, 1, 1) for layer in layers)
    assert sum(value.numel() for name, value in state.items() if "." in name) == 2_103_300
    assert state["mean"].shape == (1, 3, 1, 1)
    assert {name: state[name].tolist() for name in scales} == {name: [pytest.approx(x)] for name, x in scales.items()}


@pytest.mark.parametrize("float32", [True, False])
def test_a_head_comes_back_and_goes_out_again_as_the_same_bytes(float32: bool, tmp_path: Path) -> None:
    """In float32 it predicts the same bits, in half precision the same to a centimetre; both files are then equal."""
    head = made()
    write_ace_head(tmp_path / "a.pt", head, float32=float32)
    back = read_ace_head(tmp_path / "a.pt", CHANNELS)
    assert back.config == STANDARD
    features = torch.randn(500, CHANNELS, generator=torch.Generator().manual_seed(1))
    distances_m = (back.head.predict(features) - head.predict(features)).norm(dim=1)
    assert float(distances_m.max()) <= (0 if float32 else 0.01)
    write_ace_head(tmp_path / "b.pt", back.head, float32=float32)
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()


def test_only_weights_before_the_last_layer_are_halved(tmp_path: Path) -> None:
    """Centre, last layer and scales are float32 in the file; everything else is float16."""
    write_ace_head(tmp_path / "head.pt", made())
    state = torch.load(tmp_path / "head.pt", weights_only=True)
    kept = {name for name, value in state.items() if value.dtype == torch.float32}
    assert kept == {
        "fc3.weight",
        "fc3.bias",
        "mean",
        "max_scale",
        "min_scale",
        "max_inv_scale",
        "min_inv_scale",
        "h_beta",
    }
    assert all(value.dtype == torch.float16 for name, value in state.items() if name not in kept)


@pytest.mark.parametrize("prefix", ["", "heads."])
def test_files_halved_throughout_and_whole_regressors_are_read(prefix: str, tmp_path: Path) -> None:
    """As ACE writes them: the head is found, and how far its centre may be off is told."""
    state = {prefix + name: value.half() for name, value in ace_state(made()).items()}
    state |= {"encoder.conv1.weight": torch.zeros(1)} if prefix else {}
    read = read_ace_head(file_of(state, tmp_path / "head.pt"))
    np.testing.assert_allclose(read.head.centre.numpy(), [12.345, -6.789, 1.5], atol=0.005)
    assert np.linalg.norm(read.head.centre.numpy() - [12.345, -6.789, 1.5]) < read.centre_rounding_m < 0.01


def test_weights_beyond_half_precision_are_refused_but_for_float32(tmp_path: Path) -> None:
    """Infinity is never written: the fault names the layer and the option; nothing is left behind."""
    head = made()
    with torch.no_grad():
        head.trunk.last[0].weight[0, 0] = 1e5
    with pytest.raises(InputError, match=r"fc1\.weight not finite.*--float32"):
        write_ace_head(tmp_path / "head.pt", head)
    assert not any(tmp_path.iterdir())
    write_ace_head(tmp_path / "head.pt", head, float32=True)


def changed(**tensors: Tensor | None) -> dict[str, Tensor]:
    """The state of a head with some tensors replaced, or left out where None; names with _ for their dot."""
    state: dict[str, Tensor | None] = {**ace_state(made())}
    state |= {name.replace("__", "."): value for name, value in tensors.items()}
    return {name: value for name, value in state.items() if value is not None}


@pytest.mark.parametrize(
    ("state", "told"),
    [
        (changed(fc2__bias=None), [r"no fc2\.bias"]),
        (changed(**{"0c1__weight": torch.zeros(32, 32)}), [r"0c1\.weight of shape \(32, 32\)"]),
        (changed(mean=torch.zeros(3)), [r"mean of shape \(3,\)"]),
        (changed(mean=torch.zeros(1, 50, 3, 1, 1)), [r"mean of shape \(1, 50, 3, 1, 1\)"]),
        (changed(mean=torch.full((1, 3, 1, 1), torch.inf)), ["mean not finite.*too far from its origin"]),
        (changed(fc1__bias=torch.full((32,), torch.nan)), [r"fc1\.bias not finite"]),
        (changed(fc1__bias=torch.zeros(32, dtype=torch.int32)), [r"fc1\.bias of torch\.strided torch\.int32"]),
        (changed(fc1__bias=torch.zeros(32).to_sparse()), [r"fc1\.bias of torch\.sparse_coo"]),
        (changed(max_scale=torch.tensor([8.0])), ["max_scale 8.*allowed: 4"]),
        (changed(h_beta=None), ["no h_beta"]),
        (changed(fc3__weight=torch.zeros(5, 32, 1, 1)), [r"fc3\.weight of shape \(5, 32, 1, 1\)"]),
        (changed(**{"2c0__weight": torch.zeros(32, 32, 1, 1)}), [r"no 1c0\.weight", r"unknown name 2c0\.weight"]),
        (changed(centers=torch.zeros(1, 50, 3, 1, 1)), ["head of GLACE's"]),
        (changed(fc1__weight=torch.zeros(1, 1, 1, 1).expand(5000, 32, 1, 1)), ["width 5000"]),
        (changed(res3_conv1__weight=torch.zeros(32, 64, 1, 1)), ["64 features per cell.*encoder's 48"]),
        ({}, [r"no res3_conv1\.weight", "no mean", "512 features per cell"]),
        (
            changed(fc2__bias=None, mean=torch.zeros(3), min_scale=torch.tensor([0.5]), more=torch.zeros(1)),
            [r"no fc2\.bias", r"mean of shape", "min_scale 0.5", "unknown name more"],
        ),
    ],
)
def test_every_fault_of_a_file_is_told_at_once(state: dict[str, Tensor], told: list[str], tmp_path: Path) -> None:
    """Missing, strange, misshapen, infinite or foreign tensors: each is a fault that names the tensor and the file."""
    path = file_of(state, tmp_path / "head.pt")
    with pytest.raises(InputError) as caught:
        read_ace_head(path, CHANNELS)
    assert {(fault.file, fault.key) for fault in caught.value.faults} == {(str(path), "map")}
    for pattern in told:
        assert caught.match(f"(?s){pattern}")


def test_files_that_are_no_state_dict_are_faults_never_tracebacks(tmp_path: Path) -> None:
    """Nothing, a folder, garbage, code, other objects, a cut or changed file, in either format of torch's."""
    whole = {}
    for zipped in (True, False):
        content = io.BytesIO()
        torch.save(ace_state(made()), content, _use_new_zipfile_serialization=zipped)
        whole[zipped] = content.getvalue()
    code, other = io.BytesIO(), io.BytesIO()
    torch.save({"mean": Path("a")}, code)
    torch.save([1, 2], other)
    contents = [b"", b"no map", b"\x80\x02.", b"\x80\x02}q\x00(b.", code.getvalue(), other.getvalue()]
    contents += [content[:size] for content in whole.values() for size in (1, 100, 1000, len(content) // 2, -1)]
    middle = len(whole[True]) // 2
    contents.append(whole[True][:middle] + bytes([whole[True][middle] ^ 1]) + whole[True][middle + 1 :])
    paths = [tmp_path, tmp_path / "absent.pt"]
    for index, content in enumerate(contents):
        paths.append(tmp_path / f"{index}.pt")
        paths[-1].write_bytes(content)
    for path in paths:
        with pytest.raises(InputError) as caught:
            read_ace_head(path)
        assert [(fault.file, fault.key) for fault in caught.value.faults] == [(str(path), "map")]
