"""Analyses of a study, computed from an immutable table of its trials without a database connection."""
