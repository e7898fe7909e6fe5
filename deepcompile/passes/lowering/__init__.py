"""What ATen nodes mean in kernel IR: views as index maps, scalar rules, reductions, the builder."""
