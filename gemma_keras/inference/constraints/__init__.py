"""Answers that match a form: what it is, which tokens it allows next, how an answer comes to its end."""
