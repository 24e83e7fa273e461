"""Policy documents, compiled into matchers, indexed by destination, evaluated without I/O."""
