"""Mixing operators: from unconstrained weights to matrices whose rows sum to 1.

Every operator turns raw weights into ``M`` ``[..., streams, streams]`` with row sums 1. It starts
from one number, ``strength``: the amount of mixing by *all* its applications over depth together.
Mixing towards the uniform average, ``M = (1 - e) I + e J / n``, leaves a share ``(1 - e)^K`` of the
differences between streams after ``K`` applications; ``strength`` is ``1 - (1 - e)^K``. Operators
that need not be doubly stochastic may mix towards unequal shares ``p`` instead,
``M = (1 - e) I + e 1 p'``: ``p`` is stationary, and the same share is left. In general ``strength``
is defined by the trace of the product, ``tr(M^K) = 1 + (n - 1) (1 - strength)``, of which the above
are special cases. So the same ``strength`` means the same at 6 blocks as at 36.

===================  ==========================  =============================================
operator             raw weights                 M
===================  ==========================  =============================================
``softmax``          ``[n, n]`` logits           softmax of every row
``sinkhorn``         ``[n, n]`` logits           Sinkhorn & Knopp 1967 on their exponentials
``permutations``     ``[n!]`` logits, n <= 4     convex combination of all permutations
``orthostochastic``  ``[n (n - 1) / 2]`` angles  squares of an orthogonal matrix, exp(skew)
``signed``           ``[n - 1, n - 1]``          ``J / n + Q R Q'``, spectral norm of R <= 1
``fixed``            none                        the configuration's rows
===================  ==========================  =============================================

Sinkhorn, permutations and orthostochastic matrices are doubly stochastic; signed ones have row and
column sums 1 and may have negative elements; softmax matrices have row sums 1 only.
"""

import itertools
import math
from collections.abc import Sequence
from functools import cache
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Operator = Literal["softmax", "sinkhorn", "permutations", "orthostochastic", "signed", "fixed"]

SINKHORN_STEPS = 100
"""Normalisations of rows and columns; ``column_error`` measures what remains."""

MIN_WEIGHT = 1e-13
"""Starting value of a weight of 0 under a softmax; negligible beside 1 in float32."""

MAX_PERMUTED_STREAMS = 4
"""Most streams whose permutations are few enough (24) to have a weight each."""


def raw_shape(operator: Operator, streams: int) -> tuple[int, ...]:
    """Return the shape of the raw weights of one matrix."""
    n = streams
    shapes: dict[str, tuple[int, ...]] = {
        "softmax": (n, n),
        "sinkhorn": (n, n),
        "permutations": (math.factorial(min(n, MAX_PERMUTED_STREAMS)),),
        "orthostochastic": (n * (n - 1) // 2,),
        "signed": (n - 1, n - 1),
        "fixed": (0,),
    }
    return shapes[operator]


def matrix(
    operator: Operator, raw: Float[Array, "*raw"], streams: int
) -> Float[Array, "streams streams"]:
    """Make M from its raw weights, in float32; differentiable."""
    n = streams
    if operator == "softmax":
        return jax.nn.softmax(raw, axis=-1)
    if operator == "sinkhorn":
        return sinkhorn(raw)
    if operator == "permutations":
        weights = jax.nn.softmax(raw)
        return jnp.einsum("p,pij->ij", weights, jnp.asarray(_permutations(n)))
    if operator == "orthostochastic":
        skew = jnp.zeros((n, n), raw.dtype).at[np.triu_indices(n, 1)].set(raw)
        rotation = jax.scipy.linalg.expm(skew - skew.T)
        return rotation * rotation
    if operator == "signed":
        # Dividing by the spectral norm where it is above 1 keeps products over depth bounded.
        norm = jnp.linalg.norm(raw, ord=2)
        bounded = raw / jnp.maximum(norm, 1.0)
        basis = jnp.asarray(_mean_free_basis(n))
        return jnp.full((n, n), 1 / n, raw.dtype) + basis @ bounded @ basis.T
    raise ValueError(f"operator {operator!r} has no raw weights")


def sinkhorn(logits: Float[Array, "streams streams"]) -> Float[Array, "streams streams"]:
    """Scale ``exp(logits)`` to a doubly stochastic matrix, in the log domain.

    Rows are normalised last, so they sum to 1 up to rounding; ``column_error`` measures how far the
    column sums are from 1.
    """

    def step(_: Array, x: Array) -> Array:
        x = x - jax.nn.logsumexp(x, axis=0, keepdims=True)
        return x - jax.nn.logsumexp(x, axis=1, keepdims=True)

    return jnp.exp(jax.lax.fori_loop(0, SINKHORN_STEPS, step, logits))


def column_error(matrices: Float[np.ndarray, "*sites streams streams"]) -> float:
    """Return the largest distance of a column sum from 1."""
    return float(np.abs(np.asarray(matrices).sum(axis=-2) - 1).max())


def initial_raw(
    operator: Operator,
    streams: int,
    strength: float,
    applications: int,
    stationary: Sequence[float] = (),
) -> Float[np.ndarray, "*raw"]:
    """Return raw weights with which ``applications`` matrices together mix by ``strength``.

    Args:
        operator: Any operator except ``fixed``.
        streams: Number of streams, at least 2.
        strength: In [0, 1): 0 is the identity; towards 1 all streams become their average.
        applications: Number of times that mixing happens over depth.
        stationary: For ``softmax``: shares of the streams in that average; empty means equal.
    """
    n, kept = streams, (1 - strength) ** (1 / applications)  # 1 - e
    if operator == "signed":
        return (kept * np.eye(n - 1)).astype(np.float32)
    if operator == "orthostochastic":
        return _angles(n, applications, 1 + (n - 1) * (1 - strength))
    if operator == "permutations":
        weights = np.full(math.factorial(n), (1 - kept) / math.factorial(n))
        weights[0] += kept  # the identity comes first
        return np.log(np.maximum(weights, MIN_WEIGHT)).astype(np.float32)
    shares = np.asarray(stationary or (1 / n,) * n)
    matrix = kept * np.eye(n) + (1 - kept) * np.broadcast_to(shares, (n, n))
    return np.log(np.maximum(matrix, MIN_WEIGHT)).astype(np.float32)


def _angles(n: int, power: int, trace: float) -> np.ndarray:
    """Find by bisection the equal angles at which this power of the matrix has this trace."""
    low, high = 0.0, 1.0

    def trace_at(angle: float) -> float:
        skew = np.zeros((n, n))
        skew[np.triu_indices(n, 1)] = angle
        values, vectors = np.linalg.eig(skew - skew.T)
        rotation = (vectors * np.exp(values)) @ np.linalg.inv(vectors)
        return float(np.linalg.matrix_power(rotation.real**2, power).trace())

    # The trace falls from n at 0 until the rotation's first full exchange.
    while trace_at(high) > trace and high < 4:
        high *= 1.1
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if trace_at(middle) > trace else (low, middle)
    return np.full(n * (n - 1) // 2, low, np.float32)


@cache
def _permutations(n: int) -> np.ndarray:
    """Return all permutation matrices ``[n!, n, n]``, the identity first."""
    orders = itertools.permutations(range(n))
    return np.stack([np.eye(n, dtype=np.float32)[list(order)] for order in orders])


@cache
def _mean_free_basis(n: int) -> np.ndarray:
    """Return orthonormal columns ``[n, n - 1]`` orthogonal to the vector of ones (Helmert's)."""
    basis = np.zeros((n, n - 1))
    for k in range(1, n):
        basis[:k, k - 1] = 1
        basis[k, k - 1] = -k
    return (basis / np.linalg.norm(basis, axis=0)).astype(np.float32)
