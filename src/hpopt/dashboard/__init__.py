"""The dashboard: optuna-dashboard with our answers in it, behind a gate."""
