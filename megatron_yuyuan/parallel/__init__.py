"""Dividing the model over ranks: mesh, collectives, tensor-parallel layers, pipeline, data, and the
plan."""
