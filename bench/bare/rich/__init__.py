"""Stands in for rich on a machine without it, put on the path by bench/gpu.sh alone: the same words, printed plainly."""
