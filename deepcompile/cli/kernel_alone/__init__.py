"""A recorded kernel as a folder that builds, runs, checks and times it alone."""
