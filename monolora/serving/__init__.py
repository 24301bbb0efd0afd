"""Serving MonoLoRA adapters and exact checkpoints with vLLM."""
