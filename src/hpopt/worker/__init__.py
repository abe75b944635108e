"""One worker process: it runs trials of a study until the study has finished."""
