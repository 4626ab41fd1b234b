"""Rendering on one core: views with exact coordinates, written datasets, shadows, memory; and on all cores at once.

What is drawn is a made-up building of 17,155 faces under 12 textures (one of 1024 px, the others 512 px), at 640×480
from the viewpoints of the stage `views`. Each part has processes of its own, set up as a sweep's workers are.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import cycle
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from benchmarks.measurement import Measurement, interleaved
from cadloc.cad import CadModel, model_from_meshes
from cadloc.datasets.building import Job, make_view
from cadloc.rendering import Light, Renderer, clip_from_eye, process_renderer
from cadloc.scene_config import SceneConfig
from cadloc.scenes.training import training_building
from cadloc.viewpoints import Site, Viewpoint, plan_viewpoints
from cadloc.views_config import CountsConfig, ViewsConfig
from cadloc_sweep.executors.on_ray import worker_environment

WIDTH_PX, HEIGHT_PX = 640, 480
VIEWS = 24
ROUNDS = 24
REBUILDS = 3
SECONDS_ALONE = 4.0
MEMORY_FRAMES, MEMORY_SETTLED = 1_500, 500
"""Frames at half the size, and those of them that memory may grow in: caches fill."""

_AS_WORKERS = {**worker_environment(), "OMP_NUM_THREADS": "1"}
_WARM = Light(shadows=True)

Answer = TypeVar("Answer")
_barrier: Barrier


def measure() -> Iterator[Measurement]:
    """Frames per second of a core, their limits, and what many frames leave in memory."""
    views = _elsewhere(views_fps)
    yield Measurement(
        "render view",
        views["ours"],
        "fps",
        baseline=views["stock"],
        what="stock pyrender, only the pose changing",
        limit=views["drawing"],
        limit_is="drawing alone, nothing read back",
        target="≥ 12× stock, ≥ 60 % of drawing",
    )
    yield Measurement(
        "render dataset",
        _elsewhere(dataset_fps),
        "fps",
        baseline=_elsewhere(rebuilding_fps),
        what="stock pyrender, scene and renderer made anew for each view, nothing written",
        target="≥ 8 per core",
    )
    shadows = _elsewhere(shadows_fps)
    yield Measurement(
        "render shadows",
        1000 / shadows["cast"],
        "ms per view",
        baseline=1000 / shadows["none"],
        what="without shadows",
        better="less",
        target="≤ 2× the unshadowed",
    )
    yield _cores()
    grown_mb = _elsewhere(memory_growth_mb)
    what = f"MB from frame {MEMORY_SETTLED} to {MEMORY_FRAMES}"
    yield Measurement("render memory", grown_mb, what, better="less", target="0")


def views_fps(frames: int = ROUNDS) -> dict[str, float]:
    """Ours (colour, coordinates, read back), its drawing alone, and stock pyrender, over the same poses in turns."""
    model, _, viewpoints = _building()
    works: dict[str, Callable[[], object]] = {
        "ours": _seen(model, viewpoints, Light()),
        "drawing": _drawn(model, viewpoints),
        "stock": _stock(model, viewpoints),
    }
    return interleaved(works, frames)


def shadows_fps(frames: int = 3 * ROUNDS) -> dict[str, float]:
    """Views under a sun that stays, with shadows and without."""
    model, _, viewpoints = _building()
    return interleaved(
        {"cast": _seen(model, viewpoints, _WARM), "none": _seen(model, viewpoints, Light())},
        frames,
    )


def dataset_fps(count: int = 2 * VIEWS) -> float:
    """Views as the stage `views` makes and writes them: of random light, sky and camera, all four files."""
    _, job, viewpoints = _building(count)
    with tempfile.TemporaryDirectory() as folder:
        for viewpoint in viewpoints[:8]:  # both kinds of light are compiled
            make_view(job, "mapping", viewpoint, Path(folder))
        start_s = time.perf_counter()
        for viewpoint in viewpoints[8:]:
            make_view(job, "mapping", viewpoint, Path(folder))
        return (count - 8) / (time.perf_counter() - start_s)


def rebuilding_fps(frames: int = REBUILDS) -> float:
    """Stock pyrender as scripts use it: meshes kept, scene and renderer made for each view."""
    from cadloc.opengl import prepare_pyrender

    prepare_pyrender()
    model, _, viewpoints = _building()
    times = []
    for viewpoint in viewpoints[:frames]:
        start_s = time.perf_counter()
        view = _stock(model, [viewpoint])
        view()
        view.args[0].delete()
        times.append(time.perf_counter() - start_s)
    return 1 / float(np.median(times))


def memory_growth_mb(frames: int = MEMORY_FRAMES) -> float:
    """How much larger a process is after so many views than after the first 500; the sun moves now and then."""
    model, _, viewpoints = _building()
    renderer = process_renderer()
    settled_mb = 0.0
    for frame, viewpoint in zip(range(frames), cycle(viewpoints), strict=False):
        light = Light(sun_direction=(np.cos(frame // 50), np.sin(frame // 50), 0.7), shadows=bool(frame % 2))
        half = np.diag([0.5, 0.5, 1.0]) @ viewpoint.intrinsics
        seen = renderer.render(model, viewpoint.cad_from_cam, half, WIDTH_PX // 2, HEIGHT_PX // 2, light)
        assert seen.scene_coordinates.any()
        if frame == MEMORY_SETTLED:
            settled_mb = _resident_mb()
    return _resident_mb() - settled_mb


def alone_and_together(seconds: float = SECONDS_ALONE) -> tuple[float, float]:
    """Frames per second while the other processes wait, before and after, and while all of them draw."""
    model, _, viewpoints = _building()
    view = _seen(model, viewpoints, Light())
    _rate_for(view, 1.0)
    first, alone = _barrier.wait() == 0, 0.0
    _barrier.wait()
    alone += _rate_for(view, seconds / 2) / 2 if first else 0.0
    _barrier.wait()
    together = _rate_for(view, seconds)
    _barrier.wait()
    alone += _rate_for(view, seconds / 2) / 2 if first else 0.0
    _barrier.wait()
    return alone, together


def _cores() -> Measurement:
    cores = len(os.sched_getaffinity(0))
    rates = _elsewhere_all(alone_and_together, cores)
    alone, together = sum(rate for rate, _ in rates), sum(rate for _, rate in rates)
    return Measurement(
        "render cores",
        together,
        "fps",
        baseline=alone,
        what="one process, the others waiting",
        limit=cores * alone,
        limit_is=f"{cores} times one",
        target="near-linear",
    )


# --- what is measured --------------------------------------------------------------------------------------


def _building(count: int = VIEWS) -> tuple[CadModel, Job, list[Viewpoint]]:
    model = model_from_meshes(training_building(0, 0), "building")
    assert len(model.mesh.faces) == 17_155
    views = ViewsConfig(counts=CountsConfig(mapping=count, validation=1, query=1))
    site = Site(model, model.ground_height_m)
    viewpoints = list(plan_viewpoints(site, views)["mapping"])
    scene = SceneConfig(name="gate", built_in=True)  # a name; the model is the one above
    job = Job(scene, views, "synthetic", site, site, tuple(("mapping", each) for each in viewpoints), 0.002)
    return model, job, viewpoints


def _seen(model: CadModel, viewpoints: Sequence[Viewpoint], light: Light) -> Callable[[], object]:
    renderer, turns = process_renderer(), cycle(viewpoints)

    def view() -> object:
        at = next(turns)
        seen = renderer.render(model, at.cad_from_cam, at.intrinsics, WIDTH_PX, HEIGHT_PX, light)
        return seen.scene_coordinates  # made when asked for

    return view


def _drawn(model: CadModel, viewpoints: Sequence[Viewpoint]) -> Callable[[], None]:
    """The same shaders, framebuffers and model; what the shaders are told is computed beforehand."""
    renderer = process_renderer()
    assert isinstance(renderer, Renderer)
    renderer.render(model, viewpoints[0].cad_from_cam, viewpoints[0].intrinsics, WIDTH_PX, HEIGHT_PX, Light())
    from OpenGL import GL

    uploaded = renderer._uploaded(model)
    target = renderer._targets.get(WIDTH_PX, HEIGHT_PX, 0, positions=True)
    turns = cycle([renderer._uniforms(uploaded, at.cad_from_cam[:3, 3], _clip(at), Light()) for at in viewpoints])

    def draw() -> None:
        renderer._make_current()
        renderer._draw(uploaded, next(turns), target, WIDTH_PX, HEIGHT_PX)
        GL.glFinish()

    return draw


def _clip(at: Viewpoint) -> Any:
    return clip_from_eye(at.cad_from_cam, at.intrinsics, WIDTH_PX, HEIGHT_PX)


def _stock(model: CadModel, viewpoints: Sequence[Viewpoint]) -> partial[object]:
    """Stock pyrender, physically based as it comes; its one scene and renderer are kept, only the camera moves."""
    import pyrender

    scene = pyrender.Scene(bg_color=(0, 0, 0, 0), ambient_light=(0.4, 0.4, 0.4))
    for surface in model.surfaces:
        scene.add(pyrender.Mesh.from_trimesh(surface))
    scene.add(pyrender.DirectionalLight(color=(1, 1, 1), intensity=3.0))
    renderer = pyrender.OffscreenRenderer(WIDTH_PX, HEIGHT_PX)
    camera, turns = scene.add(_camera(viewpoints[0])), cycle(viewpoints)
    return partial(_stock_view, renderer, scene, camera, turns)


def _stock_view(renderer: Any, scene: Any, node: Any, turns: Iterator[Viewpoint]) -> object:
    at = next(turns)
    node.camera = _camera(at)
    scene.set_pose(node, at.cad_from_cam @ np.diag([1.0, -1.0, -1.0, 1.0]))
    return renderer.render(scene)


def _camera(at: Viewpoint) -> Any:
    import pyrender

    (fx, _, cx), (_, fy, cy), _ = at.intrinsics
    return pyrender.IntrinsicsCamera(fx, fy, cx, cy, znear=0.1, zfar=500.0)


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _rate_for(work: Callable[[], object], seconds: float) -> float:
    count, start_s = 0, time.perf_counter()
    while time.perf_counter() - start_s < seconds:
        work()
        count += 1
    return count / (time.perf_counter() - start_s)


# --- where -------------------------------------------------------------------------------------------------


def _elsewhere(work: Callable[[], Answer]) -> Answer:
    return _elsewhere_all(work, 1)[0]


def _elsewhere_all(work: Callable[[], Answer], processes: int) -> list[Answer]:
    """The answers of so many processes at once, which may wait for one another at the barrier."""
    before = dict(os.environ)
    os.environ.update(_AS_WORKERS)  # read once, when the drivers are loaded
    try:
        context = multiprocessing.get_context("spawn")
        with context.Pool(processes, _begin, (context.Barrier(processes),)) as pool:
            return [each.get() for each in [pool.apply_async(_work, (work,)) for _ in range(processes)]]
    finally:
        os.environ.clear()
        os.environ.update(before)


def _begin(barrier: Barrier) -> None:
    global _barrier
    _barrier = barrier


def _work(work: Callable[[], Answer]) -> Answer:
    _barrier.wait()  # each process takes one
    return work()
