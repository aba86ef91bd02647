"""Meshes of devices, and programs that run as several processes."""
