"""Comparison of a run's initial and learned descriptors on the same images: numbers and t-SNE (figure 2a)."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from uld_jax import files, sharding, viz
from uld_jax.bank import UNKNOWN
from uld_jax.clustering import quality
from uld_jax.config import Config
from uld_jax.data import Source, make_reader
from uld_jax.data.open import eval_batch, open_split
from uld_jax.data.specs import labelled
from uld_jax.engine import runs
from uld_jax.engine import workdir as workdir_lib
from uld_jax.errors import UserError
from uld_jax.evaluation import landmark_regression as regression
from uld_jax.evaluation.protocol import Protocol, spread
from uld_jax.method import Model
from uld_jax.ops import keypoints
from uld_jax.studies import clusters as clusters_study
from uld_jax.studies.table import Table

IMAGES, ROWS = 200, 4000  # largest numbers of images and descriptors that are compared


def compare(where: str, stages: Sequence[str], workdir, mesh) -> Table:
    """Compare the descriptors of two stages on the same images; write `figure.json`, `figure.md` and `figure.png`.

    Args:
      where: folder of a finished run.
      stages: names of the stages with the initial and the learned descriptors.
      workdir: folder to write to.
      mesh: the devices.

    Raises:
      UserError: a stage that the run lacks, or one that finds nothing on these images.
    """
    records, places, groups = [], {}, {}
    for stage, title in zip(stages, ("initial", "learned"), strict=True):
        run = runs.load(f"{where}:{stage}", mesh)
        source = open_split(run.config, "train")
        if "test" in source.spec.splits:
            source = open_split(run.config, "test")
        rows = spread(len(source), IMAGES)
        seen = look(run.config, run.model, mesh, source, rows, describe=True)
        mask = seen.mask & np.isfinite(seen.descriptors).all(-1)
        if mask.sum() < 2:
            raise UserError(f"stage {stage!r} of {where} finds nothing on these images; there is nothing to compare")
        pick = spread(int(mask.sum()), ROWS)
        z, landmark = seen.descriptors[mask][pick], None
        if len(labelled(source)):
            radius = Protocol.of(run.config).match_radius
            near = nearest(seen.points, mask, _visible(source)[rows], lengths(source)[rows] * radius)
            landmark = near[mask][pick]
        record, clusters = _quality(z, landmark, run.config.keypoints.clusters, run.config.seed)
        records.append({"descriptors": title, "stage": stage, "rows": len(z)} | record)
        shown = clusters if landmark is None else landmark
        drawn, places[title] = clusters_study.embed(clusters_study.Descriptors(z, shown), run.config.seed)
        groups[title] = shown[drawn]
    colour = "clusters (k-means)" if not len(labelled(source)) else "annotated landmarks; grey: none near"
    caption = (
        f"Descriptors of {len(rows)} images, clustered by k-means alike. `silhouette`: of these clusters; "
        "`silhouette_landmark`: of those near an annotated landmark, grouped by it; `nmi`: of clusters and landmarks. "
        f"Colours in figure.png: {colour}."
    )
    record = {"figure": "2a", "landmarks": None, "run": where, "rows": records, "columns": list(records[0])}
    table = Table(record, f"{clusters_study.table(records)}\n{caption}\n", [])
    if jax.process_index() == 0:
        workdir_lib.write_json(workdir / "figure.json", record)
        files.write(workdir / "figure.md", table.markdown)
        titles = {title: f"{title}: {r['rows']} descriptors" for title, r in zip(places, records, strict=True)}
        plot = viz.scatter_plot({titles[t]: places[t] for t in places}, {titles[t]: groups[t] for t in places})
        viz.save(plot, workdir / "figure.png")
    return table


def _visible(source: Source) -> np.ndarray:
    """Return the annotated points [N,L,2], NaN where a point is hidden."""
    return source.landmarks if source.visible is None else np.where(source.visible[..., None], source.landmarks, np.nan)


def nearest(points, mask, truth, radius) -> np.ndarray:
    """Find the annotated point nearest to each keypoint, [N,P] int32; -1 where none is within the radius.

    Args:
      points: [N,P,2] keypoints.
      mask: [N,P] bool, True for keypoints that exist.
      truth: [N,L,2] annotated points in the same pixels, NaN where there is none.
      radius: [N] largest distance, inclusive, in the same pixels.

    >>> nearest(np.zeros((1, 2, 2)), np.array([[True, False]]), np.array([[[3.0, 4], [0, 1]]]), np.array([5])).tolist()
    [[1, -1]]
    """
    distance = np.linalg.norm(points[:, :, None] - truth[:, None], axis=-1)
    distance = np.where(np.isfinite(distance) & mask[..., None], distance, np.inf)
    near = distance.min(-1) <= np.asarray(radius)[:, None]
    return np.where(near, distance.argmin(-1), -1).astype(np.int32)


def _quality(z, landmark, clusters: int, seed: int) -> tuple[dict[str, float | int], np.ndarray]:
    """Measure one set of descriptors; also return the k-means cluster of each. `landmark` may be None."""
    clusters, z = min(clusters, len(z)), jnp.asarray(z)
    found, _, count = clusters_study.cluster(z, "kmeans", clusters=clusters, neighbours=0, tau=0, seed=seed)
    unit = keypoints.l2_normalize(z)
    record = {"clusters": count, "silhouette": float(quality.silhouette(unit, found, clusters=clusters))}
    if landmark is not None:
        near, classes = landmark >= 0, int(landmark.max()) + 1 or 1
        record |= {
            "near_landmark": float(near.mean()),
            "silhouette_landmark": float(quality.silhouette(unit, landmark, near, clusters=classes)),
            "nmi": float(quality.nmi(found, landmark, near, clusters=clusters, classes=classes)),
        }
    return record, np.asarray(found)


# Predictions and observations of a stage


class Seen(NamedTuple):
    """Predictions and observations of a stage on images, on the host, in pixels of the frame.

    Attributes:
      xy: [n,K,2] predicted landmarks, one slot for each cluster.
      score: [n,K] scores of the predicted landmarks.
      points: [n,P,2] keypoints before they are assigned to clusters.
      mask: [n,P] bool, True for keypoints that exist.
      descriptors: [n,P,D] descriptors of the keypoints, or None.
    """

    xy: np.ndarray
    score: np.ndarray
    points: np.ndarray
    mask: np.ndarray
    descriptors: np.ndarray | None


def look(config: Config, model: Model, mesh, source: Source, rows=None, describe: bool = False) -> Seen:
    """Predict and observe by a stage on a source's images, or on increasing `rows` of them.

    Stored labels are ignored, so training images are treated like new ones.
    """
    reader = make_reader(source, mesh=mesh, batch_size=eval_batch(config, mesh), kind="stream")
    method, state = model.method, model.state
    frozen = sharding.put_replicated(mesh, model.frozen)

    @jax.jit
    def found(state, frozen, payload, key):
        batch = reader.fetch({}, payload)
        unknown = batch | {"index": jnp.full_like(batch["index"], UNKNOWN)}
        seen, held = method.predict(state, frozen, batch["image"]), method.observe(state, frozen, unknown, key)
        descriptors = held.described if describe else jnp.zeros((len(batch["index"]), 0))
        return batch["index"], Seen(seen.xy, seen.score, held.xy, held.mask, descriptors)

    key = sharding.put_key(mesh, jax.random.key(config.seed))
    parts = [sharding.to_host(found(state, frozen, payload, key)) for payload in reader.ordered(rows=rows)]
    index, seen = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    order = np.argsort(index, kind="stable")[: reader.rows if rows is None else len(rows)]
    seen = Seen(*(x[order] for x in seen))
    return seen if describe else seen._replace(descriptors=None)


def lengths(source: Source) -> np.ndarray:
    """Measure the normaliser of the error on each image, lengths [N] in pixels that distances are divided by."""
    return regression.normaliser_lengths(
        source.landmarks, source.spec.eyes or source.spec.normaliser, source.frame_size
    )
