"""Owns how a study is told: figures, pages, tables, words. Opens no connection; gets a frozen table of trials."""
