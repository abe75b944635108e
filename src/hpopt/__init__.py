"""Find the hyperparameters of a training run, and prove that they are the right ones."""

__version__ = "0.1.0"
