"""Logits of images from a trained network: what training, explain and release share."""
