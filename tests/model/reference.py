"""The routed decoder in NumPy float64, written from the formulas; it shares no code with jroute."""

import numpy as np


def norm(x, weight, eps):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight


def turn(x, theta):
    """Rotary embedding of ``[seq, heads, head_dim]``; pair (i, i + half) is turned together."""
    seq, _, dim = x.shape
    half = dim // 2
    out = np.empty_like(x)
    for position in range(seq):
        for i in range(half):
            angle = position * theta ** (-2 * i / dim)
            a, b = x[position, :, i], x[position, :, i + half]
            out[position, :, i] = a * np.cos(angle) - b * np.sin(angle)
            out[position, :, i + half] = b * np.cos(angle) + a * np.sin(angle)
    return out


def attention(x, w, config):
    seq = x.shape[0]
    q = np.einsum("se,ehd->shd", x, w["q_proj"])
    k = np.einsum("se,ehd->shd", x, w["k_proj"])
    v = np.einsum("se,ehd->shd", x, w["v_proj"])
    q = turn(norm(q, w["q_norm"], config.rms_norm_eps), config.rope_theta)
    k = turn(norm(k, w["k_norm"], config.rms_norm_eps), config.rope_theta)
    group = config.num_attention_heads // config.num_key_value_heads
    out = np.zeros((seq, config.hidden_size))
    for head in range(config.num_attention_heads):
        scores = q[:, head] @ k[:, head // group].T / np.sqrt(config.head_dim)
        scores[np.triu_indices(seq, 1)] = -np.inf
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        out += scores @ v[:, head // group] @ w["o_proj"][head]
    return out


def mlp(x, w):
    gate = x @ w["gate_proj"]
    return (gate / (1 + np.exp(-gate)) * (x @ w["up_proj"])) @ w["down_proj"]


def rms(x):
    return np.sqrt((x**2).mean(-1, keepdims=True))


def forward(params, config, tokens, routing=None, gate=0.0, sites=None):
    """Logits ``[seq, vocab]`` of one row, and the streams as mixed at each site.

    ``routing`` is ``(kinds, M, norm_match)``; M may be one matrix or one per block.
    """
    cast = lambda tree: (  # noqa: E731
        {k: cast(v) for k, v in tree.items()} if isinstance(tree, dict) else np.asarray(tree, float)
    )
    params = cast(params)
    layers = config.num_hidden_layers
    x0 = trunk = params["embed_tokens"][np.asarray(tokens)]
    trunks, attentions, mlps, seen = [x0], x0.copy(), x0.copy(), []
    persistent = {}
    for layer in range(layers):
        w = {
            part: {k: v[layer] for k, v in weights.items()}
            if isinstance(weights, dict)
            else weights[layer]
            for part, weights in params["blocks"].items()
        }
        a = attention(norm(trunk, w["input_norm"], config.rms_norm_eps), w["attention"], config)
        m = mlp(norm(trunk + a, w["post_attention_norm"], config.rms_norm_eps), w["mlp"])
        trunk = trunk + a + m
        attentions, mlps = attentions + a, mlps + m
        if routing is not None and gate != 0 and (sites is None or layer in sites):
            kinds, matrix, match = routing
            matrix = matrix[layer] if np.ndim(matrix) == 3 else np.asarray(matrix)
            streams = [trunk]
            for i, kind in enumerate(kinds, 1):
                if kind.startswith("delay"):
                    k = int(kind[6:-1])
                    s = trunks[max(len(trunks) - k, 0)]
                elif kind == "persistent":
                    s = persistent.get(i, x0)
                else:
                    s = {"attention": attentions, "mlp": mlps, "copies": trunk}[kind]
                streams.append(s * rms(trunk) / rms(s) if match else s)
            seen.append(streams)
            mixed = [
                s + gate * (sum(matrix[i, j] * streams[j] for j in range(len(streams))) - s)
                for i, s in enumerate(streams)
            ]
            if match:
                mixed = [new * rms(old) / rms(new) for new, old in zip(mixed, streams, strict=True)]
            trunk = mixed[0]
            persistent = {i: mixed[i] for i, k in enumerate(kinds, 1) if k == "persistent"}
        trunks.append(trunk)
    final = norm(trunk, params["final_norm"], config.rms_norm_eps)
    head = params["embed_tokens"].T if config.tie_word_embeddings else params["lm_head"]
    return final @ head, seen
