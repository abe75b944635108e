"""Owns the warnings about a study, from the numbers of analysis/. Sees no database and draws nothing."""
