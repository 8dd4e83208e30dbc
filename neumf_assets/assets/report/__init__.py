"""The last stages of a study: comparison, markers, the h5ad file and the report, and what the report shows."""
