"""Loops written once. Run one as a module: ``python -m examples.vae --backend torch``."""
