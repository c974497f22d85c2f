"""Inference: logits of images from a network, shared by training, explain and release."""
