"""Warnings about a study, derived from its analysis without a database connection."""
