"""The alignment evaluation suite. Packaged as ``monolora.eval``; imported by that name everywhere."""
