"""`ladle run RECIPE --rehearse`: every stage at the model's true shape, in tiny amounts, before the true run."""
