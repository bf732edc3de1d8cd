"""Avatars, LoRAs, jobs and costs in front of the worker. Imports no torch and no worker code."""

__version__ = "0.1.0"
