"""What a network is shown of a frame: a warped cut-out, in 0..1, perhaps with its own contrast taken out."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from uld_jax.ops import batches, coordinates, resampling, warp


@dataclasses.dataclass(frozen=True)
class Geometry:
    """A square frame, the square view of it that a network sees, and the network's heatmaps over that view.

    Attributes:
      frame_side, view_side: in pixels.
      stride: pixels of the view in a cell of the heatmaps.
      zoom: a still view shows this central fraction of the frame.
      dtype: of still views' warps, and so of all that is computed through them.

    >>> geometry = Geometry(frame_side=160, view_side=128, stride=4, zoom=0.5)
    >>> geometry.view, geometry.heat
    ((128, 128), (32, 32))
    >>> geometry.to_frame(jnp.array([[[-0.5, 15.5]]])).tolist()  # cells' left border and middle
    [[[39.5, 79.5]]]
    """

    frame_side: int
    view_side: int
    stride: int = 1
    zoom: float = 1.0
    dtype: Any = jnp.float32

    @property
    def frame(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.frame_side, self.frame_side

    @property
    def view(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.view_side, self.view_side

    @property
    def heat(self) -> tuple[int, int]:
        """(height, width) in cells."""
        return self.view_side // self.stride, self.view_side // self.stride

    def on_map(self, cells):
        """Tell which points [...,2] in cells lie on the view's map; a bool [...]."""
        high = jnp.asarray([self.heat[1], self.heat[0]], cells.dtype) - 0.5
        return jnp.all((cells >= -0.5) & (cells <= high), -1)

    def still(self, count: int) -> warp.Warp:
        """The warps [B,...] that show `count` frames as they are."""
        return still(count, self.zoom, self.dtype)

    def look(self, images, warps: warp.Warp | None = None):
        """Views [B,h,w,3] in 0..1 of frames [B,H,W,3] uint8 under one warp each; still ones by default."""
        if warps is None:
            return resampling.scaled(images, self.view, self.zoom, self.dtype) / 255
        return look(warps, images, self.view)

    def to_frame(self, cells, warps: warp.Warp | None = None):
        """Points [B,P,2] in cells of the views' heatmaps to pixels of the frames; still views by default."""
        warps = self.still(len(cells)) if warps is None else warps
        xy = coordinates.rescale_points(cells, self.heat, self.view)
        return warp.points_to_source(warps, xy, self.frame, self.view)

    def to_cells(self, xy, warps: warp.Warp):
        """Points [B,P,2] in pixels of the frames to cells of the heatmaps of views under one warp each."""
        return coordinates.rescale_points(warp.points_to_view(warps, xy, self.frame, self.view), self.view, self.heat)

    def inside(self, warps: warp.Warp, fraction: float = 1.0, boxes=None):
        """Which cells [B,h,w] of the views under one warp each show the region of interest.

        It is the central `fraction` of the frame and, if given, the boxes [B,4] (x0, y0, x1, y1), in its pixels.

        >>> geometry = Geometry(frame_side=8, view_side=8, stride=2)
        >>> geometry.inside(geometry.still(1), fraction=0.5)[0].sum().item()
        4
        """
        height, width = self.heat
        cells = jnp.asarray(coordinates.pixel_grid(height, width), self.dtype).reshape(1, -1, 2)
        xy = self.to_frame(jnp.broadcast_to(cells, (len(warps.shift), *cells.shape[1:])), warps)
        inside = jnp.all(jnp.abs(coordinates.to_unit(xy, self.frame)) <= fraction, -1)
        if boxes is not None:
            inside &= jnp.all((xy >= boxes[:, None, :2]) & (xy <= boxes[:, None, 2:]), -1)
        return inside.reshape(-1, height, width)

    def cells_in(self, warps: warp.Warp, others: warp.Warp):
        """Where the places of the cells of views are in other views: `(x, y)` [B,h,w,2] in cells of these.

        Both are views of the same frames [B], under one warp each.
        """
        height, width = self.heat
        grid = jnp.asarray(coordinates.pixel_grid(height, width), warps.shift.dtype).reshape(1, -1, 2)
        grid = jnp.broadcast_to(grid, (len(warps.shift), *grid.shape[1:]))
        return self.to_cells(self.to_frame(grid, warps), others).reshape(-1, height, width, 2)

    def matches(self, warps: warp.Warp):
        """Which cell of the pair's other view shows the same place: [2B,h*w] int32, -1 for none.

        Views of warps 2i and 2i + 1 are a pair. A cell's centre falls into a cell of the other view, whose own centre
        must fall back into it.
        """
        height, width = self.heat
        swapped = jax.tree.map(lambda x: x.reshape(len(x) // 2, 2, *x.shape[1:])[:, ::-1].reshape(x.shape), warps)
        cells = jnp.floor(self.cells_in(warps, swapped).reshape(-1, height * width, 2) + 0.5)
        inside = jnp.all((cells >= 0) & (cells < jnp.asarray([width, height])), -1)
        index = jnp.where(inside, cells[..., 1] * width + cells[..., 0], 0).astype(jnp.int32)
        other = index.reshape(-1, 2, height * width)[:, ::-1].reshape(index.shape)
        there = inside.reshape(-1, 2, height * width)[:, ::-1].reshape(index.shape)
        back = jnp.take_along_axis(other, index, 1) == jnp.arange(height * width)
        return jnp.where(inside & jnp.take_along_axis(there, index, 1) & back, index, -1)


def still(count: int, zoom: float, dtype=jnp.float32) -> warp.Warp:
    """The view of `count` frames as they are: the central fraction `zoom` of each."""
    one = warp.identity(zoom, dtype)
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), one)


def look(warps: warp.Warp, images, size):
    """Views of frames [B,H,W,3] uint8 under one warp each: [B,h,w,3] in 0..1, `size` = (h, w)."""
    return batches.each(lambda one, image: warp.warp_image(one, image, size), warps, images) / 255


def standardise(views):
    """Views [B,h,w,3] in 0..1 less their own mean, over their own contrast; a flat view stays flat."""
    mean, spread = jnp.mean(views, (1, 2, 3), keepdims=True), jnp.std(views, (1, 2, 3), keepdims=True)
    return (views - mean) / (spread + 0.05)
