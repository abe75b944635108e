"""The torch wing: trains language models and knows nothing of studies, trials or databases."""
