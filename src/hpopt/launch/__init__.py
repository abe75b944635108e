"""Start workers on this machine, Slurm, Ray or Kubernetes."""
