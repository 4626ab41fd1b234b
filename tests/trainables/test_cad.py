"""CAD files in, surfaces out: every format, every way a file can be wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image
from trimesh.visual import TextureVisuals
from trimesh.visual.material import PBRMaterial, SimpleMaterial

from cadloc.cad import inspect_cad, load_cad, model_from_meshes
from cadloc.cad_files import missing_files, referenced_files
from cadloc.cad_reading import FORMATS, UNITLESS_FORMATS
from cadloc.contract import InputError
from cadloc.scene_config import CadConfig
from cadloc.surfaces import first_of_its_kind, looks

SIZE = np.array([20.0, 12.0, 8.0])
RNG = np.random.default_rng(0)


def box(*, textured: bool = False) -> trimesh.Trimesh:
    """A 20 × 12 × 8 box on the ground, no vertex shared between faces."""
    mesh = trimesh.creation.box(SIZE)
    mesh.apply_translation([0, 0, 4])
    mesh.unmerge_vertices()
    if textured:
        mesh.visual = TextureVisuals(uv=RNG.random((len(mesh.vertices), 2)), image=checkers())
    return mesh


def checkers(mode: str = "RGB") -> Image.Image:
    return Image.fromarray(np.kron([[0, 255], [255, 0]], np.ones((8, 8))).astype(np.uint8)).convert(mode)


def write(mesh: trimesh.Trimesh, path: Path) -> Path:
    if path.suffix == ".gltf":
        for name, data in trimesh.Scene([mesh]).export(file_type="gltf").items():
            (path if name.endswith(".gltf") else path.parent / name).write_bytes(data)
    else:
        mesh.export(path)
    return path


def config(path: Path, units: str | float | None = "m", up: str = "z") -> CadConfig:
    return CadConfig(path=str(path), units=units, up=up)


def faults(path: Path, **settings: object) -> str:
    with pytest.raises(InputError) as caught:
        load_cad(config(path, **settings))
    assert all(fault.file == str(path) and fault.key.startswith("cad.") for fault in caught.value.faults)
    return str(caught.value)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(("units", "metres"), [("m", 1.0), ("in", 0.0254), (0.5, 0.5)])
def test_every_format_loads_in_the_stated_unit(tmp_path, suffix, units, metres):
    """A box comes back with its size in metres, whatever file it went through."""
    model = load_cad(config(write(box(), tmp_path / f"box{suffix}"), units))
    assert np.allclose(model.bounds[1] - model.bounds[0], SIZE * metres, rtol=1e-5)
    assert len(model.mesh.faces) == 12
    assert all(surface.vertices.dtype == np.float64 for surface in model.surfaces)


@pytest.mark.parametrize(("suffix", "metres"), [(".glb", 1.0), (".gltf", 1.0), (".3mf", 1e-3), (".dae", 1.0)])
def test_formats_that_state_a_unit_need_none(tmp_path, suffix, metres):
    """glTF is in metres, 3MF in millimetres, COLLADA says so itself."""
    model = load_cad(config(write(box(), tmp_path / f"box{suffix}"), None))
    assert np.allclose(np.ptp(model.bounds, axis=0), SIZE * metres, rtol=1e-5)


def test_collada_unit_is_read_from_the_file(tmp_path):
    """A COLLADA file in inches becomes metres."""
    path = write(box(), tmp_path / "box.dae")
    path.write_text(path.read_text().replace("<up_axis>", '<unit name="inch" meter="0.0254"/><up_axis>'))
    assert np.allclose(np.ptp(load_cad(config(path, None)).bounds, axis=0), SIZE * 0.0254, rtol=1e-5)


@pytest.mark.parametrize("unit", ["0", "nan", "-1"])
def test_a_nonsensical_unit_in_the_file_is_an_input_error(tmp_path, unit):
    """A COLLADA file whose unit is no length is refused, unless the configuration states one."""
    path = write(box(), tmp_path / "box.dae")
    path.write_text(path.read_text().replace("<up_axis>", f'<unit name="odd" meter="{unit}"/><up_axis>'))
    assert "cad.units" in faults(path, units=None)
    assert np.allclose(np.ptp(load_cad(config(path)).bounds, axis=0), SIZE, rtol=1e-5)


@pytest.mark.parametrize("suffix", UNITLESS_FORMATS)
def test_unitless_formats_demand_a_unit(tmp_path, suffix):
    """Nobody guesses a scale: the error names the key and what it may be."""
    text = faults(write(box(), tmp_path / f"box{suffix}"), units=None)
    assert "cad.units" in text
    assert "mm" in text


@pytest.mark.parametrize(("up", "extents"), [("x", [8, 12, 20]), ("y", [20, 8, 12]), ("z", [20, 12, 8])])
def test_the_named_axis_becomes_z(tmp_path, up, extents):
    """The axis that points to the sky becomes z, by a rotation and never by a reflection."""
    model = load_cad(config(write(box(), tmp_path / "box.stl"), up=up))
    assert np.allclose(np.ptp(model.bounds, axis=0), extents)
    axis = "xyz".index(up)
    assert np.allclose(model.cad_from_file[:3, axis], [0, 0, 1])
    assert np.isclose(np.linalg.det(model.cad_from_file), 1)
    assert model.mesh.volume > 0


def test_mirrored_nodes_keep_their_mirror(tmp_path):
    """A node with a negative scale is baked into vertices, its outside still outside."""
    wedge = trimesh.creation.box([4, 2, 2])
    wedge.vertices[wedge.vertices[:, 0] > 0, 2] *= 0.25
    scene = trimesh.Scene()
    scene.add_geometry(wedge, transform=np.diag([-1.0, 1, 1, 1]))
    path = tmp_path / "mirrored.glb"
    path.write_bytes(scene.export(file_type="glb"))
    model = load_cad(config(path))
    tall = model.mesh.vertices[np.abs(model.mesh.vertices[:, 2]) > 0.9]
    assert (tall[:, 0] > 0).all()
    assert model.mesh.volume > 0


def test_far_models_are_moved_to_the_origin_in_float64(tmp_path):
    """A georeferenced model keeps its shape to a micrometre, and says where it was; a near one stays."""
    offset = np.array([691000.25, 5334000.5, 520.125])
    near = box()
    far = near.copy()
    far.vertices = far.vertices + offset
    path = tmp_path / "utm.obj"
    far.export(path, digits=9)
    model = load_cad(config(path))
    assert np.abs(model.centre).max() < 1
    moved = model.mesh.vertices + model.origin_m
    assert np.allclose(np.sort(moved, axis=0), np.sort(far.vertices, axis=0), rtol=0, atol=1e-6)
    assert np.allclose(model.cad_from_file[:3, 3], -model.origin_m)
    assert not model_from_meshes([near], "near").origin_m.any()


def test_surfaces_merge_by_appearance():
    """Parts that look alike become one surface, others stay apart; textured ones come first."""
    meshes = [box(textured=True), box(textured=True), box()]
    for index, mesh in enumerate(meshes):
        mesh.apply_translation([30 * index, 0, 0])
    model = model_from_meshes([meshes[2], *meshes[:2]], "three")
    assert [len(surface.faces) for surface in model.surfaces] == [24, 12]
    assert len(model.mesh.faces) == 36


def test_texture_is_not_darkened_by_the_default_diffuse_colour():
    """A SimpleMaterial's grey (102, 102, 102) does not multiply its texture."""
    mesh = box(textured=True)
    assert isinstance(mesh.visual.material, SimpleMaterial)
    shown = looks(model_from_meshes([mesh], "box").surfaces[0])
    assert (shown.tint == 1).all()
    assert shown.image.max() == 255


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1"])
def test_every_texture_mode_becomes_rgba(mode):
    """Palettes, bitmaps and grey images with alpha are textures too."""
    mesh = box()
    uv = np.zeros((len(mesh.vertices), 2))
    mesh.visual = TextureVisuals(uv=uv, material=PBRMaterial(baseColorTexture=checkers(mode)))
    image = looks(model_from_meshes([mesh], "box").surfaces[0]).image
    assert image.shape == (16, 16, 4)
    assert sorted(np.unique(image[..., 0])) == [0, 255]


def test_large_textures_are_reduced():
    """No texture exceeds 4096 px, and the reduction is told."""
    mesh = box()
    material = PBRMaterial(baseColorTexture=Image.new("RGB", (5000, 10)))
    mesh.visual = TextureVisuals(uv=np.zeros((len(mesh.vertices), 2)), material=material)
    model = model_from_meshes([mesh], "box")
    assert max(looks(model.surfaces[0]).image.shape) == 4096
    assert any("5000" in warning for warning in model.warnings)


def test_face_colours_survive():
    """Each face keeps its own colour at its three corners."""
    mesh = trimesh.creation.box(SIZE)
    mesh.visual.face_colors = np.column_stack([np.arange(12) * 20, np.zeros((12, 2)), np.full(12, 255)]).astype(
        np.uint8
    )
    surface = model_from_meshes([mesh], "box").surfaces[0]
    reds = looks(surface).tint[surface.faces][..., 0] * 255
    assert np.allclose(np.sort(reds[:, 0]), np.arange(12) * 20)
    assert np.allclose(reds, reds[:, :1])


def test_degenerate_and_repeated_faces_are_dropped():
    """Zero-area faces and coinciding ones, in either winding, go; the textured one of two stays."""
    plain, textured = box(), box(textured=True)
    plain.invert()
    plain.faces = np.vstack([plain.faces, [[0, 0, 1]]])
    model = model_from_meshes([plain, textured], "twice")
    assert len(model.mesh.faces) == 12
    assert model.cleaning.degenerate_faces == 1
    assert model.cleaning.duplicate_faces == 12
    assert looks(model.surfaces[0]).image.shape == (16, 16, 4)


def test_first_of_its_kind_matches_the_obvious_way():
    """The fast search for repeated triangles agrees with comparing sorted corners one by one."""
    corners = RNG.integers(0, 2, (60, 3, 3)).astype(float)
    kinds = [tuple(sorted(map(tuple, triangle.tolist()))) for triangle in corners]
    assert first_of_its_kind(corners).tolist() == [kind not in kinds[:i] for i, kind in enumerate(kinds)]


def test_ground_is_the_top_of_the_slab():
    """A building on a slab stands on the slab's upper side; one without ground on its lowest point."""
    slab = trimesh.creation.box([100, 100, 0.4])
    slab.apply_translation([0, 0, -0.2])
    assert np.isclose(model_from_meshes([box(), slab], "plaza").ground_height_m, 0, atol=1e-9)
    mast = trimesh.creation.cone(1.0, 10.0)
    mast.apply_translation([0, 0, 5])
    assert np.isclose(model_from_meshes([mast], "mast").ground_height_m, 5)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("damage", ["cut", "empty", "noise", "text"])
def test_damaged_files_are_input_errors(tmp_path, suffix, damage):
    """Whatever was done to a file, the error names file and key."""
    path = write(box(textured=suffix not in (".stl", ".off", ".3mf")), tmp_path / f"box{suffix}")
    whole = path.read_bytes()
    noise = np.random.default_rng(1).bytes(400)
    path.write_bytes({"cut": whole[: len(whole) // 3], "empty": b"", "noise": noise, "text": b"hello\n" * 9}[damage])
    assert "allowed" in faults(path)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("v 0 0 0\nv nan 0 0\nv 0 1 0\nf 1 2 3\n", "not finite"),
        ("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 9\n", "unreadable"),
        ("v 0 0 0\nv 1 0 0\nv 0 1 0\n", "no triangles"),
        ("v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n", "without area"),
    ],
    ids=["NaN vertex", "missing vertex", "points only", "no area"],
)
def test_unusable_geometry_is_an_input_error(tmp_path, text, found):
    """A file that parses but holds nothing to render is refused, with the reason."""
    path = tmp_path / "bad.obj"
    path.write_text(text)
    assert found in faults(path)


def test_missing_files_and_unknown_formats_are_input_errors(tmp_path):
    """A typo in a path and a format nobody reads each name what is allowed."""
    assert "no such file" in faults(tmp_path / "gone.glb")
    assert ".glb .gltf" in faults(tmp_path / "model.skp")


def test_missing_gltf_buffer_is_an_input_error(tmp_path):
    """A glTF whose geometry file is gone is unreadable, not empty."""
    path = write(box(), tmp_path / "box.gltf")
    for buffer in json.loads(path.read_text())["buffers"]:
        (tmp_path / buffer["uri"]).unlink()
    assert "unreadable" in faults(path)


def test_missing_texture_is_a_warning(tmp_path):
    """The model loads without its texture and says which file it wanted."""
    path = write(box(textured=True), tmp_path / "box.obj")
    (tmp_path / "material_0.png").unlink()
    model = load_cad(config(path))
    assert any("material_0.png" in warning for warning in model.warnings)
    assert inspect_cad(config(path)).textures_missing == ("material_0.png",)


@pytest.mark.parametrize("units", ["mm", 1e3])
def test_implausible_size_is_a_warning(tmp_path, units):
    """A building of centimetres or of tens of kilometres loads, and doubts its unit."""
    model = load_cad(config(write(box(), tmp_path / "box.stl"), units))
    assert any("units" in warning for warning in model.warnings)


def test_inspection_guesses_the_unit_and_counts(tmp_path):
    """A box of 20 000 × 12 000 × 8 000 units without a lid is taken for millimetres with four open edges."""
    mesh = box()
    mesh.faces = mesh.faces[mesh.face_normals[:, 2] < 0.5]
    mesh.vertices = mesh.vertices * 1000
    report = inspect_cad(config(write(mesh, tmp_path / "box.stl"), None))
    assert report.units == "mm (guess)"
    assert np.allclose(np.ptp(report.bounds_m, axis=0), SIZE)
    assert (report.faces, report.open_edges, report.textures_found) == (10, 4, 0)


@pytest.mark.shared_data
def test_real_models_load(shared_data):
    """Models from a 3D warehouse come in at building size, textured, with nothing to complain about."""
    for place in ("brandenburg/brandenburg_gate_b.glb", "pantheon/pantheon_b.glb"):
        model = load_cad(config(shared_data / place, None))
        assert 50 < model.diameter_m < 200
        assert sum(looks(surface).image.size > 4 for surface in model.surfaces) > 5
        assert not model.warnings


def test_a_texture_that_is_missing_far_away_is_a_warning(tmp_path: Path) -> None:
    """An absolute texture path of the author's own machine, and a name with blanks, are told and change nothing."""
    mesh = box(textured=True)
    mesh.export(tmp_path / "house.obj")
    Image.new("RGB", (4, 4)).save(tmp_path / "brick wall.png")
    material = "newmtl material_0\nmap_Kd {}\n"
    (tmp_path / "material.mtl").write_text(material.format("/home/somebody/textures/brick.png"))
    model = load_cad(config(tmp_path / "house.obj", "m"))
    assert any("brick.png" in warning for warning in model.warnings)
    (tmp_path / "material.mtl").write_text(material.format("brick wall.png"))
    assert missing_files(tmp_path / "house.obj") == ()
    assert tmp_path / "brick wall.png" in referenced_files(tmp_path / "house.obj")
