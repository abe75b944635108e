"""Owns the numbers that are read off a study: importance, cost. Opens no connection; gets a frozen table of trials."""
