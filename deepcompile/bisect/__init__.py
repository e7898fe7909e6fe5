"""Finding the pass, the rewrite and the kernel that make a model wrong, slow or crash."""
