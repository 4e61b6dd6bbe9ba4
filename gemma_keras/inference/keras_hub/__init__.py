"""What this package gives to models of keras_hub: samplers, and chat with a plain `GemmaCausalLM`."""
