"""Sweep of one config over every combination of some keys' values, with a table of the results: `uld sweep`.

    uld sweep --config=cgb:dataset=folder,k=10 --config.data_dir=PHOTOS --grid=cgb.bottleneck=fixed,adaptive \
        --grid=seed=0,1,2 --workdir=runs/guidance

A cell is one combination. Its run is the same as that of `uld train`, in its own folder,
`WORKDIR/cgb.bottleneck=fixed,seed=0`, so the run can be evaluated, resumed and used for prediction by itself. After
every cell the table is rewritten: `table.md`, `table.json` and `curves.png`, one row for each combination without
`seed`, with mean and spread over seeds. If exactly two keys beside `seed` are varied, both with numbers, there is also
the heat map `grid.png`. The same command resumes a stopped sweep.
"""

from collections.abc import Sequence

from etils import epath

from uld_jax import config as config_lib
from uld_jax import sharding
from uld_jax.studies import grid, runner, table


def run(
    spec: str,
    grids: Sequence[str],
    workdir,
    *,
    overrides: Sequence[str] = (),
    columns: Sequence[str] = (),
    mesh=None,
) -> table.Table:
    """Train all unfinished cells, one after the other, and write their table.

    Args:
      spec: `FILE_OR_NAME:arguments` of a config.
      grids: `KEY=VALUE,VALUE,...` each, see `grid.cells`.
      workdir: folder of the sweep, local or gs://.
      overrides: `KEY=VALUE` each, for keys of the config, the same in all cells.
      columns: columns of the table in place of the default ones: names in metrics.json or metrics.jsonl.
      mesh: the devices; all of them by default.

    Raises:
      UserError: a grid or a cell's config that cannot be used, before any compute. A cell that fails later, for example
        by a loss that is not finite, is recorded as failed and the others continue.
      stopping.Stopped: SIGTERM came, and the state of the current cell is saved.
    """
    mesh = sharding.make_mesh() if mesh is None else mesh
    workdir, every = epath.Path(workdir), grid.cells(spec, grids, overrides)
    config_lib.check_weights_are_read(runner.check(every, workdir, mesh))
    todo = [cell for cell in every if not runner.finished(cell, workdir / cell.name)]
    write = lambda errors: table.write(spec, every, workdir, columns, errors)
    return runner.train(todo, workdir, mesh, write=write)
