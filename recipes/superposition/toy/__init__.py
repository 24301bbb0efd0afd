"""The toy model: sparse features, encoders trained to reconstruct them, and the geometry that they find."""
