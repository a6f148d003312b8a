"""How well the descriptors of a finished run fall into clusters: `uld clusters`.

    uld clusters --workdir=runs/cgb

CGB's table 5 and figure 6 (left) for any stage that has descriptors: the same rows clustered in several ways, and as
the stage itself groups them, by the landmark that each is (`landmark`: the Silhouette and Calinski-Harabasz of Tourani
et al., CVPR 2024). Each grouping of the descriptors, scaled to length 1, is measured by both, by how consistent the
rows are with their centroids, and by how well the clusters agree with the landmarks; and drawn by t-SNE. Figure 7's
curves, how the number of clusters and their quality changed over the run's rounds, come from its metrics.jsonl.

Calinski-Harabasz grows with the number of rows: compare it at equal `rows`.
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
from uld_jax.evaluation.protocol import spread
from uld_jax.method import Stage
from uld_jax.ops import keypoints

WAYS = ("kmeans", "gcn", "density", "landmark")
SLOTS = 1024
DRAWN = 2000  # rows of the t-SNE picture, whose time grows with their square
ROUNDS = [["clusters"], ["consistency"], ["silhouette"], ["calinski_harabasz"]]


class Descriptors(NamedTuple):
    """What a stage observes on some images, on the host.

    Attributes:
      z: [R,D] float32.
      landmark: [R] int32, which landmark a row is, -1 for none: of a detector with K channels its slot; where slots are
        keypoints in no order, the landmark that the stage predicts (and has not filled in) at the keypoint. None if
        unknown.
    """

    z: np.ndarray
    landmark: np.ndarray | None


def observe(finished, mesh, *, split: str, most: int) -> Descriptors:
    """The descriptors of images spread evenly over a split, at most `most` rows.

    Raises UserError for a stage that has no descriptors.
    """
    if not _describes(finished.method):
        built = {name: config_lib.stage(finished.config, name).method for name in finished.config.stages}
        stages = [name for name, method in built.items() if _describes(method)]
        other = f"give another one with --stage: {', '.join(stages)}" if stages else "give a run of another method"
        raise UserError(f"stage {finished.stage!r} has no descriptors to cluster; {other}")
    source = open_split(finished.config, split)
    size = eval_batch(finished.config, mesh)
    reader = make_reader(source, mesh=mesh, batch_size=size, kind="stream")

    @jax.jit
    def found(state, frozen, payload):
        batch = reader.fetch({}, payload)
        seen = finished.method.describe(state, frozen, batch["image"])
        return seen.z, seen.mask & (batch["index"] < reader.rows)[:, None], seen.landmark

    slots = jax.eval_shape(found, finished.state, finished.frozen, next(iter(reader.ordered())))[0].shape[1]
    rows = spread(len(source), max(1, most // slots))
    parts = [sharding.to_host(found(finished.state, finished.frozen, p)) for p in reader.ordered(rows=rows)]
    z, mask, landmark = (np.concatenate(p) for p in zip(*parts, strict=True))
    mask &= np.isfinite(z).all(-1)
    if not mask.any():
        raise UserError(f"stage {finished.stage!r} found nothing in the {split} split; there is nothing to cluster")
    return Descriptors(z[mask], landmark[mask] if (landmark[mask] >= 0).any() else None)


def _describes(method) -> bool:
    return type(method).describe is not Stage.describe


def cluster(z, way: str, *, clusters: int, neighbours: int, tau: float, params=None, seed: int = 0, landmark=None):
    """Rows [R,D] by one of `WAYS`: labels [R] (-1: in none), unit centroids [M,D], and how many of them are used."""
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
    """A record for each way of clustering, and its labels by name."""
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
    """t-SNE of at most `most` rows by cosine distance: which rows [R'], and their places [R',2]."""
    from sklearn.manifold import TSNE

    pick = spread(len(rows.z), most)
    unit = rows.z[pick] / np.maximum(np.linalg.norm(rows.z[pick], axis=1, keepdims=True), 1e-12)
    perplexity = min(30.0, max(1.0, (len(pick) - 1) / 3))
    return pick, TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(unit)


def table(records) -> str:
    """The records as a Markdown table."""
    names = list(records[0])
    lines = [names, ["---", *["---:"] * (len(names) - 1)]]
    lines += [[r[n] if isinstance(r[n], str | int) else f"{r[n]:.4g}" for n in names] for r in records]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def report(
    finished,
    mesh,
    *,
    split: str = "train",
    ways=(),
    most: int = 8000,
    clusters: int = 80,
    neighbours: int = 80,
    tau: float = 0.8,
    params=None,
) -> tuple[list[dict[str, Any]], epath.Path]:
    """Clusters a finished stage's descriptors in several ways and writes what came of it.

    Writes `WORKDIR/clusters/<split>/<stage>/`: clusters.json, table.md, tsne.png, and rounds.png if the run had rounds.

    Args:
      finished: of `runs.load`.
      mesh: the devices.
      split: whose images.
      ways: of `WAYS`; all that can be had for descriptors of this size by default.
      most: rows at most; 8000 are those of one round of the published code.
      clusters: of k-means.
      neighbours, tau: of the graph, see `gcn_clusters`.
      params: of a GCN-V; the one that ships with the library if None.

    Returns:
      The records, and the folder.

    Raises:
      UserError: an unknown way, a stage without descriptors, or a network made for another D.
    """
    for way in ways:
        if way not in WAYS:
            raise UserError(f"--clustering={way} is unknown; use some of {', '.join(WAYS)}")
    rows = observe(finished, mesh, split=split, most=most)
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
    folder = finished.workdir / "clusters" / split / finished.stage
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


def _rounds(workdir) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl that tell of clusters."""
    return [line for line in workdir_lib.read_lines(workdir / "metrics.jsonl") if "silhouette" in line]
