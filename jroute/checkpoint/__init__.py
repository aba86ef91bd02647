"""Model directories and learner states, both in Orbax, both complete or not there at all."""

from jroute.checkpoint.model import (
    MANIFEST,
    ModelWriter,
    companion_digests,
    companions,
    digest,
    fingerprint,
    load_model,
    model_fingerprint,
    read_manifest,
    refuse_to_replace,
    save_model,
)
from jroute.checkpoint.state import latest_step, load_state, save_state

__all__ = [
    "MANIFEST",
    "ModelWriter",
    "companion_digests",
    "companions",
    "digest",
    "fingerprint",
    "latest_step",
    "load_model",
    "load_state",
    "model_fingerprint",
    "read_manifest",
    "refuse_to_replace",
    "save_model",
    "save_state",
]
