"""Model directories and learner states, both in Orbax; each is complete or absent."""

from jroute.checkpoint.companions import companion_digests, companions, has_tokenizer
from jroute.checkpoint.digests import digest, fingerprint
from jroute.checkpoint.manifest import model_fingerprint, read_manifest
from jroute.checkpoint.model import load_model
from jroute.checkpoint.replacing import MANIFEST
from jroute.checkpoint.state import latest_step, load_state, resume_state, save_state
from jroute.checkpoint.writer import ModelWriter, save_model

__all__ = [
    "MANIFEST",
    "ModelWriter",
    "companion_digests",
    "companions",
    "digest",
    "fingerprint",
    "has_tokenizer",
    "latest_step",
    "load_model",
    "load_state",
    "model_fingerprint",
    "read_manifest",
    "resume_state",
    "save_model",
    "save_state",
]
