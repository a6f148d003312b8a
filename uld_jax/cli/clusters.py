"""`uld clusters`: measures how well a run's descriptors form clusters."""

from absl.flags import FlagValues

from uld_jax.cli import shared
from uld_jax.cli.flags import Flags
from uld_jax.errors import UserError

USAGE = """--workdir=RUN [--stage=NAME] [--split=train] [--clustering=kmeans,gcn,density,landmark]
[--dataset=NAME --data_dir=DIR]"""


def define(flags: Flags) -> None:
    """Add the flags of `uld clusters`."""
    flags.workdir()
    flags.stage()
    flags.text("split", "train", "Split whose images' descriptors are clustered.")
    flags.text("dataset", "", "Another data set than the run's own.")
    flags.path("data_dir", "", "Folder of the data, if it is not the run's.")
    meaning = "Ways to cluster: kmeans, gcn, density, landmark (the stage's own); by default all that fit."
    flags.words("clustering", meaning)
    flags.number("most", 8000, "Largest number of descriptors.")
    flags.number("clusters", 80, "Number of clusters of k-means.")
    flags.number("neighbours", 80, "Number of neighbours of a descriptor in the graph.")
    flags.real("tau", 0.8, "Cosine above which two descriptors are linked.")
    flags.text("gcn_v", "", "Folder of a converted or trained GCN-V; by default the one that ships.")


def run(args: FlagValues) -> int:
    """Cluster in each way, write the report and print its table."""
    from uld_jax import sharding, weights
    from uld_jax.engine import runs
    from uld_jax.studies import clusters as clusters_study

    if args.gcn_v and args.clustering and "gcn" not in args.clustering:
        what = f"--gcn_v={args.gcn_v} is not read by --clustering={','.join(args.clustering)}"
        raise UserError(f"{what}; add gcn to it")
    mesh = sharding.make_mesh()
    params = weights.load(args.gcn_v, "gcn_v") if args.gcn_v else None
    records, folder = clusters_study.report(
        runs.load(shared.stage_of(args), mesh),
        mesh,
        split=args.split,
        dataset=args.dataset,
        data_dir=args.data_dir,
        ways=args.clustering,
        most=args.most,
        clusters=args.clusters,
        neighbours=args.neighbours,
        tau=args.tau,
        params=params,
    )
    if shared.first_process():
        print(clusters_study.table(records))
        print(f"written to {folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    return shared.OK


COMMAND = shared.Command(USAGE, define, run)
