"""The `deepcompile` command: one file a command group, each imported when it is called.

Results go to stdout, messages to stderr. `--json` prints one document with a `schema`.
"""
