"""optuna-dashboard with authentication, cached responses, figures and notes."""
