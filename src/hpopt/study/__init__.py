"""The study file: its keys, and its checks before anything runs."""
