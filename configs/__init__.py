"""Configuration files: each has `get_config()`; its docstring gives the launch command and what to expect."""
