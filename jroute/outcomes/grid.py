"""The grid of gates that a controller chooses from, and decisions as gates."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int

from jroute.routing.gate import Gate, GateArray, as_gate, check_gates
from jroute.routing.mixing import Routing
from jroute.utils.errors import UserError

GatePer = Literal["prompt", "band", "layer"]


@dataclass(frozen=True, eq=False)
class GateGrid:
    """The values a gate may take, and the dimensions of one decision.

    Attributes:
        values: The gates of the grid, in the order of the table's columns.
        num_gate_dims: Numbers in one decision: 1, or one for each band or mixing site.
        sites: Blocks at which a gate per layer acts, ``[layers]``; ``None`` for other gates.
    """

    values: tuple[float, ...]
    num_gate_dims: int = 1
    sites: Bool[np.ndarray, " layers"] | None = None

    @classmethod
    def create(cls, values: Sequence[float], gate_per: GatePer, routing: Routing) -> "GateGrid":
        """Return the grid of a routing.

        Raises:
            UserError: A gate per band was requested of a routing without bands.
        """
        check_gates(values, "gates")
        check_gate_per(gate_per, routing)
        if gate_per == "layer":
            sites = np.asarray(routing.sites, bool)
            return cls(tuple(values), int(sites.sum()), sites)
        if gate_per == "prompt":
            return cls(tuple(values))
        return cls(tuple(values), routing.config.bands)

    def gates(self, decisions: Int[np.ndarray, "prompts dims"]) -> list[Gate]:
        """Return the gates that indices into the grid stand for."""
        if self.num_gate_dims == 1:
            return [self.values[row[0]] for row in decisions]
        return [tuple(self.values[i] for i in row) for row in decisions]

    def keys(self, gates: GateArray) -> list[Gate]:
        """Return gates as a table names them; one number holds for all dimensions."""
        if gates.ndim == 1 and self.num_gate_dims > 1:
            gates = np.repeat(gates[:, None], self.num_gate_dims, axis=1)
        return [as_gate(gate) for gate in gates]

    def array(self, gates: Sequence[Gate] | GateArray) -> GateArray:
        """Return gates of prompts as the model takes them: a gate per site becomes one per layer.

        Args:
            gates: One gate, or one row of numbers, for each prompt.

        Returns:
            ``[prompts]``, ``[prompts, bands]`` or ``[prompts, layers]``.
        """
        values = np.asarray(gates, np.float64)
        if values.ndim == 1 or self.sites is None:
            return values
        layers = np.zeros((len(values), len(self.sites)))
        layers[:, self.sites] = values
        return layers


def check_gate_per(gate_per: GatePer, routing: Routing) -> None:
    """Refuse a gate per band of a routing that has no bands.

    Raises:
        UserError: The routing has no bands.
    """
    if gate_per == "band" and not routing.config.bands:
        raise UserError(
            "gate_per is band, but this routing has no bands; set bands in its file, or give "
            "gate_per: layer"
        )
