"""ZeroShot: landmarks from clusters of a frozen backbone's descriptors, without training.

Tourani et al., "Pose-Guided Self-Training with Two-Stage Clustering for Unsupervised Landmark Discovery", CVPR 2024,
section 3.1.

    1) describe pixels of the training images by a frozen backbone   2) k-means: K clusters
    3) a landmark is at the best match of its cluster in an image    4) table of landmarks
"""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from uld_jax.backbones import build, finished, prepared
from uld_jax.bank import Labels, flatten, image_table
from uld_jax.clustering import foreground
from uld_jax.clustering.kmeans import kmeans
from uld_jax.errors import UserError
from uld_jax.hyperparameters import Fraction, NotNegative, Positive, PositiveInt
from uld_jax.method import Prediction, Round, Stage, TrainState
from uld_jax.ops import color, coordinates, keypoints, shape_model


class Reading(NamedTuple):
    """The map from M candidates to K landmarks: landmark_k = mean_k + sum_m weights_km (candidate_m - centre_m).

    Attributes:
      chosen: [K] int32, the candidate of each landmark, whose score is the landmark's.
      centre: [M,2] means of the candidates, in unit coordinates of the frame.
      weights: [K,2,M,2], weights of candidates' coordinates in landmarks' coordinates.
    """

    chosen: jax.Array
    centre: jax.Array
    weights: jax.Array


class Clusters(NamedTuple):
    """The result of ZeroShot.

    Attributes:
      round: int32, passes done: 0 none, 1 clustered, 2 placed; with `region=foreground` -1 before its own pass.
      centroids: [M,D] float32 centroids of the clusters.
      reading: map from candidates to landmarks.
      labels: landmarks of the training images.
      key: [2] uint32, the run's key for an image's random pixels in predictions; None with `dense`.
      foreground: rule that separates object from background; None without `region=foreground`.
    """

    round: jax.Array
    centroids: jax.Array
    reading: Reading
    labels: Labels
    key: jax.Array | None
    foreground: foreground.Foreground | None


class Seen(NamedTuple):
    """The data that a pass collects.

    Attributes:
      descriptors: [B,P,D] float32, descriptors of random pixels of the image.
      cells: [B,P,2] float32, places of these pixels on the map, in cells.
      xy: [B,M,2] float32, candidates of the present clusters, in pixels of the frame.
      score: [B,M] float32, scores of the candidates; 0 if missing.
    """

    descriptors: jax.Array
    cells: jax.Array
    xy: jax.Array
    score: jax.Array


@dataclasses.dataclass(frozen=True)
class ZeroShot(Stage):
    """K-means over the descriptors of a frozen backbone; a stage of zero steps.

    With `candidates` above k (ours, not the paper's) more clusters are formed than landmarks wanted. A factor model of
    their joint movement tells steady clusters from unsteady ones, and the k clusters are chosen that best predict the
    places of all. No annotation is involved.

    Attributes:
      k: K, number of landmarks.
      frame_size: side of the frame in pixels.
      backbone: module and class below `uld_jax.backbones`.
      backbone_kwargs: hyper-parameters of the backbone.
      position: weight of the place in a descriptor. A descriptor has length 1; from one side of the frame to the
        other a place moves by `position`. 0 clusters by appearance alone, as the paper does on Stable Diffusion.
      roi: central fraction of the frame in which landmarks are searched.
      region: part of `roi` that is searched: `none` for all of it; `box` for the csv's box, which in training images
        replaces `roi` (the paper's region of interest is a detector's box); or `foreground` for the largest region that
        the first principal component of the backbone's maps separates from the rest, in training and other images
        (ours). `foreground` takes one pass more, and `pictures/` shows the region.
      pixels: P, number of random pixels of an image that are clustered.
      dense: True to search landmarks at all cells of the region; False to search, as in the paper, at P random places,
        which depend only on the image and the run's seed. An exemplar must then be nearer to its cluster's centroid
        than to other centroids, and a landmark without an exemplar is missing.
      place: rule of the place: `mean` weighs all pixels by exp(-sharpness * squared distance to the centroid);
        `exemplar` takes the nearest (paper, section 3.1).
      sharpness: sharpness of the weights of `place=mean`.
      candidates: M, number of clusters; 0 for the paper's k.
      factors: number of factors of the factor model, about the number of dimensions of the object's poses and shapes (8
        for faces). With more, factors are spent on single candidates, including unsteady ones.
      denoise: True to place a landmark where the factor model expects its candidate, given all candidates of the image;
        False to place it where the candidate was found.
      bank_gib: size in GiB of the descriptors kept of a pass. If P pixels an image need more, fewer pixels of each
        image are clustered, the first of those drawn. Ours: 4 GiB hold a million descriptors of 1024 numbers, enough
        for tens of clusters.
      weights: folders of converted weights by kind, for backbones that have any.
      cache: folder of the backbone's maps or latents of the training images (`uld features`), which the passes over
        these images then read; predictions compute them. "" computes them in every pass.
    """

    k: int
    frame_size: int
    backbone: str = "gradient.GradientHistograms"
    backbone_kwargs: Any = ()
    position: float = 2.0
    roi: Fraction = 0.7
    region: Literal["none", "box", "foreground"] = "none"
    pixels: PositiveInt = 60
    dense: bool = True
    place: Literal["mean", "exemplar"] = "mean"
    sharpness: float = 30.0
    candidates: NotNegative = 0
    factors: int = 8
    denoise: bool = True
    bank_gib: Positive = 4.0
    weights: Any = ()
    cache: str = ""

    def __post_init__(self):
        super().__post_init__()
        if self.candidates and not self.dense and self.place == "exemplar":
            raise UserError(
                "dense=False with place=exemplar leaves clusters missing, and candidates are read off all of them; set "
                "candidates=0 or place=mean"
            )
        if self.candidates and self.candidates < self.k:
            raise UserError(f"candidates is {self.candidates}; use 0, or at least k = {self.k}")

    @property
    def _backbone(self):
        return build.backbone(self.backbone, "zeroshot.backbone", self.backbone_kwargs, self.weights)

    @property
    def _clusters(self) -> int:
        return self.candidates or self.k

    def _kept(self, aux) -> int:
        """Number of pixels of an image whose descriptors are kept; all of them if they fit."""
        num_images, width = len(aux.labels.xy), aux.centroids.shape[1]
        fit = int(self.bank_gib * 2**30) // (num_images * width * aux.centroids.dtype.itemsize)
        return min(self.pixels, max(fit, 1))

    @property
    def _frame(self) -> tuple[int, int]:
        return self.frame_size, self.frame_size

    def side_tables(self):
        return {"boxes": ()} if self.region == "box" else {}

    def frozen(self, purpose="train"):
        return self._backbone.load()

    def prepared(self, frozen):
        return prepared(self._backbone, frozen)

    def init(self, rng, batch, frozen, start):
        width = jax.eval_shape(self._describe, frozen, batch["image"]).shape[-1]
        count = self._clusters
        first = jnp.arange(self.k, dtype=jnp.int32)
        picked = jnp.einsum("km,cd->kcmd", jax.nn.one_hot(first, count), jnp.eye(2))
        known = self.region != "foreground"
        aux = Clusters(
            round=jnp.int32(0 if known else -1),
            centroids=jnp.zeros((count, width)),
            reading=Reading(first, jnp.zeros((count, 2)), picked),
            labels=Labels(jnp.zeros((start.num_images, self.k, 2)), jnp.zeros((start.num_images, self.k))),
            key=None if self.dense else jax.random.key_data(rng),
            foreground=None if known else foreground.unknown(width - 2),
        )
        return TrainState(step=jnp.int32(0), aux=aux)

    def round_at(self, step):
        # One pass clusters and one places; the foreground needs another before them.
        return Round(passes=3 if self.region == "foreground" else 2) if step == 0 else None

    def observe(self, state, frozen, batch, rng):
        described = self._describe(frozen, batch["image"], batch.get("features"))
        # Step 1) P random pixels an image, which do not depend on the image's batch.
        keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, batch["index"])
        boxes = batch["boxes"] if self.region == "box" else None
        cells = self._draw(keys, self.pixels, state.aux, described, boxes)[:, : self._kept(state.aux)]
        # Step 3) Candidates; they have no meaning before the first clustering.
        found = self._place(state.aux, described, batch["image"], boxes)
        sampled = keypoints.sample(described, cells).astype(state.aux.centroids.dtype)  # maps from files have their own
        return Seen(sampled, cells, *found)

    def refresh(self, state, frozen, bank, rng):
        aux, seen, count, num_images = state.aux, bank.values, self._clusters, len(state.aux.labels.xy)
        clustered = aux.round > 0
        # Step 2) k-means over all sampled pixels, in the first pass.
        x, real = flatten(seen.descriptors, jnp.broadcast_to(bank.real[..., None], seen.cells.shape[:-1]))
        known = aux.round >= 0
        cluster = lambda: kmeans(x, count, rng=rng, mask=real).centroids
        centroids = jax.lax.cond(clustered | ~known, lambda: aux.centroids, cluster)
        # Step 4) The candidates of all images, the choice of landmarks among them, and the landmarks' places.
        score = jnp.where(bank.real[..., None], seen.score, 0)
        choose = lambda: self._choose(seen.xy, jnp.all(score > 0, -1))
        reading = jax.lax.cond(clustered, choose, lambda: aux.reading) if self.candidates else aux.reading
        xy, score = self._read(reading, seen.xy, score)
        labels = Labels(image_table(bank, xy, num_images), image_table(bank, score, num_images))
        new = aux._replace(reading=reading, labels=labels)
        aux = jax.tree.map(lambda placed, old: jnp.where(clustered, placed, old), new, aux)
        if self.region == "foreground":
            # Before step 2) The foreground, from all sampled pixels.
            image = jax.ShapeDtypeStruct((1, *self._frame, 3), jnp.uint8)
            size = jax.eval_shape(self._describe, frozen, image).shape[1:3]
            unit = coordinates.to_unit(seen.cells.reshape(-1, 2), size)
            fit = lambda: foreground.fit(x[:, :-2], unit, real)
            aux = aux._replace(foreground=jax.lax.cond(known, lambda: aux.foreground, fit))
        return state.replace(aux=aux._replace(round=aux.round + 1, centroids=centroids))

    def predict(self, state, frozen, images):
        xy, score = self._place(state.aux, self._describe(frozen, images), images)
        return Prediction(*self._read(state.aux.reading, xy, score))

    def pictures(self, state, frozen, images):
        """Pictures in columns: the photo, the component of the object (grey at its threshold), the region."""
        if self.region != "foreground":
            return {}
        described, aux = self._describe(frozen, images), state.aux
        along = foreground.score(aux.foreground, described[..., :-2])
        along = 0.5 + 0.5 * along / jnp.maximum(jnp.max(jnp.abs(along), (1, 2), keepdims=True), 1e-6)
        big = lambda maps: jax.image.resize(maps[..., None].astype(float), (*images.shape[:3], 1), "nearest")
        photo, inside = images.astype(float) / 255, big(self._inside(aux, described))
        shown = [photo, jnp.broadcast_to(big(along), photo.shape), photo * (0.25 + 0.75 * inside)]
        return {"region": color.to_uint8(jnp.stack(shown, 1))}

    def _describe(self, frozen, images, maps=None):
        """Descriptors [B,h,w,D]: all taps at the finest one's resolution, each of length 1, and the place.

        `maps` are the backbone's maps or latents of these images, if they are known.
        """
        backbone = self._backbone
        maps = backbone.features(frozen, images) if maps is None else finished(backbone, frozen, maps)
        # Sorted by name, since a dict that enters a jitted program is sorted.
        names = sorted(maps)
        taps = [maps[name].astype(jnp.promote_types(maps[name].dtype, jnp.float32)) for name in names]
        height, width = max(t.shape[1:3] for t in taps)
        parts = [jax.image.resize(t, (len(t), height, width, t.shape[-1]), "bilinear", antialias=False) for t in taps]
        # Joined backbones have equal weights, and so do the maps of each.
        of = [name.rpartition("/")[0] for name in names]
        parts = [
            keypoints.l2_normalize(t) / (len(set(of)) * of.count(o)) ** 0.5 for t, o in zip(parts, of, strict=True)
        ]
        place = coordinates.to_unit(coordinates.pixel_grid(height, width), (height, width)) * (self.position / 2)
        place = jnp.broadcast_to(jnp.asarray(place, parts[0].dtype), (*parts[0].shape[:3], 2))
        return jnp.concatenate([*parts, place], -1)

    def _roi_bounds(self, side):
        """First and last cell of the region of interest on a map of this side."""
        half = self.roi * side / 2
        return side / 2 - half, side / 2 + half - 1

    def _box_bounds(self, boxes, size):
        """First and last place (x, y) in cells, two arrays [B,2], of boxes [B,4] in pixels of the frame."""
        corners = coordinates.rescale_points(boxes.reshape(-1, 2, 2), self._frame, size)
        last = jnp.array([size[1], size[0]], corners.dtype) - 0.5
        low, high = jnp.clip(corners[:, 0], -0.5, last), jnp.clip(corners[:, 1], -0.5, last)
        return low, jnp.maximum(low, high)

    def _inside(self, aux, described, boxes=None):
        """Cells [B,h,w] or [1,h,w] of the region of interest; all of `roi` if the region would be empty."""
        height, width = described.shape[1:3]
        grid = jnp.asarray(coordinates.pixel_grid(height, width), described.dtype)
        low, high = self._roi_bounds(height)
        roi = jnp.all((grid >= low) & (grid <= high), -1)[None]
        if self.region == "foreground":
            found = foreground.region(aux.foreground, described[..., :-2], roi[0])
        elif boxes is not None:
            low, high = (bound[:, None, None] for bound in self._box_bounds(boxes, (height, width)))
            found = jnp.all((grid >= low) & (grid <= high), -1)
        else:
            return roi
        return jnp.where(jnp.any(found, (1, 2), keepdims=True), found, roi)

    def _draw(self, keys, count: int, aux, described, boxes=None):
        """Draw random places [B,count,2], in cells, in each image's region of interest, by a key for each image."""
        size, dtype = described.shape[1:3], described.dtype
        if self.region == "foreground":
            inside = self._inside(aux, described).reshape(len(described), -1)

            def draw(key, inside):
                # Cells of the region are equally likely, and so are places in a cell.
                which, within = jax.random.split(key)
                total = jnp.cumsum(inside)
                wanted = jax.random.randint(which, (count,), 0, total[-1])
                cell = jnp.searchsorted(total, wanted, side="right")
                xy = jnp.stack([cell % size[1], cell // size[1]], -1).astype(dtype)
                return xy + jax.random.uniform(within, (count, 2), dtype, -0.5, 0.5)

            return jax.vmap(draw)(keys, inside)
        if boxes is not None:
            uniform = lambda key, low, high: jax.random.uniform(key, (count, 2), dtype, low, high)
            return jax.vmap(uniform)(keys, *self._box_bounds(boxes, size))
        low, high = self._roi_bounds(size[0])
        return jax.vmap(lambda key: jax.random.uniform(key, (count, 2), dtype, low, high))(keys)

    def _place(self, aux, described, images, boxes=None):
        """Place each cluster in each image: xy [B,M,2] in pixels of the frame, score [B,M] in 0..1, 0 if missing."""
        batch, height, width, depth = described.shape
        if self.dense:
            grid = jnp.asarray(coordinates.pixel_grid(height, width), described.dtype).reshape(-1, 2)
            inside = self._inside(aux, described, boxes).reshape(-1, height * width, 1)
            square = self._squares(described.reshape(batch, -1, depth), aux.centroids)
            square = jnp.where(inside, square, jnp.inf)
            if self.place == "mean":
                weight = jax.nn.softmax(jnp.where(inside, -self.sharpness * square, -jnp.inf), 1)
                cells = jnp.einsum("bpm,pc->bmc", weight, grid, precision="highest")
            else:
                cells = grid[jnp.argmin(square, 1)]
        else:
            keys = _content_keys(jax.random.wrap_key_data(aux.key), images)
            drawn = self._draw(keys, self.pixels, aux, described, boxes)
            square = self._squares(keypoints.sample(described, drawn), aux.centroids)
            if self.place == "mean":
                weight = jax.nn.softmax(-self.sharpness * square, 1)
                cells = jnp.einsum("bpm,bpc->bmc", weight, drawn, precision="highest")
            else:
                # Step 4) of the paper: the nearest to the centroid among the pixels of a cluster.
                own = jnp.argmin(square, -1)[..., None] == jnp.arange(len(aux.centroids))
                square = jnp.where(own, square, jnp.inf)
                cells = jnp.take_along_axis(drawn, jnp.argmin(square, 1)[..., None], 1)
        score = jnp.exp(-jnp.maximum(jnp.min(square, 1), 0))
        return coordinates.rescale_points(cells, (height, width), self._frame), score

    def _squares(self, x, centroids):
        """Squared distances [B,p,M] of descriptors [B,p,D] to centroids [M,D]."""
        cross = jnp.einsum("bpd,md->bpm", x, centroids, precision="highest")
        return jnp.sum(x**2, -1, keepdims=True) - 2 * cross + jnp.sum(centroids**2, -1)

    def _choose(self, xy, there) -> Reading:
        """Choose K of M candidates [...,M,2] in pixels of the frame, from the images that are `there` [...]."""
        points = coordinates.to_unit(xy, self._frame).reshape(-1, 2 * self._clusters)
        mean, cov = shape_model.covariance(points, there.reshape(-1))
        model = shape_model.factor_analysis(cov, min(self.factors, 2 * self._clusters - 1))
        product = functools.partial(jnp.matmul, precision="highest")
        reader = shape_model.posterior(model)
        expect = product(model.loadings, reader)  # candidates to expected
        # The target, all expected candidates, in as many coordinates as there are factors: loadings = turn @ few.
        few = jnp.linalg.qr(model.loadings, mode="r")
        source, crossed = cov, product(product(cov, reader.T), few.T)
        if self.denoise:
            source, crossed = product(expect, product(cov, expect.T)), product(expect, crossed)
        count = self._clusters
        blocks = (count, 2, count, 2)
        own = jnp.sum(model.variances.reshape(count, 2), 1) / jnp.sum(jnp.diagonal(cov).reshape(count, 2), 1)
        chosen = shape_model.choose_points(
            source.reshape(blocks), crossed.reshape(count, 2, -1), self.k, prefer=-own
        )  # a tie goes to the steadiest candidate
        read = expect if self.denoise else jnp.eye(2 * count, dtype=cov.dtype)
        return Reading(chosen, mean.reshape(count, 2), read.reshape(blocks)[chosen])

    def _read(self, reading: Reading, xy, score):
        """Map candidates [...,M,2] in pixels of the frame, score [...,M], to landmarks [...,K,2], score [...,K]."""
        away = coordinates.to_unit(xy, self._frame) - reading.centre
        unit = jnp.einsum("kcmd,...md->...kc", reading.weights, away, precision="highest")
        return coordinates.from_unit(unit + reading.centre[reading.chosen], self._frame), score[..., reading.chosen]


def _content_keys(key, images):
    """Keys [B] of [B,H,W,3] uint8 images, each of which depends only on the image's pixels and `key`."""
    flat = images.reshape(len(images), -1).astype(jnp.uint32)
    factors = jnp.arange(flat.shape[1], dtype=jnp.uint32) * jnp.uint32(2654435761) + 1  # the sum wraps around
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.sum(flat * factors, 1, dtype=jnp.uint32))
