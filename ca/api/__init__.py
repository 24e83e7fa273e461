"""The wire APIs of the CA, one module each."""
