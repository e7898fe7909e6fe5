"""Models of one device placed on a mesh: plan, parameters as DTensors, checkpoints."""
