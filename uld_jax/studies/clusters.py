"""Quality of the clusters of a finished run's descriptors: `uld clusters`.

    uld clusters --workdir=runs/cgb
    uld clusters --workdir=runs/duld --dataset=mafl --data_dir=prepared --split=test --most=10000 --clustering=landmark

The report is CGB's table 5 and figure 6 (left) for any stage with descriptors: the same rows, clustered in several ways
and grouped by the stage itself, by the landmark of each row (`landmark`: the Silhouette and Calinski-Harabasz of
Tourani et al., CVPR 2024). Descriptors are scaled to length 1. Each grouping is measured by these two scores, by the
consistency of the rows with their centroids, and by the agreement of the clusters with the landmarks; t-SNE draws it.
The curves of figure 7, the number of clusters and their quality over the run's rounds, come from its metrics.jsonl.

Calinski-Harabasz grows with the number of rows, so compare it at equal `rows`. The `protocol` of a record is an id of
its two scores, of the data, the way of clustering and the largest number of rows (`evaluation/protocols.py`).
"""

import logging
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from uld_jax import config as config_lib
from uld_jax import files, sharding, viz
from uld_jax.clustering import gcn_v, quality
from uld_jax.clustering.gcn_clusters import gcn_clusters, mean_directions
from uld_jax.clustering.kmeans import kmeans
from uld_jax.data import make_reader
from uld_jax.data.open import eval_batch, open_split
from uld_jax.engine import workdir as workdir_lib
from uld_jax.errors import UserError
from uld_jax.evaluation import protocols
from uld_jax.evaluation.protocol import spread
from uld_jax.evaluation.run import measured_data, report_folder
from uld_jax.method import Stage
from uld_jax.ops import keypoints

WAYS = ("kmeans", "gcn", "density", "landmark")
SLOTS = 1024
DRAWN = 2000  # rows of the t-SNE picture; the time grows with the square of this number
ROUNDS = [["clusters"], ["consistency"], ["silhouette"], ["calinski_harabasz"]]


class Descriptors(NamedTuple):
    """Descriptors of a stage on some images, on the host.

    Attributes:
      z: [R,D] float32, the descriptors.
      landmark: [R] int32, number of each row's landmark, -1 for none: the slot, for a detector with K channels; for
        keypoints in no order, the landmark that the stage predicts (and has not filled in) at the keypoint. None if
        unknown.
      data: name of the data set.
      images: number of images of the split.
    """

    z: np.ndarray
    landmark: np.ndarray | None
    data: str = ""
    images: int = 0


def observe(finished, mesh, *, split: str, most: int, dataset: str = "", data_dir: str = "") -> Descriptors:
    """Collect the descriptors of images spread evenly over a split, at most `most` rows.

    The split is that of the run's own data, or of others (`measured_data`). Raises UserError for a stage that has no
    descriptors.
    """
    if not _describes(type(finished.model.method)):
        raise UserError(
            f"the stage {finished.stage} gives landmarks without a descriptor of each, so that there is nothing to "
            f"cluster; {_stages_that_describe(finished.config)}"
        )
    source = open_split(finished.config, split, *measured_data(finished.config, dataset, data_dir))
    size = eval_batch(finished.config, mesh)
    reader = make_reader(source, mesh=mesh, batch_size=size, kind="stream")

    @jax.jit
    def found(state, frozen, payload):
        batch = reader.fetch({}, payload)
        seen = finished.model.method.describe(state, frozen, batch["image"])
        return seen.z, seen.mask & (batch["index"] < reader.rows)[:, None], seen.landmark

    slots = jax.eval_shape(found, finished.model.state, finished.model.frozen, next(iter(reader.ordered())))[0].shape[1]
    rows = spread(len(source), max(1, most // slots))
    parts = [sharding.to_host(found(finished.model.state, finished.model.frozen, p)) for p in reader.ordered(rows=rows)]
    z, mask, landmark = (np.concatenate(p) for p in zip(*parts, strict=True))
    mask &= np.isfinite(z).all(-1)
    if not mask.any():
        raise UserError(f"stage {finished.stage!r} found nothing in the {split} split; there is nothing to cluster")
    known = landmark[mask] if (landmark[mask] >= 0).any() else None
    return Descriptors(z[mask], known, source.spec.name, len(source))


def _describes(method: type) -> bool:
    return method.describe is not Stage.describe


def _stages_that_describe(config) -> str:
    """Name the stages of a run that have descriptors; if there are none, those of the configs that ship."""

    def found(config):
        return [name for name in config.stages if _describes(type(config_lib.stage(config, name).method))]

    if stages := found(config):
        return f"give another one with --stage, of {', '.join(stages)}"
    every = {name: found(config_lib.load(name)) for name in config_lib.shipped() if "/" not in name}
    told = (f"{', '.join(stages)} of --config={name}" for name, stages in every.items() if stages)
    return f"give a run that has one of the stages {'; '.join(told)}"


def cluster(z, way: str, *, clusters: int, neighbours: int, tau: float, params=None, seed: int = 0, landmark=None):
    """Cluster rows [R,D] by one of `WAYS`: labels [R] (-1: none), unit centroids [M,D], number of used clusters."""
    if way == "landmark":
        return landmark, mean_directions(z, landmark, int(landmark.max()) + 1), len(np.unique(landmark[landmark >= 0]))
    if way == "kmeans":
        found = kmeans(keypoints.l2_normalize(z), clusters, rng=jax.random.key(seed))
        return found.labels, mean_directions(z, found.labels, clusters), int((found.counts > 0).sum())
    found = gcn_clusters(z, params, k=neighbours, tau=tau, confidence=way, slots=SLOTS)
    if int(found.count) > SLOTS:
        logging.warning("%s: only the largest %d of %d clusters are measured", way, SLOTS, int(found.count))
    return found.labels, found.centroids, int(found.count)


def measure(rows: Descriptors, ways, **settings) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Measure each way of clustering; return a record for each, and {way: labels [R]}."""
    z, records, labels = jnp.asarray(rows.z), [], {}
    unit = keypoints.l2_normalize(z)
    for way in ways:
        found, centroids, count = cluster(z, way, landmark=rows.landmark, **settings)
        found = jnp.asarray(found)
        slots = len(centroids)
        cosines = jnp.einsum("nd,md->nm", unit, centroids, precision="highest")
        used = jnp.sum(centroids**2, 1) > 0
        best = jnp.max(jnp.where(used, cosines, -1), 1)
        record = {
            "clustering": way,
            "clusters": count,
            "rows": int((found >= 0).sum()),
            "silhouette": float(quality.silhouette(unit, found, clusters=slots)),
            "calinski_harabasz": float(quality.calinski_harabasz(unit, found, clusters=slots)),
            "consistency": float(jnp.mean(best, where=found >= 0)),
        }
        if rows.landmark is not None:
            truth = dict(
                truth=jnp.asarray(rows.landmark), clusters=slots, classes=int(rows.landmark.max(initial=0)) + 1
            )
            record["nmi_landmark"] = float(quality.nmi(found, **truth))
            record["purity_landmark"] = float(quality.purity(found, **truth))
        records.append(record)
        labels[way] = np.asarray(found)
    return records, labels


def embed(rows: Descriptors, seed: int = 0, most: int = DRAWN) -> tuple[np.ndarray, np.ndarray]:
    """Embed at most `most` rows by t-SNE with cosine distance: row numbers [R'] and positions [R',2]."""
    from sklearn.manifold import TSNE

    pick = spread(len(rows.z), most)
    unit = rows.z[pick] / np.maximum(np.linalg.norm(rows.z[pick], axis=1, keepdims=True), 1e-12)
    perplexity = min(30.0, max(1.0, (len(pick) - 1) / 3))
    return pick, TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(unit)


def table(records) -> str:
    """Format the records as a Markdown table."""
    names = list(records[0])
    lines = [names, ["---", *["---:"] * (len(names) - 1)]]
    lines += [[r[n] if isinstance(r[n], str | int) else f"{r[n]:.4g}" for n in names] for r in records]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def report(
    finished,
    mesh,
    *,
    split: str = "train",
    dataset: str = "",
    data_dir: str = "",
    ways=(),
    most: int = 8000,
    clusters: int = 80,
    neighbours: int = 80,
    tau: float = 0.8,
    params=None,
) -> tuple[list[dict[str, Any]], epath.Path]:
    """Cluster a finished stage's descriptors in several ways and write the measures and pictures.

    Writes `WORKDIR/clusters/<split>/<stage>/`: clusters.json, table.md, tsne.png, and rounds.png if the run had rounds;
    on other data to a folder of their name in place of `<split>`, as `uld evaluate`.

    Args:
      finished: finished stage, from `runs.load`.
      mesh: the devices.
      split: name of the split whose images are used.
      dataset, data_dir: other data than the run's own, as for `uld evaluate`.
      ways: names from `WAYS`; by default all that are possible for descriptors of this size.
      most: largest number of rows; 8000 is the number in one round of the published code.
      clusters: number of clusters of k-means.
      neighbours, tau: number of neighbours and least cosine of a link in the graph, see `gcn_clusters`.
      params: parameters of a GCN-V; those that ship with the library if None.

    Returns:
      The records, and the path of the folder.

    Raises:
      UserError: an unknown way, a stage without descriptors, or a network made for another D.
    """
    for way in ways:
        if way not in WAYS:
            raise UserError(f"--clustering={way} is unknown; use some of {', '.join(WAYS)}")
    rows = observe(finished, mesh, split=split, most=most, dataset=dataset, data_dir=data_dir)
    if "landmark" in ways and rows.landmark is None:
        raise UserError(
            f"--clustering=landmark: stage {finished.stage!r} predicts no landmark at its keypoints; leave it out"
        )
    if not ways:
        fits = rows.z.shape[1] == gcn_v.size(gcn_v.load_default() if params is None else params)
        fits = {"gcn": fits, "landmark": rows.landmark is not None}
        ways = [way for way in WAYS if fits.get(way, True)]
    settings = dict(clusters=clusters, neighbours=neighbours, tau=tau, params=params, seed=finished.config.seed)
    records, labels = measure(rows, ways, **settings)
    for each in records:
        each["protocol"] = _protocol(rows, each["clustering"], most, split, settings)
    at = report_folder(finished.workdir, split, dataset, data_dir).name
    folder = finished.workdir / "clusters" / at / finished.stage
    if jax.process_index() == 0:
        record = {"stage": finished.stage, "split": split, "rows": len(rows.z), "size": rows.z.shape[1]}
        workdir_lib.write_json(folder / "clusters.json", record | {"clusterings": records})
        files.write(folder / "table.md", table(records))
        pick, places = embed(rows, finished.config.seed)
        drawn = [r for r in records if r["clustering"] != "landmark"]
        titles = {f"{r['clustering']}: {r['clusters']} clusters": labels[r["clustering"]][pick] for r in drawn}
        known = {} if rows.landmark is None else {"landmark": rows.landmark[pick]}
        viz.save(viz.scatter_plot(places, known | titles), folder / "tsne.png")
        lines = _rounds(finished.workdir)
        if lines:
            viz.save(viz.metrics_plot(lines, panels=ROUNDS), folder / "rounds.png")
    return records, folder


def _protocol(rows: Descriptors, way: str, most: int, split: str, settings: dict[str, Any]) -> str:
    """The id of the scores of one way to cluster."""
    named = {"kmeans": f"_{settings['clusters']}", "landmark": ""}
    graph = f"_{settings['neighbours']}_{settings['tau']:g}"
    return protocols.plain(rows.data, f"{way}{named.get(way, graph)}_{most}", rows.images, rows.images, split)


def _rounds(workdir) -> list[dict[str, Any]]:
    """Read the lines of metrics.jsonl that measure clusters."""
    return [line for line in workdir_lib.read_lines(workdir / "metrics.jsonl") if "silhouette" in line]
