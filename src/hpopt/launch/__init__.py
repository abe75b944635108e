"""Puts workers somewhere: on this machine, or on the engine that a cluster already has."""
