"""Other people's projects, tested with the import of ``torch.func`` swapped for ours."""
