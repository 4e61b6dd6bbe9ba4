"""Answers that are searched for: by beams, by contrastive search."""
