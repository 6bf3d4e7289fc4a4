"""Attempts of a policy at problems with known answers: rollouts, the data they become, and the gate between rounds."""
