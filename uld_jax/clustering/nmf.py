"""Non-negative matrix factorisation by multiplicative updates (Lee and Seung 2001), jitted and masked.

It finds codes W [N,C] and a dictionary H [C,D] of atoms, all of them 0 or more, that minimise |X - W H|_F. An update is

  W <- W * (X H') / (W H H'),     then with the new W     H <- H * (W' X) / (W' W H)

and never increases the error. Rows may be split over devices (global view): an update sends one [C,D] and one [C,C]
all-reduce. The baseline BYOL + NMF of LEAD (Karmali et al. 2022) codes hypercolumns so; how it fits is unpublished.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from uld_jax import sharding
from uld_jax.errors import UserError

_matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


class Factors(NamedTuple):
    """A factorisation X = W H.

    Attributes:
      dictionary: [C,D] float32 (or wider, as x), the atoms H.
      codes: [N,C], W; 0 for masked rows.
      errors: [steps + 1], |X - W H|_F at the start and after each update. It is computed from squares, so an error
        below a thousandth of |X|_F has lost its digits in float32.
    """

    dictionary: jax.Array
    codes: jax.Array
    errors: jax.Array


def fit(key, x, rank: int, steps: int = 200, *, mask=None, init=None) -> Factors:
    """Factorise rows by `steps` updates.

    The number of updates is fixed. Without `init` both factors start at random, |N(0, 1)| sqrt(mean of x / C), as
    scikit-learn's `init="random"`.

    Args:
      key: a PRNG key; unused with `init`.
      x: [N,D] rows of numbers of 0 or more, on one device or split over a mesh on axis 0.
      rank: C, number of atoms.
      steps: number of updates.
      mask: [N] bool, False for rows that count nowhere and may hold anything; x is then copied once.
      init: first codes [N,C] and dictionary [C,D], none below 0. An entry of 0 stays 0.

    Raises:
      UserError: shapes or numbers that do not fit, or an entry below 0 or not finite. Entries are not checked while
        tracing.

    >>> x = jnp.array([[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]])
    >>> found = fit(jax.random.key(0), x, 1, 20)
    >>> bool(jnp.allclose(found.codes @ found.dictionary, x, rtol=1e-4))
    True
    """
    x, mask = sharding.arrays(x, mask)
    _check(x, mask, steps)
    if rank < 1:
        raise UserError(f"nmf got rank {rank}; use 1 or more")
    if init is not None:
        init = sharding.arrays(*init)
        shapes = [f.shape for f in init]
        if shapes != [(len(x), rank), (rank, x.shape[1])]:
            raise UserError(f"nmf got init of shapes {shapes}; rank {rank} of rows {x.shape} needs [N,C] and [C,D]")
    return _fit(key, x, mask, init, rank=rank, steps=steps)


def encode(x, dictionary, steps: int = 100, *, mask=None):
    """Codes [N,C] of rows under a fixed dictionary, by `steps` updates of the codes alone.

    A row's code does not depend on the other rows: it starts with equal entries of the best common size. More updates
    come closer to the only minimum (non-negative least squares).

    Args:
      x: [N,D] rows of numbers of 0 or more.
      dictionary: [C,D] of `fit`.
      steps: number of updates; each costs N C^2, after one product of N D C.
      mask: [N] bool, False for rows that may hold anything; their codes are 0.

    Raises:
      UserError: as `fit`.

    >>> encode(jnp.array([[2.0, 0.0, 3.0]]), jnp.array([[1.0, 0, 0], [0, 0, 2.0]])).round(1).tolist()
    [[2.0, 1.5]]
    """
    x, dictionary, mask = sharding.arrays(x, dictionary, mask)
    _check(x, mask, steps)
    if dictionary.ndim != 2 or dictionary.shape[1] != x.shape[1]:
        raise UserError(f"nmf got a dictionary {dictionary.shape} for rows {x.shape}; give [C,{x.shape[1]}]")
    return _encode(x, dictionary, mask, steps=steps)


def unit_atoms(factors: Factors) -> Factors:
    """The same product W H with atoms of length 1, so that entries of a code, and cosines of codes, are comparable."""
    length = jnp.linalg.norm(factors.dictionary, axis=1)
    scale = jnp.where(length > 0, length, 1)
    return factors._replace(dictionary=factors.dictionary / scale[:, None], codes=factors.codes * scale)


def _check(x, mask, steps):
    if x.ndim != 2 or not len(x) or (mask is not None and mask.shape != x.shape[:1]):
        raise UserError(f"nmf got rows {x.shape} and mask {None if mask is None else mask.shape}; give [N,D] and [N]")
    if steps < 0:
        raise UserError(f"nmf got {steps} steps; use 0 or more")
    if not isinstance(x, jax.core.Tracer) and not isinstance(mask, jax.core.Tracer) and not _allowed(x, mask):
        raise UserError("nmf got a row with an entry below 0 or not finite; mask such rows, or clip them")


@jax.jit
def _allowed(x, mask):
    good = (x >= 0) & jnp.isfinite(x)
    return jnp.all(good if mask is None else good | ~mask[:, None])


def _clean(x, mask):
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return x if mask is None else jnp.where(mask[:, None], x, 0)


def _update(factor, wanted, given):
    """factor * wanted / given, where a denominator of 0 is replaced as in scikit-learn."""
    tiny = jnp.finfo(jnp.float32).eps
    return factor * (wanted / jnp.where(given == 0, tiny, given))


@functools.partial(jax.jit, static_argnames=("rank", "steps"))
def _fit(key, x, mask, init, *, rank, steps):
    x = _clean(x, mask)
    count = len(x) if mask is None else jnp.maximum(jnp.sum(mask), 1)
    if init is None:
        size = jnp.sqrt(jnp.sum(x) / (count * x.shape[1] * rank))
        draw = lambda key, *shape: size * jnp.abs(jax.random.normal(key, shape, x.dtype))
        keys = jax.random.split(key)
        init = draw(keys[0], len(x), rank), draw(keys[1], rank, x.shape[1])
    codes, dictionary = (f.astype(x.dtype) for f in init)
    # A code of 0 stays 0 and adds nothing to the sums over rows: masked rows need no more care.
    codes = codes if mask is None else jnp.where(mask[:, None], codes, 0)
    total = jnp.sum(x * x)

    def error(codes, along, gram):
        """|X - W H|, with X H' and H H' given."""
        square = total - 2 * jnp.sum(codes * along) + jnp.sum(_matmul(codes.T, codes) * gram)
        return jnp.sqrt(jnp.maximum(square, 0))

    def products(dictionary):
        return _matmul(x, dictionary.T), _matmul(dictionary, dictionary.T)

    def update(factors, _):
        codes, dictionary = factors
        along, gram = products(dictionary)
        before = error(codes, along, gram)
        codes = _update(codes, along, _matmul(codes, gram))
        dictionary = _update(dictionary, _matmul(codes.T, x), _matmul(_matmul(codes.T, codes), dictionary))
        return (codes, dictionary), before

    (codes, dictionary), errors = jax.lax.scan(update, (codes, dictionary), length=steps)
    last = error(codes, *products(dictionary))
    return Factors(dictionary, codes, jnp.append(errors, last))


@functools.partial(jax.jit, static_argnames="steps")
def _encode(x, dictionary, mask, *, steps):
    x = _clean(x, mask)
    dictionary = dictionary.astype(x.dtype)
    along, gram = _matmul(x, dictionary.T), _matmul(dictionary, dictionary.T)
    whole = jnp.sum(gram)  # the squared length of the atoms' sum
    start = jnp.sum(along, 1, keepdims=True) / jnp.where(whole > 0, whole, 1)
    codes = jnp.broadcast_to(start, along.shape)
    return jax.lax.fori_loop(0, steps, lambda _, codes: _update(codes, along, _matmul(codes, gram)), codes)
