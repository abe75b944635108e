"""The command line: verbs, exit codes, what goes to which output. The only reader of the environment."""
