"""Reports of results that are written already: files in, one page or one text out. No model, no tensor."""
