"""Outcomes and the environments over them; importing this registers the Gymnasium ids."""

from jroute.envs.gymnasium import register_environments

register_environments()
