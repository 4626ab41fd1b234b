"""Real models and reconstructions, whose registration is known, are aligned again from somewhere else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from scipy.spatial.transform import Rotation

from cadloc.alignment import SurfaceIndex, align, align_points, evidence_of
from cadloc.alignment.picks import Picks, triangulate
from cadloc.cad import CadModel, load_cad
from cadloc.contract import InputError
from cadloc.datasets.reading import read_reconstruction
from cadloc.datasets.reconstruction import Reconstruction
from cadloc.geometry import Similarity, inverse, rotation_error_deg
from cadloc.registration import own_axes, read_similarity, rec_from_cad
from cadloc.scene_config import CadConfig, PhotosConfig, SceneConfig
from cadloc_sweep.scene_alignment import align_scene

pytestmark = [pytest.mark.shared_data, pytest.mark.timeout(1200)]

INCH_M = 0.0254


def perturbed(start: Similarity, model: CadModel, *, deg: float, scale_pct: float, shift_pct: float) -> Similarity:
    """The start with a rotation about the model's middle, a growth, and a shift in % of its diameter."""
    rotation = Rotation.from_rotvec(np.deg2rad(deg) * np.array([2, -1, 2]) / 3).as_matrix()
    scale = 1 + scale_pct / 100
    moved = model.centre + np.array([1, 2, -2]) / 3 * shift_pct / 100 * model.diameter_m
    return start @ Similarity(scale, rotation, moved - scale * rotation @ model.centre)


def differences(estimate: Similarity, true: Similarity, model: CadModel) -> tuple[float, float, float]:
    """Rotation in degrees, scale in %, and the farthest that a corner of the model's bounds is off, in % of it."""
    off_m = estimate.inverse().transform_points(true.transform_points(model.bounds)) - model.bounds
    angle = float(rotation_error_deg(estimate.rotation, true.rotation))
    shift_pct = 100 * float(np.linalg.norm(off_m, axis=1).max()) / model.diameter_m
    return angle, 100 * abs(estimate.scale / true.scale - 1), shift_pct


def photos_of(folder: Path) -> PhotosConfig:
    """The photos of one of the real scenes."""
    return PhotosConfig(images=str(folder / "images"), reconstruction=str(folder / "sparse"), format="colmap")


def picks_of(case: dict[str, Any], reconstruction: Reconstruction) -> Picks:
    """The picks of an exercise, whose CAD is in inches: clicked in three photos, with noise."""
    points_rec = [
        triangulate([(reconstruction.photo(click["image"]), np.array(click["uv"])) for click in pick["clicks"]])
        for pick in case["picks"]
    ]
    points_own = np.array([pick["cad_xyz"] for pick in case["picks"]]) * INCH_M
    return Picks(tuple(f"pick {index}" for index in range(len(points_rec))), np.array(points_rec), points_own)


def test_two_authors_models_of_one_building_find_each_other(shared_data: Path) -> None:
    """From 5°, 3 % and 2 % off, one model's surface comes to where it comes from its known registration.

    That lies nearer to the other model than the known registration itself, which is good to a decimetre.
    """
    folder = shared_data / "brandenburg"
    b, c = (load_cad(CadConfig(path=str(folder / f"brandenburg_gate_{name}.glb"), up="z", units="m")) for name in "bc")
    known = read_similarity(str(folder / "b_from_c.txt"), "b_from_c")
    registered = Similarity.from_matrix(own_axes(b) @ known.matrix @ inverse(own_axes(c))).inverse()
    points, _ = trimesh.sample.sample_surface(c.mesh, 4000, seed=0)
    surface = SurfaceIndex(b.mesh)
    start = perturbed(registered, b, deg=5, scale_pct=3, shift_pct=2)
    near, far = (align_points(points, surface, begin) for begin in (registered, start))
    assert max(differences(far.rec_from_cad, near.rec_from_cad, b)) < 0.05
    assert max(differences(far.rec_from_cad, registered, b)) < 1.0
    moved = registered.inverse().transform_points(points)
    known_m = np.linalg.norm(moved - surface.closest(moved)[0], axis=1)
    assert np.median(far.distances_m) < np.median(known_m)


@pytest.mark.parametrize("name", ["herzjesu", "fountain"])
def test_noisy_picks_and_points_find_the_true_transform(shared_data: Path, name: str) -> None:
    """Eight noisy picks and the sparse points bring a model in inches, y up, to 0.1° and 0.1 % of its true place."""
    folder = shared_data / name
    case = json.loads((folder / "align_case" / "align_case.json").read_text())
    model = load_cad(CadConfig(path=str(folder / "align_case" / "model_cad_frame.ply"), up="y", units="in"))
    photos = photos_of(folder)
    reconstruction = read_reconstruction(photos)
    rec_from_own = np.array(case["T_ref_world_from_cad"]) @ np.diag([1 / INCH_M, 1 / INCH_M, 1 / INCH_M, 1])
    true = Similarity.from_matrix(rec_from_own @ inverse(own_axes(model)))
    evidence = evidence_of(reconstruction, photos)
    nowhere = Similarity.from_matrix(np.eye(4))
    report = align(model, evidence, nowhere, picks=picks_of(case, reconstruction), refine=False)
    assert max(differences(report.rec_from_cad, true, model)) < 0.1
    assert report.dropped_pairs == ()
    assert report.points_share is not None
    assert report.points_share > 0.6


def test_a_mesh_of_another_reconstruction_is_laid_into_this_one(shared_data: Path) -> None:
    """Camera centres of two runs and the sparse points give the registration that was verified on the photos."""
    folder = shared_data / "sceaux"
    case = json.loads((folder / "align_case" / "align_case.json").read_text())
    model = load_cad(CadConfig(path=str(folder / "align_case" / "mesh_own_frame.ply"), up="-y", units="m"))
    photos = photos_of(folder)
    reconstruction = read_reconstruction(photos)
    centres = np.array([inverse(photo.cam_from_rec)[:3, 3] for photo in reconstruction.photos])
    picks = Picks(
        tuple(photo.name for photo in reconstruction.photos), centres, np.array(case["mesh_run_camera_centres"])
    )
    nowhere = Similarity.from_matrix(np.eye(4))
    report = align(model, evidence_of(reconstruction, photos), nowhere, picks=picks, refine=False)
    verified = Similarity.from_matrix(np.array(case["T_icp"]) @ inverse(own_axes(model)))
    assert max(differences(report.rec_from_cad, verified, model)) < 0.2


def test_a_scene_is_aligned_from_a_start_to_a_file(shared_data: Path, tmp_path: Path) -> None:
    """`scene align` writes a registration that undoes a start 3° and 2 % off, and never overwrites one."""
    folder = shared_data / "fountain"
    cad = CadConfig(path=str(folder / "mesh_textured.glb"), up="-z", units="m")
    scene = SceneConfig(name="fountain", cad=cad, photos=photos_of(folder))
    assert scene.photos is not None
    model = load_cad(cad)
    true = rec_from_cad(scene.photos, model)
    start, to = tmp_path / "start.txt", tmp_path / "registration.txt"
    off = perturbed(true, model, deg=3, scale_pct=2, shift_pct=1)
    np.savetxt(start, off.matrix @ own_axes(model))
    lines: list[str] = []
    align_scene(scene, pairs=None, start=start, refine=True, to=to, say=lines.append)
    found = rec_from_cad(scene.photos.model_copy(update={"registration": str(to)}), model)
    assert max(differences(found, true, model)) < 0.1
    assert not [line for line in lines if line.startswith("warning")]
    with pytest.raises(InputError, match="exists"):
        align_scene(scene, pairs=None, start=start, refine=False, to=to, say=lines.append)
