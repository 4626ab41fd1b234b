"""A CAD model is laid into a reconstruction: by pairs, by points on its surface, by its renders."""

from __future__ import annotations

import json
from collections import defaultdict
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import trimesh
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.spatial.transform import Rotation

from cadloc.alignment import (
    AlignmentReport,
    Evidence,
    PhotoFit,
    PosedImage,
    SurfaceIndex,
    align,
    align_points,
    evidence_of,
    read_picks,
    refine_by_matches,
    similarity_from_pairs,
)
from cadloc.alignment.conditioning import Motion
from cadloc.cad import CadModel, model_from_meshes
from cadloc.contract import InputError
from cadloc.datasets.reconstruction import Camera, Photo, Reconstruction, SparsePoints
from cadloc.geometry import Array, Similarity, inverse, look_at, pinhole, project, rotation_error_deg, transform_points
from cadloc.rendering import Light, process_renderer
from cadloc.scene_config import PhotosConfig, SceneConfig, SplitsConfig
from cadloc.scene_models import load_scene_model
from cadloc.scenes.assembly import Skin, textured_meshes
from cadloc.scenes.cathedral import cathedral
from cadloc.scenes.gate import gate
from cadloc.scenes.rotunda import rotunda

seeds = st.integers(0, 2**32 - 1)


def similarity(rng: np.random.Generator) -> Similarity:
    """Any similarity of moderate size."""
    return Similarity(float(rng.uniform(0.05, 20)), Rotation.random(random_state=rng).as_matrix(), rng.normal(size=3))


def perturbation(
    rng: np.random.Generator, model: CadModel, *, deg: float, scale_pct: float, shift_pct: float
) -> Similarity:
    """About the model's middle, every part of the given size, in a random direction."""
    axis, shift = (vector / np.linalg.norm(vector) for vector in rng.normal(size=(2, 3)))
    rotation = Rotation.from_rotvec(np.deg2rad(deg) * axis).as_matrix()
    scale = 1 + scale_pct / 100 * rng.choice([-1, 1])
    moved = model.centre + shift * shift_pct / 100 * model.diameter_m
    return Similarity(scale, rotation, moved - scale * rotation @ model.centre)


def differences(estimate: Similarity, true: Similarity, model: CadModel) -> tuple[float, float, float]:
    """Rotation in degrees, scale in %, and the farthest that a corner of the model's bounds is off, in % of it."""
    off_m = estimate.inverse().transform_points(true.transform_points(model.bounds)) - model.bounds
    angle = rotation_error_deg(estimate.rotation, true.rotation)
    shift_pct = 100 * float(np.linalg.norm(off_m, axis=1).max()) / model.diameter_m
    return float(angle), 100 * abs(estimate.scale / true.scale - 1), shift_pct


@cache
def built_in(name: str) -> tuple[CadModel, SurfaceIndex]:
    """A built-in scene's CAD, its textures unpainted, and its surface; made once."""
    blank = defaultdict[str, Skin](lambda: Skin(Image.new("RGB", (1, 1)), 1.0))
    building = {"gate": gate, "rotunda": rotunda, "cathedral": cathedral}[name]()
    model = model_from_meshes(textured_meshes(building.assembly.parts, blank), name)
    return model, SurfaceIndex(model.mesh, samples=20_000)


@cache
def painted_gate(appearance: str) -> CadModel:
    """The gate as its model or its simulated photographs show it, made once."""
    return load_scene_model(SceneConfig(name="gate", built_in=True), appearance)


def surface_points(model: CadModel, rng: np.random.Generator, count: int = 1000) -> Array:
    """Points as triangulation gives them: on the surface within 0.1 % of its size, and one in six anywhere."""
    on_surface, _ = trimesh.sample.sample_surface(model.mesh, count, seed=int(rng.integers(2**31)))
    noisy = on_surface + rng.normal(size=on_surface.shape) * 5e-4 * model.diameter_m
    return np.concatenate([noisy, rng.uniform(*model.bounds, size=(count // 5, 3))])


@cache
def box_points() -> tuple[Array, SurfaceIndex]:
    """Points without noise on a box, and its surface."""
    box = trimesh.creation.box((40.0, 30.0, 20.0))
    return trimesh.sample.sample_surface(box, 500, seed=0)[0], SurfaceIndex(box, samples=5_000)


# --- pairs ----------------------------------------------------------------------------------------------------


@given(seeds, st.integers(3, 12))
def test_exact_pairs_give_the_similarity_back(seed: int, count: int) -> None:
    """From three points on, exact pairs determine the similarity, and no residual is left."""
    rng = np.random.default_rng(seed)
    true, src = similarity(rng), rng.normal(size=(count, 3))
    dst = true.transform_points(src)
    fit = similarity_from_pairs(src, dst)
    assert np.allclose(fit.dst_from_src.matrix, true.matrix, atol=1e-6 * true.scale)
    assert fit.residuals.max() < 1e-6 * true.scale
    assert fit.used.all()


@given(seeds)
def test_points_in_a_plane_are_never_mirrored(seed: int) -> None:
    """Coplanar pairs, for which a reflection fits as well as the rotation, give the rotation."""
    rng = np.random.default_rng(seed)
    true, src = similarity(rng), rng.normal(size=(5, 3)) * (1, 1, 0)
    found = similarity_from_pairs(src, true.transform_points(src)).dst_from_src
    assert np.allclose(found.rotation, true.rotation, atol=1e-6)


def test_a_wrong_pair_among_many_is_left_out() -> None:
    """One pair that disagrees with seven others does not move the solution, and is named by `used`."""
    rng = np.random.default_rng(0)
    true, src = similarity(rng), rng.normal(size=(8, 3))
    dst = true.transform_points(src)
    dst[5] += 3 * true.scale
    fit = similarity_from_pairs(src, dst)
    assert np.flatnonzero(~fit.used).tolist() == [5]
    assert np.allclose(fit.dst_from_src.matrix, true.matrix, atol=1e-6 * true.scale)


@pytest.mark.parametrize(
    ("points", "reason"),
    [
        (np.eye(3)[:2], "2 pairs"),
        (np.outer(np.arange(5.0), [1, 2, 3]), "one line"),
        (np.array([[0, 0, 0], [1, 0, 0], [np.nan, 1, 0]]), "finite"),
    ],
)
def test_pairs_that_make_no_similarity_are_refused(points: Array, reason: str) -> None:
    """Too few pairs, pairs on a line and pairs that are not finite raise with the reason."""
    with pytest.raises(ValueError, match=reason):
        similarity_from_pairs(points, points, robust=False)


# --- surface --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gate", "rotunda", "cathedral"])
def test_sparse_points_find_the_surface_again(name: str) -> None:
    """From 5°, 3 % in scale and 2 % of the diameter off, noisy points with outliers come to 0.5° and 0.5 %."""
    model, surface = built_in(name)
    rng = np.random.default_rng(7)
    true = similarity(rng)
    start = true @ perturbation(rng, model, deg=5, scale_pct=3, shift_pct=2)
    assert max(differences(start, true, model)) > 4
    fit = align_points(true.transform_points(surface_points(model, rng)), surface, start)
    angle_deg, scale_pct, shift_pct = differences(fit.rec_from_cad, true, model)
    assert angle_deg < 0.5
    assert scale_pct < 0.5
    assert shift_pct < 0.5
    assert fit.converged
    assert not AlignmentReport(fit.rec_from_cad, {}, surface=fit).warnings


@pytest.mark.parametrize(("deg", "scale_pct", "shift_pct"), [(0, 0, 0), (5, 3, 2)])
def test_a_neighbouring_building_does_not_draw_the_model(deg: float, scale_pct: float, shift_pct: float) -> None:
    """With half of the points on a wall 25 m behind the model, true and near starts come to 0.5° and 0.5 %."""
    model, surface = built_in("gate")
    rng = np.random.default_rng(1)
    true = similarity(rng)
    start = true @ perturbation(rng, model, deg=deg, scale_pct=scale_pct, shift_pct=shift_pct)
    on_surface, _ = trimesh.sample.sample_surface(model.mesh, 800, seed=1)
    far = model.bounds[1] + (0, 25, 0)
    behind = rng.uniform((model.bounds[0, 0], far[1], 0), (far[0], far[1] + 0.1, far[2]), size=(800, 3))
    fit = align_points(true.transform_points(np.concatenate([on_surface, behind])), surface, start)
    assert max(differences(fit.rec_from_cad, true, model)) < 0.5
    assert not fit.used[800:].any()
    assert not [words for words in AlignmentReport(fit.rec_from_cad, {}, surface=fit).warnings if "led far" in words]


def test_a_start_that_nothing_improves_is_kept() -> None:
    """Points without noise leave their true start as it was, to the bit, and that is told."""
    points, surface = box_points()
    identity = Similarity.from_matrix(np.eye(4))
    fit = align_points(points, surface, identity)
    assert np.array_equal(fit.rec_from_cad.matrix, np.eye(4))
    assert "it was kept" in " ".join(AlignmentReport(fit.rec_from_cad, {}, surface=fit).warnings)


def test_leaving_the_start_far_behind_is_told() -> None:
    """A model grown by 15 % by its points is found, with a warning that says by how much."""
    points, surface = box_points()
    fit = align_points(1.15 * points, surface, Similarity.from_matrix(np.eye(4)))
    assert fit.rec_from_cad.scale == pytest.approx(1.15, abs=1e-3)
    words = " ".join(AlignmentReport(fit.rec_from_cad, {}, surface=fit).warnings)
    assert "led far away from the start: scale by +15.0 %" in words


def test_of_very_many_points_some_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Points beyond the most that are measured cost nothing."""
    monkeypatch.setattr("cadloc.alignment.surface_fit.MOST_MEASURED", 100)
    points, surface = box_points()
    fit = align_points(points, surface, Similarity.from_matrix(np.eye(4)))
    assert len(fit.distances_m) == len(fit.used) == 100


def test_points_of_one_wall_are_called_weakly_constrained() -> None:
    """Points of one plane leave four unknowns to the start: they are named, and the start keeps them."""
    rng = np.random.default_rng(1)
    wall = SurfaceIndex(trimesh.creation.box((40.0, 0.01, 20.0)), samples=5_000)
    points = rng.uniform((-15, 0, -8), (15, 0, 8), size=(500, 3)) + rng.normal(size=(500, 3)) * (0, 0.01, 0)
    start = Similarity(1.01, np.eye(3), np.array([0.3, 0.2, 0.0]))
    fit = align_points(points, wall, start)
    words = " ".join(AlignmentReport(fit.rec_from_cad, {}, surface=fit).warnings)
    assert "weakly constrained: shift along any axis across y, rotation about y, scale" in words
    assert "one plane" in words
    assert fit.rec_from_cad.scale == pytest.approx(1.01, abs=2e-3)
    assert np.median(fit.distances_m) < 0.02


def test_a_stretched_model_is_called_stretched() -> None:
    """A model 6 % too high is told from one with the true proportions, by about that much."""
    model, surface = built_in("cathedral")
    points = surface_points(model, np.random.default_rng(3))
    identity = Similarity.from_matrix(np.eye(4))
    true = align_points(points, surface, identity)
    stretched = align_points(points / (1, 1, 1.06), surface, identity)
    assert true.stretch == pytest.approx(1.0, abs=0.01)
    assert stretched.stretch == pytest.approx(1.06, abs=0.02)
    words = " ".join(AlignmentReport(stretched.rec_from_cad, {}, surface=stretched).warnings)
    assert "the CAD is stretched" in words


def test_too_few_points_are_refused() -> None:
    """Ten points align nothing."""
    with pytest.raises(ValueError, match="10 points"):
        align_points(np.zeros((10, 3)), trimesh.creation.box(), Similarity.from_matrix(np.eye(4)))


@given(seeds)
def test_small_motions_move_points_as_their_jacobian_says(seed: int) -> None:
    """The similarity and the affine map of small unknowns move points by Jacobian times unknowns."""
    rng = np.random.default_rng(seed)
    points, directions = rng.normal(size=(20, 3)) * 10 + 5, rng.normal(size=(20, 3))
    motion = Motion.about(points)
    seven, twelve = 1e-5 * rng.normal(size=7), 1e-5 * rng.normal(size=12)
    moved = (motion.similarity(seven).transform_points(points) - points) * directions
    assert np.allclose(moved.sum(axis=1), motion.jacobian(points, directions) @ seven, atol=1e-8)
    moved = (transform_points(motion.affine(twelve), points) - points) * directions
    assert np.allclose(moved.sum(axis=1), motion.affine_jacobian(points, directions) @ twelve, atol=1e-8)


# --- photos ---------------------------------------------------------------------------------------------------


def photographed(model: CadModel, shown: CadModel, rec_from_cad: Similarity, count: int) -> list[PosedImage]:
    """Small pictures of `shown` from an arc in front of `model`, posed in the reconstruction's frame."""
    images = []
    intrinsics = pinhole(320, 240, 60)
    for azimuth_deg in np.linspace(-130, -50, count):
        towards = np.array([np.cos(np.deg2rad(azimuth_deg)), np.sin(np.deg2rad(azimuth_deg)), 0.15])
        cad_from_cam = look_at(0.8 * model.diameter_m * towards, (0, 0, 6))
        view = process_renderer().render(shown, cad_from_cam, intrinsics, 320, 240, Light(), colour_samples=4)
        posed = rec_from_cad.transform_pose(cad_from_cam)
        images.append(PosedImage(f"{azimuth_deg:.0f}", view.image, intrinsics, inverse(posed)))
    return images


@cache
def refined(shown: str) -> tuple[PhotoFit, Similarity, Similarity, CadModel]:
    """A fit to pictures of the gate from 1°, 1 % and 0.5 % off; also the truth, the start and the model."""
    model, twin = painted_gate("synthetic"), painted_gate(shown)
    rng = np.random.default_rng(5)
    true = similarity(rng)
    start = true @ perturbation(rng, model, deg=1, scale_pct=1, shift_pct=0.5)
    images = photographed(model, twin, true, 4)
    reaches = (0.06,) if shown == "synthetic" else (0.06, 0.03)
    return refine_by_matches(images, model, start, reaches=reaches), true, start, model


@pytest.mark.parametrize(("shown", "within"), [("synthetic", 0.1), ("photo", 0.3)])
def test_renders_are_brought_to_coincide_with_photos(shown: str, within: float) -> None:
    """Pictures of the model, or of its weathered twin, bring it from 1° and 1 % off to 0.1 or 0.3 (° and %)."""
    fit, true, start, model = refined(shown)
    assert max(differences(start, true, model)) > 1
    assert max(differences(fit.rec_from_cad, true, model)) < within
    assert len(fit.photos_used) == 4
    assert np.median(fit.residuals_px[fit.used]) < 0.5
    assert fit.halves_pct is not None
    assert fit.halves_pct < 1


def test_the_report_says_what_was_measured() -> None:
    """Scale, matches, photos and firmness stand in the report, numbers as they are in the fit."""
    fit, true, _, _ = refined("synthetic")
    report = AlignmentReport(fit.rec_from_cad, {"door": 0.25}, dropped_pairs=("roof",), photos=fit)
    text = "\n".join(report.lines())
    assert report.photos_share == 1.0
    assert report.scale == pytest.approx(true.scale, rel=1e-3)
    assert f"{int(fit.used.sum())} of {len(fit.used)}" in text
    assert "pairs that disagree with the others, left out: roof" in text
    assert "weakly" not in text


def test_one_photo_cannot_fix_the_scale() -> None:
    """A single photo is refused: distance and scale would be one."""
    model = painted_gate("synthetic")
    identity = Similarity.from_matrix(np.eye(4))
    with pytest.raises(ValueError, match="1 of 1 photos"):
        refine_by_matches(photographed(model, model, identity, 1), model, identity, reaches=(0.03,))


# --- evidence -------------------------------------------------------------------------------------------------


def row_of_photos(count: int, points: SparsePoints | None = None) -> Reconstruction:
    """Photos 0.jpg, 1.jpg … of one camera."""
    camera = Camera("PINHOLE", 640, 480, (500.0, 500.0, 320.0, 240.0))
    names = (f"{index}.jpg" for index in range(count))
    return Reconstruction(Path("rec"), tuple(Photo(name, Path(name), camera, np.eye(4)) for name in names), points)


def split_by(folder: Path, **names: str) -> PhotosConfig:
    """Photos whose splits are files of names."""
    for split, words in names.items():
        (folder / split).write_text("\n".join(words.split()))
    splits = SplitsConfig.model_validate({split: str(folder / split) for split in names})
    return PhotosConfig(images="images", reconstruction="rec", format="colmap", splits=splits)


def test_photos_of_no_split_are_not_looked_at(tmp_path: Path) -> None:
    """With a file of mapping photos, those that nobody names are left out."""
    photos = split_by(tmp_path, mapping="0 1", validation="2", query="3")
    assert [photo.name for photo in evidence_of(row_of_photos(6), photos).photos] == ["0.jpg", "1.jpg", "2.jpg"]


def test_query_photos_make_no_point_reliable(tmp_path: Path) -> None:
    """A point that three mapping and validation photos see counts; one that query photos see besides two does not."""
    seen = {"0.jpg": [0, 1], "1.jpg": [0, 1], "2.jpg": [0], "3.jpg": [1], "4.jpg": [1]}
    seen_in = {name: (np.zeros((len(rows), 2)), np.array(rows)) for name, rows in seen.items()}
    points = SparsePoints(np.eye(3)[:2], np.array([3, 4]), np.zeros(2), seen_in)
    photos = split_by(tmp_path, mapping="0 1", validation="2", query="3 4")
    assert np.array_equal(evidence_of(row_of_photos(5, points), photos).points_rec, np.eye(3)[:1])


def nothing(points: int = 0) -> tuple[CadModel, Evidence, Similarity]:
    """Too few points and no photos."""
    return built_in("gate")[0], Evidence(np.zeros((points, 3)), ()), Similarity.from_matrix(np.eye(4))


@pytest.mark.parametrize("refine", [True, False])
def test_a_start_alone_is_no_alignment(refine: bool) -> None:
    """Without pairs, enough points and photos that match, there is no result, but a fault that says what is missing."""
    with pytest.raises(InputError, match="5 reliable sparse points: too few"):
        align(*nothing(5), refine=refine)


def test_only_too_few_matches_excuse_the_photos(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure of the arithmetic is no lack of photos: it is not passed over."""

    def fails(*_: object) -> None:
        raise np.linalg.LinAlgError("singular")

    monkeypatch.setattr("cadloc.alignment.scene.refine_by_matches", fails)
    with pytest.raises(np.linalg.LinAlgError):
        align(*nothing())


# --- files of pairs -------------------------------------------------------------------------------------------


def two_photos() -> Reconstruction:
    """Two cameras that look at the origin from 30 degrees apart."""
    camera = Camera("PINHOLE", 640, 480, (500.0, 510.0, 320.0, 240.0))
    photos = [
        Photo(name, Path(name), camera, inverse(look_at(eye, (0, 0, 0))))
        for name, eye in (("a.jpg", (10.0, 0, 1)), ("b.jpg", (9.0, 5, 1)))
    ]
    return Reconstruction(Path("rec"), tuple(photos))


def test_clicks_in_two_photos_are_one_point(tmp_path: Path) -> None:
    """The projections of a point, clicked in two photos, give the point back; a given point is taken as it is."""
    reconstruction, point = two_photos(), np.array([0.4, -0.3, 0.8])
    K = np.array([[500.0, 0, 320], [0, 510, 240], [0, 0, 1]])
    clicks = [
        {"photo": photo.name, "pixel": project(transform_points(photo.cam_from_rec, point[None]), K)[0].tolist()}
        for photo in reconstruction.photos
    ]
    pairs = [{"name": "door", "cad": [1, 2, 3], "clicks": clicks}, {"name": "roof", "cad": [4, 5, 6], "rec": [7, 8, 9]}]
    (tmp_path / "pairs.json").write_text(json.dumps({"pairs": pairs}))
    picks = read_picks(tmp_path / "pairs.json", reconstruction)
    assert picks.names == ("door", "roof")
    assert np.allclose(picks.points_rec, [point, [7, 8, 9]], atol=1e-9)
    assert np.array_equal(picks.points_own, [[1, 2, 3], [4, 5, 6]])


def test_clicks_in_query_photos_are_refused(tmp_path: Path) -> None:
    """Query photos test: a click in one is a fault that names it."""
    clicks = [{"photo": name, "pixel": [1, 2]} for name in ("a.jpg", "b.jpg")]
    (tmp_path / "pairs.json").write_text(json.dumps({"pairs": [{"name": "door", "cad": [1, 2, 3], "clicks": clicks}]}))
    with pytest.raises(InputError, match=r"'b\.jpg', a query photo"):
        read_picks(tmp_path / "pairs.json", two_photos(), queries=["b.jpg"])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_table_of_pairs_is_read(tmp_path: Path, encoding: str) -> None:
    """Columns are name, reconstruction, CAD; a byte order mark, as spreadsheets write it, is none of them."""
    path = tmp_path / "pairs.csv"
    path.write_text("name,rec_x,rec_y,rec_z,cad_x,cad_y,cad_z\ndoor,1,2,3,4,5,6\n", encoding=encoding)
    picks = read_picks(path, two_photos())
    assert np.array_equal(picks.points_rec, [[1, 2, 3]])
    assert np.array_equal(picks.points_own, [[4, 5, 6]])


def test_every_fault_of_a_file_of_pairs_is_told(tmp_path: Path) -> None:
    """A missing number, an unknown photo, a single click and a repeated name are four faults of one error."""
    pairs = [
        {"name": "a", "cad": [1, 2], "rec": [1, 2, 3]},
        {"name": "b", "cad": [1, 2, 3], "clicks": [{"photo": "z.jpg", "pixel": [1, 2]}]},
        {"name": "c", "cad": [1, 2, 3], "clicks": [{"photo": "a.jpg", "pixel": [1, 2]}]},
        {"name": "d", "cad": [1, 2, 3], "rec": [1, 2, 3]},
        {"name": "d", "cad": [1, 2, 3], "rec": [1, 2, 3]},
    ]
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps({"pairs": pairs}))
    with pytest.raises(InputError) as caught:
        read_picks(path, two_photos())
    found = [fault.found for fault in caught.value.faults]
    expected = ("[1, 2] instead of 3 finite numbers", "'z.jpg'", "one photo only", "a second time")
    assert [any(words in text for text in found) for words in expected] == [True] * 4
    assert len(found) == 4


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pairs": 3}'])
def test_a_file_that_holds_no_pairs_is_refused(tmp_path: Path, text: str) -> None:
    """Empty and broken files are faults, as JSON and as CSV."""
    for name in ("pairs.json", "pairs.csv"):
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError):
            read_picks(tmp_path / name, two_photos())
