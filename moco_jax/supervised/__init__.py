"""Supervised tasks on an encoder: the linear protocol and fine-tuning."""
