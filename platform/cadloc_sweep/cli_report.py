"""`cadloc-sweep report`: the arms of a sweep side by side, in one of several views and formats."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cadloc.contract import Fault, InputError
from cadloc_sweep.cli_options import ReportFormat, Sweep
from cadloc_sweep.report.progress_axis import ProgressAxis

if TYPE_CHECKING:
    from cadloc_sweep.report.results import SweepResults
    from cadloc_sweep.report.tables import Table


def report(
    directory: Sweep,
    format_: Annotated[ReportFormat, typer.Option("--format")] = ReportFormat.table,
    matrix: Annotated[Path | None, typer.Option(help="Draw trained on × tested on: a PNG or SVG file.")] = None,
    tuning: Annotated[bool, typer.Option("--tuning", help="Instead, what tuning did to the encoders.")] = False,
    compare: Annotated[
        str | None, typer.Option(metavar="METRIC", help="Instead, ratios of any metric of the trials, paired by seed.")
    ] = None,
    paired: Annotated[
        str | None, typer.Option(metavar="SET", help="Instead, ratios to the baseline over a query set's queries.")
    ] = None,
    paired_metric: Annotated[
        str | None,
        typer.Option(help="translation_error_m (unless given), rotation_error_deg or dcre_mean_pct."),
    ] = None,
    efficiency: Annotated[
        str | None,
        typer.Option(metavar="METRIC", help="Instead, the samples each arm needs for the baseline's final error."),
    ] = None,
    progression: Annotated[
        Path | None, typer.Option(help="Instead, draw validation losses over training: a PNG or SVG file.")
    ] = None,
    against: Annotated[
        ProgressAxis | None, typer.Option(help="The progression's axis.", show_default="iterations")
    ] = None,
    bars: Annotated[Path | None, typer.Option(help="Instead, draw arms by scene: a PNG or SVG file.")] = None,
    metric: Annotated[str | None, typer.Option(help="Of the bars.", show_default="the space's objective")] = None,
) -> None:
    """Compare the arms of a sweep: means over seeds with 95 % intervals, and differences from the baseline."""
    from cadloc_sweep.report.results import read_sweep

    texts = {"--tuning": tuning or None, "--compare": compare, "--paired": paired, "--efficiency": efficiency}
    figures = {"--progression": progression, "--bars": bars}
    _check_views({**texts, **figures})
    _check_figures(format_, figures)
    _check_owner("--against", against, "--progression", progression)
    _check_owner("--metric", metric, "--bars", bars)
    results, place = read_sweep(directory, warn), directory.resolve()
    if matrix is not None:
        _draw_matrix(results, place, matrix)
    if tuning:
        _print_tunings(results, place, format_)
    elif compare is not None:
        _print_compared(results, compare, format_)
    elif paired is not None or paired_metric is not None:
        _print_paired(results, place, paired, paired_metric, format_)
    elif efficiency is not None:
        _print_efficiency(results, efficiency, format_)
    elif progression is not None:
        _draw_progression(results, place, progression, against or ProgressAxis.iterations)
    elif bars is not None:
        _draw_bars(results, bars, metric)
    else:
        _print_arms(results, place, format_)


def _check_views(views: Mapping[str, object]) -> None:
    """Raises InputError where two views are asked for at once: one would be dropped without a word."""
    asked = [option for option, value in views.items() if value is not None]
    if len(asked) > 1:
        raise InputError(Fault("command line", asked[1], f"{' and '.join(asked)} together", "one of them at a time"))


def _check_figures(format_: ReportFormat, figures: Mapping[str, Path | None]) -> None:
    """Raises InputError for a format of text where a figure is drawn instead, and for a figure's unknown ending."""
    from cadloc_sweep.report.figure_files import check_ending

    for option, path in figures.items():
        if path is not None:
            check_ending(path)
            if format_ is not ReportFormat.table:
                raise InputError(Fault("command line", "--format", f"{format_} with {option}", "one of the two"))


def _check_owner(option: str, value: object, owner: str, owned: object) -> None:
    """Raises InputError for an option whose view is not asked for: it would do nothing."""
    if value is not None and owned is None:
        raise InputError(Fault("command line", option, f"{value} without {owner}", f"{owner} FILE with it"))


def warn(text: str) -> None:
    """Says on standard error what does not end the command."""
    print(f"warning: {text}", file=sys.stderr)


def _print_arms(results: SweepResults, directory: Path, format_: ReportFormat) -> None:
    from cadloc_sweep.overviews import output
    from cadloc_sweep.report import tables

    if format_ is ReportFormat.table:
        console = output()
        console.print(tables.as_rich(results, console.width))
        return
    texts = {ReportFormat.json: tables.as_json, ReportFormat.csv: tables.as_csv, ReportFormat.md: tables.as_markdown}
    print(texts[format_](results).rstrip("\n"))
    if format_ is ReportFormat.md:
        _print_matrix(results, directory)


def _print_matrix(results: SweepResults, directory: Path) -> None:
    from cadloc_sweep.report.domain_matrix import count_queries, has_matrix, matrix_markdown
    from cadloc_sweep.trials import SweepPaths

    if has_matrix(results):
        counts = count_queries(SweepPaths(directory.parent, directory.name), results)
        print("\n" + matrix_markdown(results, queries=counts).rstrip("\n"))


def _print_paired(
    results: SweepResults, directory: Path, test_set: str | None, metric: str | None, format_: ReportFormat
) -> None:
    from cadloc_sweep.overviews import output
    from cadloc_sweep.report import paired_text
    from cadloc_sweep.report.paired import compare
    from cadloc_sweep.trials import SweepPaths

    if test_set is None:
        raise InputError(Fault(str(directory), "--paired-metric", f"{metric} without --paired", "--paired SET with it"))
    paths = SweepPaths(directory.parent, directory.name)
    compared = compare(results, paths, test_set, metric or "translation_error_m", warn)
    if format_ is ReportFormat.table:
        output().print(paired_text.as_rich(compared))
    else:
        print(paired_text.TEXTS[format_](compared).rstrip("\n"))


def _print_tunings(results: SweepResults, directory: Path, format_: ReportFormat) -> None:
    from cadloc_sweep.report import tunings
    from cadloc_sweep.trials import SweepPaths

    found = tunings.read_tunings(results, SweepPaths(directory.parent, directory.name))
    _print_view(tunings.tables(results.space, found), tunings.footnote(), tunings.as_json(found), format_, "--tuning")


def _print_compared(results: SweepResults, metric: str, format_: ReportFormat) -> None:
    from cadloc_sweep.report import compared

    arms = compared.compare_metric(results, metric)
    tables = compared.tables(results, metric, arms)
    _print_view(tables, compared.footnote(arms), compared.as_json(metric, arms), format_, "--compare")


def _print_efficiency(results: SweepResults, metric: str, format_: ReportFormat) -> None:
    from cadloc_sweep.report import efficiency_text
    from cadloc_sweep.report.efficiency import read_efficiency

    scenes = read_efficiency(results, metric, warn)
    tables, footnote = efficiency_text.tables(results.space, metric, scenes), efficiency_text.footnote(scenes)
    _print_view(tables, footnote, efficiency_text.as_json(metric, scenes), format_, "--efficiency")


def _print_view(tables: Sequence[Table], footnote: str, as_json: str, format_: ReportFormat, option: str) -> None:
    from cadloc_sweep.overviews import output
    from cadloc_sweep.report.tables import compact_markdown, compact_rich

    match format_:
        case ReportFormat.json:
            print(as_json)
        case ReportFormat.csv:
            raise InputError(Fault("command line", "--format", f"csv with {option}", "table, md or json"))
        case ReportFormat.md:
            print("\n\n".join([*(compact_markdown(table) for table in tables), footnote]))
        case ReportFormat.table:
            output().print(*(compact_rich(table) for table in tables), footnote, sep="\n")


def _draw_matrix(results: SweepResults, directory: Path, path: Path) -> None:
    from cadloc_sweep.report.domain_matrix import count_queries
    from cadloc_sweep.report.domain_matrix_figure import draw_matrix
    from cadloc_sweep.trials import SweepPaths

    draw_matrix(results, path, queries=count_queries(SweepPaths(directory.parent, directory.name), results))


def _draw_progression(results: SweepResults, directory: Path, path: Path, axis: ProgressAxis) -> None:
    from cadloc_sweep.report.arm_styles import arm_styles
    from cadloc_sweep.report.progression import read_progression
    from cadloc_sweep.report.progression_figure import draw_progression
    from cadloc_sweep.trials import SweepPaths

    progression = read_progression(results, SweepPaths(directory.parent, directory.name), axis, warn)
    draw_progression(progression, arm_styles(results), _metric_scenes(results), path)


def _draw_bars(results: SweepResults, path: Path, metric: str | None) -> None:
    from cadloc_sweep.report.arm_styles import arm_styles
    from cadloc_sweep.report.bars import read_bars
    from cadloc_sweep.report.bars_figure import draw_bars

    draw_bars(read_bars(results, metric), arm_styles(results), _metric_scenes(results), path)


def _metric_scenes(results: SweepResults) -> list[str]:
    """Scenes whose metres are metres on the ground."""
    return list(dict.fromkeys(arm.scene for arm in results.arms if arm.metric))
