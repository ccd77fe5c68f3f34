"""What each primitive's derivative is: operator -> linear maps. One family a file."""
