"""The study file: what it may say, and what is refused before a GPU is spent."""
