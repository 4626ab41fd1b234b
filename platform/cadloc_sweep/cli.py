"""The command line: about ten lines per command, heavy imports inside them, errors as exit codes."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated

import typer

from cadloc.contract import CadlocError
from cadloc_sweep.cli_encoder import encoder_app
from cadloc_sweep.cli_map import map_app
from cadloc_sweep.cli_options import (
    SWEEPS,
    Address,
    AsJson,
    Cpus,
    ExecutorChoice,
    Gpus,
    Out,
    Settings,
    Space,
    Store,
    Sweep,
    TrackingUri,
    Where,
)
from cadloc_sweep.cli_report import report, warn
from cadloc_sweep.cli_scene import scene_app
from cadloc_sweep.failures import ExitCode, exit_code_of

if TYPE_CHECKING:
    from cadloc_sweep.executors import StageEvent

app = typer.Typer(name="cadloc-sweep", add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
cad_app = typer.Typer(no_args_is_help=True, help="Look at CAD files.")
store_app = typer.Typer(no_args_is_help=True, help="Look after stored stages.")
_GROUPS = {"cad": cad_app, "encoder": encoder_app, "map": map_app, "store": store_app, "scene": scene_app}
for _name, _group in _GROUPS.items():
    app.add_typer(_group, name=_name)


@app.command()
def run(
    space: Space,
    out: Out = SWEEPS,
    store: Store = None,
    executor: Where = ExecutorChoice.ray,
    address: Address = "local",
    cpus: Cpus = None,
    gpus: Gpus = None,
    settings: Settings = None,
    tracking_uri: TrackingUri = None,
    mlflow: Annotated[bool, typer.Option(help="Record runs in MLflow.")] = True,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run failed trials again.")] = False,
) -> int:
    """Run what is missing of a space; running it again finishes what is missing then."""
    from cadloc_sweep.overviews import output
    from cadloc_sweep.running import Place, Tracking, run_space

    place = Place(executor.value, address, cpus, gpus)
    tracking = Tracking(mlflow, tracking_uri)
    return run_space(space, settings or (), out, store, place, tracking, retry_failed, output())


@app.command()
def plan(
    space: Space, out: Out = SWEEPS, store: Store = None, settings: Settings = None, as_json: AsJson = False
) -> None:
    """Show a space's trials, the stages they share, and what the next run costs."""
    from cadloc_sweep.costs import cost_of
    from cadloc_sweep.overviews import output, plan_overview
    from cadloc_sweep.plan import make_plan
    from cadloc_sweep.spaces import load_space
    from cadloc_sweep.stages import StageStore
    from cadloc_sweep.trials import SweepPaths

    made = make_plan(load_space(space, settings or ()))
    paths = SweepPaths(out, made.space_name)
    if as_json:
        print(json.dumps(made.to_json(), indent=1))
    else:
        output().print(plan_overview(made, cost_of(made, paths, StageStore(store or paths.store))))


@app.command()
def check(space: Space, settings: Settings = None) -> None:
    """List every fault of a space, its scene files and its CAD models."""
    from cadloc_sweep.plan import make_plan
    from cadloc_sweep.scene_files import check_models
    from cadloc_sweep.spaces import load_space

    loaded = load_space(space, settings or ())
    made = make_plan(loaded)
    for warning in [*made.warnings, *check_models(loaded.scenes)]:
        print(f"warning: {warning}")
    print(f"{loaded.name}: no faults; {len(loaded.scenes)} scenes, {len(loaded.arms)} arms, {len(made.trials)} trials")


@app.command()
def status(directory: Sweep, as_json: AsJson = False) -> None:
    """Show how far a sweep is, trial by trial."""
    from cadloc_sweep.overviews import output, status_overview, status_row
    from cadloc_sweep.report.results import read_sweep
    from cadloc_sweep.trials import SweepPaths

    results = read_sweep(directory, warn)
    paths = SweepPaths(directory.resolve().parent, directory.resolve().name)
    if as_json:
        rows = [status_row(outcome, results.objective, paths) for outcome in results.outcomes]
        print(json.dumps({"space": results.space, "counts": dict(results.counts), "trials": rows}, indent=1))
    else:
        output().print(status_overview(results, paths))


app.command()(report)


@app.command()
def ui(
    out: Out = SWEEPS,
    tracking_uri: TrackingUri = None,
    host: Annotated[str, typer.Option(help="Interface to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 5000,
) -> None:
    """Show the runs in MLflow's user interface, until Ctrl-C."""
    from cadloc_sweep.user_interface import kept_store_uri, serve

    serve(tracking_uri or kept_store_uri(out), out / "mlartifacts", host, port, lambda text: print(text, flush=True))


@app.command()
def localize(
    image: Annotated[Path, typer.Argument(help="A photograph.")],
    map_: Annotated[Path, typer.Option("--map", help="A trial's folder: OUT/SPACE/trials/ID.")],
    focal_px: Annotated[float | None, typer.Option(min=1.0, help="Focal length. [default: from EXIF]")] = None,
    intrinsics: Annotated[Path | None, typer.Option(help="Text file with the 3×3 matrix.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> int:
    """Print the pose of the camera that took a photograph, as JSON; exit code 3 when the map does not explain it."""
    from cadloc_sweep.image_queries import locate

    found = locate(image, map_, focal_px, intrinsics, seed)
    print(json.dumps(found, indent=1))
    return ExitCode.FINISHED if found["cad_from_cam"] is not None else ExitCode.TRIALS_FAILED


@app.command()
def render(
    scene: Annotated[str, typer.Argument(help="A built-in scene, or a scene file.")],
    to: Annotated[Path, typer.Option(help="New folder for the dataset (ACE layout).")],
    source: Annotated[
        str, typer.Option(help="synthetic, photo, gt_poses, real, or one of the scene's query sets.")
    ] = "synthetic",
    preset: Annotated[str, typer.Option(help="Whose size and number of views.")] = "quick",
    views: Annotated[int | None, typer.Option(help="Another number of mapping views.", show_default=False)] = None,
    sheet: Annotated[Path | None, typer.Option(help="Also write a contact sheet, PNG or JPEG.")] = None,
    executor: Where = ExecutorChoice.inline,
    cpus: Cpus = None,
    settings: Settings = None,
) -> None:
    """Render a scene's views into a dataset of your own."""
    from cadloc_sweep.running import Place
    from cadloc_sweep.scene_files import load_scene
    from cadloc_sweep.scene_views import check_sheet, contact_sheet, render_views, views_config

    if sheet is not None:
        check_sheet(sheet, to)
    made = Place(executor.value, cpus=cpus).make_executor()
    try:
        render_views(load_scene(scene, settings or ()), views_config(preset, views), source, to, made, _tell_chunk)
    finally:
        made.close()
    if sheet is not None:
        print(f"{contact_sheet(to, sheet)} views on {sheet}")


@cad_app.command("inspect")
def cad_inspect(
    path: Annotated[Path, typer.Argument(help="glb, gltf, obj, ply, stl, off, 3mf or dae.")],
    units: Annotated[str | None, typer.Option(help="m, cm, mm, in, ft, or metres per unit.")] = None,
    up: Annotated[str, typer.Option(help="The file's axis that points up: x, y or z.")] = "z",
    as_json: AsJson = False,
) -> None:
    """Print what a CAD file holds and what is doubtful about it."""
    from cadloc_sweep.cad_report import report_cad, report_lines

    found = report_cad(path, units, up)
    print(json.dumps(found, indent=1) if as_json else "\n".join(report_lines(found)))


@store_app.command("ls")
def store_ls(out: Out = SWEEPS, store: Store = None) -> None:
    """List the stored stages."""
    from cadloc_sweep.overviews import output, store_overview
    from cadloc_sweep.stages import StageStore

    opened = StageStore(store or out / ".store")
    output().print(store_overview(opened.entries(), opened.root))


@store_app.command("verify")
def store_verify(out: Out = SWEEPS, store: Store = None) -> int:
    """Read every stored file and compare it with its digest; exit code 6 when one differs."""
    from cadloc_sweep.stages import StageStore

    opened = StageStore(store or out / ".store")
    faults = opened.verify()
    for directory, fault in faults.items():
        print(f"{directory}: {fault}")
    remedy = "; a run that needs one builds it again" if faults else ""
    print(f"{len(opened.entries())} stages, {len(faults)} damaged{remedy}")
    return ExitCode.STATE_CORRUPT if faults else ExitCode.FINISHED


@store_app.command("prune")
def store_prune(
    out: Out = SWEEPS,
    store: Store = None,
    older_than_days: Annotated[float, typer.Option(min=0.0, help="Last used longer ago than that.")] = 0.0,
    all_: Annotated[bool, typer.Option("--all", help="Also what the sweeps in OUT use.")] = False,
) -> None:
    """Remove stages that no sweep in OUT uses."""
    from cadloc_sweep.stages import StageStore, keys_in_use

    opened = StageStore(store or out / ".store")
    gone = opened.prune(() if all_ else keys_in_use(out), older_than_days * 86400)
    print(f"removed {len(gone)} stages, {sum(entry.bytes for entry in gone) / 1e6:.1f} MB")


def main() -> None:
    """Entry point of `cadloc-sweep`."""
    sys.excepthook = _unexpected
    sys.path.append(os.getcwd())  # a space may name a trainable of the user's own
    sys.exit(run_command(sys.argv[1:]))


def run_command(arguments: Sequence[str]) -> int:
    """Runs one command line; returns its exit code. What nobody foresaw goes through."""
    try:
        return int(typer.main.get_command(app)(list(arguments), prog_name="cadloc-sweep", standalone_mode=False) or 0)
    except typer.TyperException as error:
        error.show()  # type: ignore[attr-defined]  # all that its parser raises have it
        return ExitCode.BAD_INPUT
    except CadlocError as error:
        print(error, file=sys.stderr)
        return exit_code_of(error)
    except (typer.Abort, KeyboardInterrupt):
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return ExitCode.INTERRUPTED


def _unexpected(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """One line instead of a traceback, which goes to a file; the interpreter then ends with code 1."""
    handle, path = tempfile.mkstemp(prefix="cadloc-sweep-", suffix=".txt")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        traceback.print_exception(kind, error, trace, file=file)
    print(f"internal error: {kind.__name__}: {error}; the traceback is in {path}", file=sys.stderr)


def _tell_chunk(event: StageEvent) -> None:
    if event.kind == "chunk":
        print(f"{event.done}/{event.total} chunks", file=sys.stderr)
