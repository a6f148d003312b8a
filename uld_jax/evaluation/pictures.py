"""Contact sheets of the images of an evaluation, and films of a stage's own pictures."""

import numpy as np
from etils import epath

from uld_jax import viz
from uld_jax.data import Source
from uld_jax.evaluation.protocol import spread
from uld_jax.evaluation.report import Report

SHEET = 40  # images on a contact sheet
POSED = 16  # images shown of a pose cluster


def contact_sheet(source: Source, report: Report, count: int = SHEET):
    """A sheet of images with their landmarks, spread evenly over those of a source that `measure` saw."""
    shown = spread(len(report.rows), count)
    return viz.contact_sheet(source.images(report.rows[shown]), report.xy[shown], report.score[shown])


def pose_sheet(source: Source, report: Report, count: int = POSED):
    """A sheet of up to `count` images of each pose cluster that `measure` saw; None without clusters."""
    if report.pose is None:
        return None
    yaw, sheets = report.pose_clusters.yaw, []
    filled = [q for q, size in enumerate(report.pose_clusters.sizes) if size]
    for q in filled:
        member = np.flatnonzero(report.pose == q)
        title = f"pose {q}: {len(member)} images"
        if yaw and yaw.yaw_range[q]:
            mean, deviation = yaw.yaw_mean[q], yaw.yaw_std[q]
            title += f", yaw {mean:.0f} ± {deviation:.0f} degrees, most in {yaw.yaw_range[q]}"
        shown = member[spread(len(member), count)]
        given = source.images(report.rows[shown]), report.xy[shown], report.score[shown]
        sheets.append(viz.contact_sheet(*given, cell=96, title=title, legend=q == filled[-1]))
    return viz.stacked(sheets) if sheets else None


def film_over_steps(folder: epath.Path, ending: str) -> None:
    """Make a film of a stage's pictures of one photo over the steps: the first rows, under one another."""
    shots = sorted(p for p in folder.iterdir() if p.name.endswith(ending) and p.name[:8].isdigit())
    viz.save(viz.film({str(int(p.name[:8])): viz.load(p) for p in shots}), folder / f"over_steps{ending}")
