"""Search spaces, samplers and pruners."""
