"""Steps and what they leave on disk: fingerprints, atomic builds, plans, verification, crash journals."""
