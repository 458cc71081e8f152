"""What opens and closes: steps, epochs and fits."""
