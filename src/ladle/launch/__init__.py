"""A recipe on a cluster: one Slurm job a step, in the order of the pipeline's graph."""
