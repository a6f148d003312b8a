"""Many runs of one config: every combination of some keys' values, and a table of how they compare.

    uld sweep --config=cgb:dataset=folder,k=10 --config.data_dir=PHOTOS --grid=cgb.bottleneck=fixed,adaptive \
        --grid=seed=0,1,2 --workdir=runs/guidance

A cell is one combination. It is just the run that `uld train` makes of it, in a folder of its own,
`WORKDIR/cgb.bottleneck=fixed,seed=0`, and so can be evaluated, resumed and predicted with by itself. After every cell
the table is written anew: `table.md`, `table.json` and `curves.png`, one row for each combination without `seed`, with
mean and spread over seeds; and where two keys beside `seed` are varied, both of them numbers, the heat map `grid.png`.
The same command goes on where it was stopped.
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
    """Train all cells that are not finished, one after the other, and write their table.

    Args:
      spec: `FILE_OR_NAME:arguments` of a config.
      grids: `KEY=VALUE,VALUE,...` each, see `grid.cells`.
      workdir: the sweep's folder, local or gs://.
      overrides: `KEY=VALUE` each, for keys of the config, the same in all cells.
      columns: columns of the table in place of the usual ones: names in metrics.json or metrics.jsonl.
      mesh: the devices; all of them by default.

    Raises:
      UserError: a grid or a cell's config that cannot be used, before any compute. A cell that fails later, such as by
        a loss that is not finite, is written down as failed and the others go on.
      stopping.Stopped: after SIGTERM, when the state of the cell under way is saved.
    """
    mesh = sharding.make_mesh() if mesh is None else mesh
    workdir, every = epath.Path(workdir), grid.cells(spec, grids, overrides)
    config_lib.check_weights_are_read(runner.check(every, workdir, mesh))
    todo = [cell for cell in every if not runner.finished(cell, workdir / cell.name)]
    write = lambda errors: table.write(spec, every, workdir, columns, errors)
    return runner.train(todo, workdir, mesh, write=write)
