"""Pages for people: pictures, samples and the report."""
