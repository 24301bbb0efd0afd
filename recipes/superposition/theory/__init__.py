"""The theory of section 4.3 and appendix B for two features, in exact numbers or floats."""
