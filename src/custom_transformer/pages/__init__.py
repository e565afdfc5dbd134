"""What people look at: pictures, samples and the report."""
