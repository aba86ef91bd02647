"""The routed decoder in NumPy float64, written from the formulas; it shares no code with jroute.

Nothing here is fast or recursive where a formula can stand: a history is summed again from what has
been recorded, one token at a time where tokens differ. Of a routing configuration only its fields
are read.
"""

import itertools
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg


def norm(x, weight, eps):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight


def turn(x, theta):
    """Rotary embedding of ``[seq, heads, head_dim]``; pair (i, i + half) is turned together."""
    seq, _, dim = x.shape
    half = dim // 2
    angles = np.arange(seq)[:, None] * theta ** (-2 * np.arange(half) / dim)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def attention(x, w, config):
    """The update, and the share of attention that goes to the first token (mean over heads)."""
    seq = x.shape[0]
    q = np.einsum("se,ehd->shd", x, w["q_proj"])
    k = np.einsum("se,ehd->shd", x, w["k_proj"])
    v = np.einsum("se,ehd->shd", x, w["v_proj"])
    q = turn(norm(q, w["q_norm"], config.rms_norm_eps), config.rope_theta)
    k = turn(norm(k, w["k_norm"], config.rms_norm_eps), config.rope_theta)
    group = config.num_attention_heads // config.num_key_value_heads
    out, first = np.zeros((seq, config.hidden_size)), np.zeros(seq)
    for head in range(config.num_attention_heads):
        scores = q[:, head] @ k[:, head // group].T / np.sqrt(config.head_dim)
        scores[np.triu_indices(seq, 1)] = -np.inf
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        first += scores[:, 0] / config.num_attention_heads
        out += scores @ v[:, head // group] @ w["o_proj"][head]
    return out, first


def mlp(x, w):
    gate = x @ w["gate_proj"]
    return (gate / (1 + np.exp(-gate)) * (x @ w["up_proj"])) @ w["down_proj"]


def rms(x):
    return np.sqrt((x**2).mean(-1, keepdims=True))


# Operators ------------------------------------------------------------------------------------


def matrix(operator, raw, n):
    """M from its raw weights."""
    raw = np.asarray(raw, float)
    if operator == "softmax":
        return np.exp(raw) / np.exp(raw).sum(1, keepdims=True)
    if operator == "sinkhorn":
        m = np.exp(raw - raw.max())
        for _ in range(100):
            m = m / m.sum(0)
            m = m / m.sum(1)[:, None]
        return m
    if operator == "permutations":
        share = np.exp(raw) / np.exp(raw).sum()
        m = np.zeros((n, n))
        for weight, order in zip(share, itertools.permutations(range(n)), strict=True):
            for i, j in enumerate(order):
                m[i, j] += weight
        return m
    if operator == "orthostochastic":
        skew = np.zeros((n, n))
        for angle, (i, j) in zip(raw, itertools.combinations(range(n), 2), strict=True):
            skew[i, j], skew[j, i] = angle, -angle
        return scipy.linalg.expm(skew) ** 2
    assert operator == "signed"
    basis = scipy.linalg.helmert(n).T  # columns 1, -1, 0, ...; 1, 1, -2, ...; all normalised
    largest = np.linalg.svd(raw)[1].max()
    return np.ones((n, n)) / n + basis @ (raw / max(largest, 1)) @ basis.T


def mixing(setting, raw):
    """M of every block and hook from the raw weights ``[layers, hooks, ...]``."""
    n = 1 + len(setting.streams)
    if n > 1 and setting.operator != "fixed":
        return np.array([[matrix(setting.operator, one, n) for one in block] for block in raw])
    rows = np.eye(n)
    if n > 1:
        rows[: len(setting.rows)] = setting.rows
    return np.broadcast_to(rows, (*np.shape(raw)[:2], n, n))


# The routed decoder ---------------------------------------------------------------------------


class Mixed(NamedTuple):
    """One hook: streams as they are mixed, and the trunk before and after."""

    streams: list[np.ndarray]
    before: np.ndarray
    after: np.ndarray


class Trace(NamedTuple):
    """One row: logits, what was read where, what was made of it, and every hook's mixing."""

    logits: np.ndarray
    attention_input: list[np.ndarray]
    attention_update: list[np.ndarray]
    mlp_input: list[np.ndarray]
    mlp_update: list[np.ndarray]
    trunk: list[np.ndarray]
    first_attention: list[np.ndarray]
    residual: np.ndarray
    seen: dict[tuple[int, str], Mixed]


class Streams:
    """All that has happened to the residual so far, from which every stream follows."""

    def __init__(self, setting, x0):
        self.kinds = tuple(setting.streams)
        self.x0, self.trunks, self.attentions, self.mlps = x0, [], [], []
        self.own = {i: x0 for i, kind in enumerate(self.kinds) if kind in ("persistent", "rotate")}
        self.rotating = [i for i, kind in enumerate(self.kinds) if kind == "rotate"]

    def update(self, part, layer, value):
        {"attention": self.attentions, "mlp": self.mlps}[part].append(value)
        if self.rotating:
            i = self.rotating[layer % len(self.rotating)]
            self.own[i] = self.own[i] + value

    def side(self, trunk):
        """The side streams now, in block ``l``; ``self.trunks`` ends with ``t_{l-1}``."""
        streams, past = [], [self.x0, *self.trunks]
        for i, kind in enumerate(self.kinds):
            if i in self.own:
                streams.append(self.own[i])
            elif kind.startswith("delay"):
                streams.append(past[max(len(past) - int(kind[6:-1]), 0)])
            elif kind.startswith("ema"):
                rate, l = float(kind[4:-1]), len(self.trunks)  # noqa: E741
                e = (1 - rate) ** l * self.x0
                for j, t in enumerate(self.trunks):
                    e = e + rate * (1 - rate) ** (l - 1 - j) * t
                streams.append(e)
            else:
                streams.append(
                    {
                        "attention": self.x0 + sum(self.attentions),
                        "mlp": self.x0 + sum(self.mlps),
                        "embedding": self.x0,
                        "copies": trunk,
                    }[kind]
                )
        return streams


def turned(x, towards, limit):
    """``x`` turned to a direction, or as far as it may go along the circle between the two."""
    new = towards * np.linalg.norm(x) / np.linalg.norm(towards)
    if np.linalg.norm(new - x) <= limit:
        return new
    along = x / np.linalg.norm(x)
    across = towards - (towards @ along) * along
    across /= np.linalg.norm(across)
    angle = 2 * np.arcsin(limit / np.linalg.norm(x) / 2)
    return np.linalg.norm(x) * (np.cos(angle) * along + np.sin(angle) * across)


def mix(setting, histories, trunk, update, matrix, gate, sink_norm):
    """``S'[0]`` token by token; own rows act on the streams that have them."""
    n, readers = 1 + len(setting.streams), trunk.copy()
    side = unmatched = histories.side(trunk)
    size = rms(trunk)
    if setting.norm_match:
        side = [s * size / rms(s) for s in side]
    after_side = {i: histories.own[i].copy() for i in histories.own}
    for t in range(len(trunk)):
        exempt = (setting.exempt_first and t == 0) or size[t, 0] > sink_norm
        if exempt or gate == 0:
            continue
        stack = np.stack([trunk[t], *(s[t] for s in side)])
        if n == 1:
            moved = gate * (setting.scale - 1) * update[t][None]
        else:
            moved = gate * (matrix @ stack - stack)
            if setting.readout == "mean":
                moved = np.concatenate([moved.mean(0)[None], moved[1:]])
        for i, (s, change) in enumerate(zip(stack, moved, strict=True)):
            limit = (setting.cap or np.inf) * np.linalg.norm(s)
            if setting.norm_match:
                new = turned(s, s + change, limit)
                new = new * np.linalg.norm(unmatched[i - 1][t] if i else s) / np.linalg.norm(s)
            else:
                new = s + change / max(1, np.linalg.norm(change) / limit)
            if i == 0:
                readers[t] = new
            elif i - 1 in after_side:
                after_side[i - 1][t] = new
    histories.own = after_side
    return readers, [trunk, *side] if n > 1 else [trunk, update]


def block_weights(params, layer):
    return {
        part: {k: v[layer] for k, v in weights.items()}
        if isinstance(weights, dict)
        else weights[layer]
        for part, weights in params["blocks"].items()
    }


def to_float64(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {k: to_float64(v) for k, v in tree.items()}
    return np.asarray(tree, float)


def forward(params, config, tokens, setting=None, gates=None, matrices=None) -> Trace:
    """One row of tokens through the decoder.

    Args:
        params: Stacked parameters.
        config: Shape of the model.
        tokens: Of one row, without padding.
        setting: Fields of a routing configuration; ``None`` is the plain model.
        gates: One number per block, 0 where a block is no site.
        matrices: M of every block and hook.
    """
    params = to_float64(params)
    layers, eps = config.num_hidden_layers, config.rms_norm_eps
    gates = np.zeros(layers) if gates is None else np.broadcast_to(gates, layers)
    x0 = trunk = reader = params["embed_tokens"][np.asarray(tokens)]
    histories = None if setting is None else Streams(setting, x0)
    read_only = setting is not None and setting.injection == "read_only"
    trace = Trace(np.empty(0), [], [], [], [], [], [], np.empty(0), {})

    def hook(name, layer, trunk, update, reader):
        """Trunk and what is read next."""
        if setting is None or histories is None or name not in setting.hooks:
            return trunk, reader
        m = matrices[layer][list(setting.hooks).index(name)]
        limit = setting.sink_norms[layer] if setting.sink_norms else np.inf
        mixed, streams = mix(setting, histories, trunk, update, m, gates[layer], limit)
        trace.seen[layer, name] = Mixed(streams, trunk, mixed)
        return (trunk if read_only else mixed), mixed

    for layer in range(layers):
        w = block_weights(params, layer)
        a, first = attention(norm(reader, w["input_norm"], eps), w["attention"], config)
        trace.attention_input.append(reader)
        trunk, middle = trunk + a, reader + a
        if histories:
            histories.update("attention", layer, a)
        trunk, middle = hook("attention", layer, trunk, a, middle)
        m = mlp(norm(middle, w["post_attention_norm"], eps), w["mlp"])
        trace.mlp_input.append(middle)
        trunk = trunk + m
        if histories:
            histories.update("mlp", layer, m)
        trunk, reader = hook("mlp", layer, trunk, m, trunk)
        trunk, reader = hook("block", layer, trunk, a + m, reader)
        if histories:
            histories.trunks.append(trunk)
        for name, value in (
            ("attention_update", a),
            ("mlp_update", m),
            ("trunk", trunk),
            ("first_attention", first),
        ):
            getattr(trace, name).append(value)
    final = norm(reader, params["final_norm"], eps)
    head = params["embed_tokens"].T if config.tie_word_embeddings else params["lm_head"]
    return trace._replace(logits=final @ head, residual=reader)
