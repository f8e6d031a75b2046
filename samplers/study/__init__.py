"""What other codes do to samples, for study: nothing here is needed to sample well."""
