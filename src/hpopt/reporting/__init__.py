"""Charts, pages, tables and sentences about a study, built from a frozen table of its trials."""
