"""A probe as numbers for JSON and as text for the screen."""

import math
from typing import Any

import numpy as np

from jroute.probe.effects import (
    DESTRUCTIVE_ABOVE,
    INERT_BELOW,
    STRONG_ABOVE,
    GateEffect,
    Probe,
    verdict,
)
from jroute.routing import operators
from jroute.routing.composition import source_names
from jroute.routing.mixing import Routing
from jroute.utils.keys import stored


def column_error(routing: Routing) -> float | None:
    """Return how far Sinkhorn's columns are from 1; ``None`` for other operators."""
    if routing.config.operator != "sinkhorn" or not routing.config.streams:
        return None
    return operators.column_error(np.asarray(routing.mixing)[np.asarray(routing.sites)])


def probe_numbers(probe: Probe, routing: Routing) -> dict[str, Any]:
    """Return everything that was measured, for JSON; numbers that are not finite are ``None``."""

    def plain(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return [plain(item) for item in value.tolist()]
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return float(f"{value:.6g}") if math.isfinite(value) else None

    return {
        "verdict": probe.verdict,
        "kl_limits": {
            "inert_below": INERT_BELOW,
            "strong_above": STRONG_ABOVE,
            "destructive_above": DESTRUCTIVE_ABOVE,
        },
        "sinkhorn_column_error": column_error(routing),
        "streams": ["trunk", *routing.config.streams],
        "hooks": list(routing.config.hooks),
        "sites": np.flatnonzero(routing.sites).tolist(),
        "readers": readers(len(routing.sites)),
        "sources": source_names(len(routing.sites)),
        "effects": [
            {name: plain(value) for name, value in stored(effect).items()}
            | {"verdict": verdict(effect.kl)}
            for effect in probe.effects
        ],
    }


def readers(layers: int) -> list[str]:
    """Return the names of C(g)'s rows: attention and MLP of every block, and the final norm."""
    return [*(f"{part}{layer}" for layer in range(layers) for part in "am"), "final"]


def probe_text(probe: Probe, routing: Routing) -> str:
    """Return the effects as text: every gate, then block by block and C(g) at the largest one."""
    lines = ["one gate for all blocks: bands have no effect here"] if routing.config.bands else []
    lines += [
        f"{'gate':>7} {'KL mean':>9} {'KL max':>9} {'top-1':>7} {'gain rows':>10} {'columns':>9}"
        "  verdict"
    ]
    for e in probe.effects:
        lines.append(
            f"{e.gate:>7g} {e.kl:>9.2g} {e.kl_largest:>9.2g} {e.agreement:>7.1%} "
            f"{e.gain[0]:>#10.4g} {e.gain[1]:>#9.4g}  {verdict(e.kl)}"
        )
    if (error := column_error(routing)) is not None:
        lines.append(f"Sinkhorn: columns are within {error:.1e} of 1")
    largest = max(probe.effects, key=lambda effect: abs(effect.gate))
    plain = next((effect for effect in probe.effects if not effect.gate), None)
    return "\n".join([*lines, "", *_by_block(largest, plain, routing), "", *_heatmap(largest)])


def _by_block(effect: GateEffect, plain: GateEffect | None, routing: Routing) -> list[str]:
    lines = [
        f"Blocks at gate {effect.gate:g} (N_eff and shares: gate 1); RMS / share in the mixture "
        "are of the trunk" + "".join(f", {kind}" for kind in routing.config.streams or ("update",)),
        f"{'block':>5} {'hook':<9} {'change':>7} {'angle':>6} {'divers.':>7} {'N_eff':>5} "
        f"{'to first':>9}  {'RMS / share':<11}",
    ]
    for layer in np.flatnonzero(routing.sites):
        for h, hook in enumerate(routing.config.hooks):
            # Attention to the first token belongs to the block, not to a hook.
            first = f"{effect.first_attention[layer]:.1%}" if not h else ""
            streams = zip(effect.rms[layer, h], effect.dominance[layer, h], strict=True)
            lines.append(
                f"{layer:>5} {hook:<9} {effect.change[layer, h]:>7.1%} "
                f"{effect.angle[layer, h]:>5.1f}° {effect.diversity[layer, h]:>7.3f} "
                f"{effect.effective_streams[layer, h]:>5.2f} {first:>9}  "
                + "  ".join(f"{rms:.3g} / {share:.1%}" for rms, share in streams)
            )
    means = f"{effect.first_attention.mean():.1%}"
    if plain is not None:
        means += f", {plain.first_attention.mean():.1%} at gate 0"
    return [*lines, f"attention to the first token, mean over all blocks: {means}"]


def _heatmap(effect: GateEffect) -> list[str]:
    """Return C(g) with a character for every weight."""

    def shade(weight: float) -> str:
        if weight < -0.05:
            return "-"
        if weight < 0.95:
            return str(max(int(10 * weight + 0.5), 0)).replace("10", "9")
        return "=" if weight <= 1.05 else "+" if weight < 2 else "#"

    layers = len(effect.first_attention)
    lines = [
        f"C(g) at gate {effect.gate:g}: weights of x0, a0, m0, a1, ... in what blocks read",
        "digits are tenths; = is 1 as in the plain model; + above, # 2 and more; - negative",
    ]
    for i, (name, row) in enumerate(zip(readers(layers), effect.composition, strict=True)):
        lines.append(f"{name:>5} |" + "".join(map(shade, row[: i + 1].tolist())))
    return lines
