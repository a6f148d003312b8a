"""All measures of a finished stage's dense features, and the files of the report (`uld dense`).

Files, in `RUN/eval/<split>/dense/<stage>/`:

  metrics.json                            all numbers, with the protocol's choices and the id of each number
  matching.csv, similarity.png            errors by landmark; maps of similarity
  regression.csv, regression_landmarks.csv, draws.json, regression.png, labels.png
                                          errors by number of labels and by landmark; the images of each draw
  zoom.csv, zoom_factors.csv, zoom.png, zoom_images.png
  parts.csv, parts.png, tsne.png          sizes of parts; their maps; their cells in the plane
  ../pairs.npz                            the pairs of images of the matching, the same for all stages
"""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from uld_jax import files, interrupts, sharding
from uld_jax.data import specs
from uld_jax.data.open import eval_batch, open_split
from uld_jax.data.resident import memory_budget
from uld_jax.data.specs import Source
from uld_jax.errors import UserError
from uld_jax.evaluation.dense import features as features_lib
from uld_jax.evaluation.dense import measures
from uld_jax.evaluation.dense.features import Features
from uld_jax.evaluation.dense.protocols import MEASURES, DenseProtocol, preset
