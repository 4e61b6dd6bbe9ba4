"""What a model is evaluated by: a module a task."""
