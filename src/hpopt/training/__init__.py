"""Training of language models in torch, independent of studies, trials and databases."""
