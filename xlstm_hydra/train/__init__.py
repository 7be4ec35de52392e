"""Training: a compiled program for a run on a mesh, and the loop around it."""
