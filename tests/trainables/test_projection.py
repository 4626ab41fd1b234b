"""Projected features: the right directions, the same everywhere they are read, and never another encoder's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from cadloc import buffer, projection, queries
from cadloc.artifacts import load_map, map_size_mb, save_map
from cadloc.buffer import Buffer
from cadloc.catalog import stages_of
from cadloc.config import BufferConfig, DenseHog, SmallEncoder, TrialConfig
from cadloc.contract import InputError, Json
from cadloc.datasets.ace_layout import Dataset, write_card, write_view
from cadloc.encoders import build
from cadloc.encoders.folding import folded
from cadloc.encoders.identity import encoder_digest
from cadloc.encoders.projected import WEIGHTS, Projected, load_projected, save_projection
from cadloc.encoding import encode_image
from cadloc.geometry import look_at
from cadloc.head_config import AceHead
from cadloc.heads import build as build_head
from cadloc.image_localization import localize_image
from cadloc.map_files import export_map
from cadloc.projection import Components, Moments, explained_share, moments, principal_components

WIDTH, HEIGHT = 96, 64
K = np.array([[80.0, 0, 48.0], [0, 80.0, 32.0], [0, 0, 1]])
GATE = {"name": "gate", "built_in": True}


def trial(**settings: Any) -> TrialConfig:
    return TrialConfig.model_validate({"scene": GATE, **settings})


def picture(seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """28 mapping views, the left half of each a wall at 5 m, and 2 query views."""
    directory = tmp_path_factory.mktemp("wall")
    depth_m = np.where(np.arange(WIDTH) < WIDTH // 2, 5.0, 0.0) * np.ones((HEIGHT, 1))
    for split, count in (("mapping", 28), ("query", 2)):
        for k in range(count):
            write_view(
                directory, split, f"{split}_{k:06d}", image=picture(k), depth_m=depth_m,
                cad_from_cam=look_at([k, -6.0, 1.5], [k, 0.0, 1.5]), intrinsics=K, step_m=0.001,
            )  # fmt: skip
    write_card(directory, {"depth_step_m": 0.001})
    return directory


def made(dataset: Path, directory: Path, dimensions: int, views: int = 50, order: tuple[int, ...] = (0, 1)) -> Path:
    """The finished stage."""
    pca = {"name": "pca", "dimensions": dimensions, "views": views}
    config: dict[str, Json] = {"encoder": DenseHog().model_dump(mode="json"), "projection": pca}
    inputs = {"views": dataset}
    assert projection.chunks(config, inputs) == len(order)
    for chunk in order:
        projection.build_chunk(config, inputs, directory, chunk)
    projection.finish(config, inputs, directory)
    return directory


def pca_of(features: NDArray[np.float32], dimensions: int) -> Components:
    return principal_components(moments(features), dimensions)


def test_directions_are_those_of_a_singular_value_decomposition() -> None:
    """Of correlated features in two portions, summed: mean, directions up to their sign, variances, explained share."""
    drawn = np.random.default_rng(0)
    features = (drawn.normal(size=(400, 6)) * [5, 3, 2, 1, 0.5, 0.1] @ drawn.normal(size=(6, 6)) + 2).astype(np.float32)
    one, other = moments(features[:150]), moments(features[150:])
    found = principal_components(Moments(*(np.asarray(a + b) for a, b in zip(one, other, strict=True))), 3)
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    _, singular, directions = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(found.mean.numpy(), features.mean(axis=0, dtype=np.float64), atol=1e-12)
    np.testing.assert_allclose(np.abs(np.diag(found.directions.numpy() @ directions[:3].T)), 1, atol=1e-9)
    np.testing.assert_allclose(found.variances.numpy(), singular**2 / 400, rtol=1e-7)
    assert explained_share(found) == pytest.approx((singular[:3] ** 2).sum() / (singular**2).sum())
    assert (found.directions.max(dim=1).values == found.directions.abs().max(dim=1).values).all()


def test_as_many_directions_as_channels_only_turn_features() -> None:
    """Nothing is lost: cells stay as far from one another as they were, alone and in a batch."""
    encoder = build(DenseHog())
    images = torch.from_numpy(np.stack([picture(1), picture(2)])).permute(0, 3, 1, 2)
    before = encoder.encode(images)
    found = pca_of(before.movedim(1, -1).reshape(-1, 256).numpy(), 256)
    projected = Projected(encoder, found.mean.float(), found.directions.float())
    after = projected.encode(images)
    assert after.shape == before.shape
    exactly = "donot_use_mm_for_euclid_dist"
    cells = [each.flatten(2).movedim(1, -1) for each in (before, after)]
    was, is_ = (torch.cdist(each, each, compute_mode=exactly) for each in cells)
    torch.testing.assert_close(is_, was, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(projected.encode(images[1:]), after[1:], atol=1e-4, rtol=1e-4)


def test_a_stage_is_fitted_on_cells_that_see_the_model_whoever_makes_it(dataset: Path, tmp_path: Path) -> None:
    """Chunks in any order give the same bytes; they are what all features of the wall at once give."""
    stages = [made(dataset, tmp_path / str(order), 8, order=order) for order in ((0, 1), (1, 0))]
    assert (stages[0] / WEIGHTS).read_bytes() == (stages[1] / WEIGHTS).read_bytes()
    assert sorted(path.name for path in stages[0].iterdir()) == ["projection.json", WEIGHTS]
    encoder = build(DenseHog())
    maps = [encode_image(encoder, view.read_image()) for view in Dataset.open(dataset).views("mapping")]
    wall = np.concatenate([each[:, : WIDTH // 16].reshape(-1, 256) for each in maps])
    card, stored = json.loads((stages[0] / "projection.json").read_text()), load_file(stages[0] / WEIGHTS)
    assert card["cells"] == len(wall) == 28 * 48
    expected = pca_of(wall, 8)
    torch.testing.assert_close(stored["mean"], expected.mean.float())
    torch.testing.assert_close(stored["directions"], expected.directions.float(), atol=1e-4, rtol=0)
    assert card["explained_variance_share"] == pytest.approx(explained_share(expected))


def test_few_views_are_a_draw_of_all(dataset: Path, tmp_path: Path) -> None:
    """Five views, not the first five, and the same five again."""
    names = [
        json.loads((made(dataset, tmp_path / again, 4, views=5, order=(0,)) / "projection.json").read_text())["views"]
        for again in ("once", "twice")
    ]
    assert names[0] == names[1] == sorted(names[0])
    assert len(names[0]) == 5
    assert names[0] != [f"mapping_{k:06d}" for k in range(5)]


def test_buffer_queries_and_photographs_are_projected_alike(dataset: Path, tmp_path: Path) -> None:
    """What is stored of a cell is the projection of the encoder's feature of it, in half precision."""
    stage = made(dataset, tmp_path / "projection", 8)
    encoder = load_projected(stage, build(DenseHog()))
    inputs = {"views": dataset, "projection": stage}
    hog = DenseHog().model_dump(mode="json")
    config = {"encoder": hog, "buffer": BufferConfig(samples=28 * 96, passes=1).model_dump(mode="json")}
    buffer.build_chunk(config, inputs, tmp_path / "buffer", 0)
    buffer.build_chunk(config, inputs, tmp_path / "buffer", 1)
    buffer.finish(config, inputs, tmp_path / "buffer")
    samples = Buffer.open(tmp_path / "buffer")
    view = Dataset.open(dataset).views("mapping")[27]
    mine = samples.view == 27
    rows, columns = (samples.pixels[mine].astype(int) // 8).T[::-1]
    expected = encode_image(encoder, view.read_image()).astype(np.float16)
    assert mine.sum() > 30
    np.testing.assert_array_equal(samples.features[mine], expected[rows, columns])
    asked = {"encoder": hog, "split": "query"}
    queries.build_chunk(asked, inputs, tmp_path / "queries", 0)
    queries.finish(asked, inputs, tmp_path / "queries")
    stored = queries.Queries.open(tmp_path / "queries")
    asked_of = encode_image(encoder, Dataset.open(dataset).views("query")[0].read_image()).astype(np.float16)
    np.testing.assert_array_equal(stored.on_grid(0, stored.features[stored.cells(0)]), asked_of)


def test_more_dimensions_than_channels_are_refused(dataset: Path, tmp_path: Path) -> None:
    """When the trial is read where the encoder's channels are known, else by the stage; so are fewer cells."""
    with pytest.raises(ValidationError, match=r"projection\.dimensions = 129 is more than the 128 channels of small"):
        trial(projection={"name": "pca", "dimensions": 129})
    assert trial(encoder={"name": "ace", "weights": "mine.pt"}, projection={"name": "pca", "dimensions": 600})
    with pytest.raises(InputError, match=r"projection\.dimensions: found 257; allowed: at most the 256 channels"):
        made(dataset, tmp_path / "wide", 257)
    with pytest.raises(InputError, match="cells that see the model; allowed: more than 250"):
        made(dataset, tmp_path / "few", 250, views=1, order=(0,))


def test_what_does_not_read_a_projection_refuses_it() -> None:
    """The matcher with renders describes images in its own way."""
    with pytest.raises(ValidationError, match="the trainable render_and_match does not read it"):
        trial(trainable="render_and_match", projection={"name": "pca", "dimensions": 8})


@pytest.mark.parametrize("tuned", [None, {"name": "features"}])
def test_only_heads_features_are_projected(tuned: Json) -> None:
    """Buffer and queries are made with the projection, of the tuned encoder if any; global features, views without."""
    settings = {"finetuning": tuned, "head": {"name": "glace", "global_features": {"name": "gem", "weights": "pca"}}}
    plain, stages = (
        stages_of(trial(**settings, **more)) for more in ({}, {"projection": {"name": "pca", "dimensions": 8}})
    )
    assert set(stages) - set(plain) == {"projection"}
    assert "projection" not in plain
    assert plain == stages_of(trial(**settings, projection={"name": "none"}))
    for role, spec in plain.items():
        projected = role.startswith(("buffer/", "queries/"))
        assert (stages[role].key == spec.key) is not projected
        assert (stages[role].inputs.get("projection") == stages["projection"]) is projected
    assert ("encoder" in stages["projection"].inputs) is (tuned is not None)


@pytest.fixture
def projected_map(tmp_path: Path) -> Path:
    """A map of ACE's head that reads 16 channels of the shipped encoder."""
    found = pca_of(encode_image(build(SmallEncoder()), picture(0)).reshape(-1, 128), 16)
    save_projection(tmp_path / "stage", found.mean, found.directions, {})
    config = trial(head={"name": "ace", "width": 16}, projection={"name": "pca", "dimensions": 16})
    head = build_head(AceHead(width=16), 16, seed=0)
    save_map(tmp_path / "map", head, config, (WIDTH, HEIGHT), np.zeros(3), projection=tmp_path / "stage")
    return tmp_path / "map"


def test_a_map_takes_its_projection_along(projected_map: Path) -> None:
    """It is read back with the projected encoder, localizes a photograph, and its size counts the projection."""
    encoder = load_map(projected_map).encoder
    assert encoder.dimensions == 16
    assert localize_image(projected_map, picture(0), K).runtime_s > 0
    assert map_size_mb(projected_map) > ((projected_map / "map.safetensors").stat().st_size + 128 * 17 * 4) / 1e6


def test_a_map_is_not_read_with_another_projection(projected_map: Path) -> None:
    """One number of it changed: the map says so instead of localizing with features that mean nothing."""
    place = projected_map / "projection" / WEIGHTS
    stored = load_file(place)
    save_file({**stored, "mean": stored["mean"] + torch.eye(1, 128)[0] * 1e-3}, place)
    with pytest.raises(InputError, match="no longer those the map was made with"):
        load_map(projected_map)
    place.unlink()
    with pytest.raises(InputError, match="the projection of this encoder's features"):
        load_map(projected_map)


def test_a_projected_map_has_no_place_in_aces_file(projected_map: Path, tmp_path: Path) -> None:
    """It is refused with the reason, and nothing is written."""
    with pytest.raises(InputError, match="a projection of the features to 16 channels"):
        export_map(projected_map, tmp_path / "head.pt")
    assert not (tmp_path / "head.pt").exists()


def test_a_projected_encoder_is_another_encoder() -> None:
    """Its digest is neither the plain one's nor another projection's, and the same for the folded encoder."""
    plain = build(SmallEncoder())
    mean, directions = torch.zeros(128), torch.eye(128)[:8]
    digests = [
        encoder_digest(each)
        for each in (plain, Projected(plain, mean, directions), Projected(plain, mean, directions.flip(0)))
    ]
    assert len(set(digests)) == 3
    assert encoder_digest(Projected(folded(plain), mean, directions)) == digests[1]
