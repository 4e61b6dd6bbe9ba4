"""Families of models, a module each; `registry` lists them."""
