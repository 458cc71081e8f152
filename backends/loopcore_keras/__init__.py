"""Keras 3 models, layers and optimizers on whichever framework Keras runs; what the adapters share."""
