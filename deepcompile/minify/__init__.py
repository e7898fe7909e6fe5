"""Making a small stand-alone script that fails as a model does."""
