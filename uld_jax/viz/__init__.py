"""Pictures: landmarks on images, contact sheets, heatmaps and plots.

One colour is one landmark everywhere: colour k of `palette` does not depend on how many there are. Pictures are Pillow
images, plots are matplotlib figures drawn without its global state; `save` writes either, to a local or gs:// path.
Missing landmarks (score 0, or NaN coordinates) are not drawn.

  style      colours, fonts and line styles
  pictures   overlays, contact sheets, grids, films and heatmaps; `png`, `save` and `load`
  plots      curves, bars, scatters and grids of numbers
"""

from uld_jax.viz.pictures import (
    compared_landmarks,
    compared_pictures,
    contact_sheet,
    draw_overlay,
    film,
    heat_overlay,
    heatmap_panel,
    label_overlay,
    labelled_grid,
    load,
    picture_grid,
    png,
    save,
    stacked,
)
from uld_jax.viz.plots import (
    accuracy_plot,
    bar_plot,
    bars_plot,
    ced_plot,
    grid_plot,
    grouped_bars_plot,
    label_count_plot,
    lines_plot,
    metrics_plot,
    scatter_plot,
    sweep_plot,
)
from uld_jax.viz.style import palette

__all__ = [
    "accuracy_plot",
    "bar_plot",
    "bars_plot",
    "ced_plot",
    "compared_landmarks",
    "compared_pictures",
    "contact_sheet",
    "draw_overlay",
    "film",
    "grid_plot",
    "grouped_bars_plot",
    "heat_overlay",
    "heatmap_panel",
    "label_count_plot",
    "label_overlay",
    "labelled_grid",
    "lines_plot",
    "load",
    "metrics_plot",
    "palette",
    "picture_grid",
    "png",
    "save",
    "scatter_plot",
    "stacked",
    "sweep_plot",
]
