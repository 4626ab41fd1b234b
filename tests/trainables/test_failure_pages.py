"""Failure pages: which queries they show, and that their marks say where the model is and where it was put."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from cadloc import failure_pages
from cadloc.cad import CadModel, model_from_meshes
from cadloc.failure_pages import (
    AT_BOTH,
    AT_ESTIMATE,
    AT_TRUE,
    INLIER,
    MOST_BYTES,
    FailureRow,
    draw_failures,
    edges,
    explained_pixels,
    worst_queries,
)
from cadloc.geometry import Array, cell_pixels, inverse, look_at, pinhole, project, rigid, transform_points, unproject
from cadloc.localization import Estimate, localize
from cadloc.rendering import Light, Rendering, ViewRenderer, process_renderer
from cadloc.scenes import built_in_meshes
from cadloc.training_config import LocalizationConfig

WIDTH, HEIGHT = 200, 150
K = pinhole(WIDTH, HEIGHT, 60)
TRUE = look_at([30, 10, 2], [0, 0, 5])
NOWHERE = look_at([30, 10, 500], [30, 10, 900])
Count = dict[tuple[int, int, int], int]


def estimate(pose: Array | None) -> Estimate:
    """An estimate with this pose."""
    return Estimate(pose, 0 if pose is None else 25, 0.5, 0.5, 0.01)


@pytest.fixture(scope="module")
def gate() -> CadModel:
    return model_from_meshes(built_in_meshes("gate", "cad"), "gate")


@pytest.fixture(scope="module")
def renderer() -> ViewRenderer:
    return process_renderer("gl")


@pytest.fixture(scope="module")
def row(gate: CadModel, renderer: ViewRenderer) -> FailureRow:
    """A query in grey, localized where it was taken."""
    grey = renderer.render(gate, TRUE, K, WIDTH, HEIGHT, Light()).image.mean(axis=-1, keepdims=True)
    image = np.repeat(grey, 3, axis=2).astype(np.uint8)
    return FailureRow("a_$photo_100%", image, K, TRUE, estimate(TRUE), np.empty((0, 2)), 0.0)


def marks(path: Path) -> Count:
    """Pixels of the page in each of the marks' colours, or as close as a palette comes."""
    page = np.asarray(Image.open(path).convert("RGB")).astype(int)
    colours = (AT_TRUE, AT_ESTIMATE, AT_BOTH, INLIER)
    return {colour: int((abs(page - colour) < 20).all(axis=-1).sum()) for colour in colours}


def seen_plane(inverse_depth: NDArray[np.float64]) -> Rendering:
    """What a camera at the origin of `cad` sees, in one colour, where depth is 1 / `inverse_depth` (H, W)."""
    rows, columns = inverse_depth.shape
    points = unproject(cell_pixels(rows, columns, 1), 1 / inverse_depth, pinhole(columns, rows, 60))
    mask = np.ones((rows, columns), bool)
    return Rendering(np.full((rows, columns, 3), 90, np.uint8), points.astype(np.float32), mask)


def test_the_worst_come_first() -> None:
    """By mean DCRE, failures before all; equal ones by translation error; no more than asked for."""
    dcre_mean_share = np.array([0.1, np.inf, 0.3, np.inf, 0.2])
    translation_m = np.array([9.0, 5.0, 1.0, np.inf, 2.0])
    assert worst_queries(dcre_mean_share, translation_m) == [3, 1, 2, 4, 0]
    assert worst_queries(dcre_mean_share, translation_m, 2) == [3, 1]


def test_explained_pixels_are_the_inliers_that_localization_counts() -> None:
    """Same number as in the estimate, at a size whose threshold is scaled; wild points are not among them."""
    rng = np.random.default_rng(0)
    points = transform_points(TRUE, rng.uniform([-5, -4, 15], [5, 4, 40], (200, 3)))
    pixels = project(transform_points(inverse(TRUE), points), K) + rng.normal(0, 1.5, (200, 2))
    points[:60] += rng.uniform(5, 20, (60, 3))
    config = LocalizationConfig()
    found = localize(points, pixels, K, WIDTH, HEIGHT, config, seed=0)
    explained = explained_pixels(found, points, pixels, K, (WIDTH, HEIGHT), config.threshold_px)
    assert 20 < len(explained) == found.inliers < 200
    assert {tuple(pixel) for pixel in explained} <= {tuple(pixel) for pixel in pixels}


def test_without_an_estimate_no_pixel_is_explained() -> None:
    """No pose, no inliers."""
    assert len(explained_pixels(estimate(None), np.ones((5, 3)), np.ones((5, 2)), K, (WIDTH, HEIGHT), 10.0)) == 0


def test_a_plane_has_no_edges_however_steep() -> None:
    """Ground that runs to a horizon 200 times farther than its nearest point: depth jumps there, no edge does."""
    ground = np.linspace(0.005, 1, 60)[:, None] * np.ones(80)
    assert not edges(seen_plane(ground), np.eye(4)).any()


def test_a_step_in_depth_is_an_edge_and_nothing_else_is() -> None:
    """Two walls of one colour, one behind the other: the edge is where they meet in the image."""
    walls = np.where(np.arange(80) < 40, 1 / 10, 1 / 14) * np.ones((60, 1))
    found = edges(seen_plane(walls), np.eye(4))
    assert found[:, 38:42].any(axis=1).all()
    assert not found[:, :38].any()
    assert not found[:, 42:].any()


def test_at_the_true_pose_all_edges_agree(
    tmp_path: Path, row: FailureRow, gate: CadModel, renderer: ViewRenderer
) -> None:
    """A perfect estimate leaves neither red nor green on the page, only the colour of both."""
    draw_failures(tmp_path / "page.png", [row], gate, renderer)
    found = marks(tmp_path / "page.png")
    assert found[AT_BOTH] > 500
    assert found[AT_TRUE] == found[AT_ESTIMATE] == found[INLIER] == 0


def test_a_wrong_pose_shows_both_edges_and_its_inliers(
    tmp_path: Path, row: FailureRow, gate: CadModel, renderer: ViewRenderer
) -> None:
    """A metre aside: green edges, red ones, and the inliers' dots."""
    slipped = estimate(TRUE @ rigid(np.eye(3), [1.0, 0, 0]))
    wrong = dataclasses.replace(row, estimate=slipped, inlier_pixels=cell_pixels(5, 5, 20).reshape(-1, 2))
    draw_failures(tmp_path / "page.png", [wrong], gate, renderer, title="gate: $1 a query")
    found = marks(tmp_path / "page.png")
    assert found[AT_TRUE] > 500
    assert found[AT_ESTIMATE] > 500
    assert found[INLIER] > 25


@pytest.mark.parametrize("pose", [None, NOWHERE], ids=["no estimate", "sees nothing"])
def test_without_a_view_of_the_model_only_the_truth_is_drawn(
    tmp_path: Path, row: FailureRow, gate: CadModel, renderer: ViewRenderer, pose: Array | None
) -> None:
    """Green edges and no red ones, for a query that was not localized and for one put into the void."""
    lost = dataclasses.replace(row, estimate=estimate(pose), dcre_mean_share=np.inf)
    draw_failures(tmp_path / "page.png", [lost], gate, renderer)
    found = marks(tmp_path / "page.png")
    assert found[AT_TRUE] > 500
    assert found[AT_ESTIMATE] == found[AT_BOTH] == 0


def test_a_page_that_is_too_large_is_made_smaller(
    tmp_path: Path, row: FailureRow, gate: CadModel, renderer: ViewRenderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noise, which nothing compresses, ends below the limit and is still a picture."""
    assert MOST_BYTES <= 3_000_000
    monkeypatch.setattr(failure_pages, "MOST_BYTES", 60_000)
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    draw_failures(tmp_path / "page.png", [dataclasses.replace(row, image=noise)], gate, renderer)
    assert (tmp_path / "page.png").stat().st_size < 60_000
    with Image.open(tmp_path / "page.png") as page:
        assert min(page.size) > 50


@pytest.mark.parametrize("count", [0, 11])
def test_a_page_holds_one_to_ten_queries(
    tmp_path: Path, row: FailureRow, gate: CadModel, renderer: ViewRenderer, count: int
) -> None:
    """None or too many are refused, not cut off silently."""
    with pytest.raises(ValueError, match=f"{count} queries"):
        draw_failures(tmp_path / "page.png", [row] * count, gate, renderer)
