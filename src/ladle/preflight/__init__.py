"""Before a run: what would stop it (`ladle doctor`), and a rehearsal of it in tiny amounts (`ladle run --rehearse`)."""
