"""Training programs. Packaged as ``monolora.recipes``; imported by that name everywhere."""
