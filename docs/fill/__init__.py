"""What fills the marked places of the pages, one source a file; each gives Markdown."""
